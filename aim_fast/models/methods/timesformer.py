"""TimeSformer on a CLIP ViT: divided attention over time and space, the fully fine-tuned peer of AIM.

Stem, tail and shapes are those of ``CLIPViT``. A block, f droppath's factor, drawn anew
for each branch:

    x = x + T_Adapter(f · t_attn_over_T(t_norm(x)))         T_Adapter = Linear(D, D)
    x = x + f · attn_over_N(ln_1(x))
    x = x + f · mlp(ln_2(x))

``t_attn`` and ``t_norm`` are parameters of their own, copied from ``attn`` and ``ln_1`` when CLIP's weights are loaded;
``T_Adapter`` starts at zero, so that a model with fresh CLIP weights is CLIP frame by frame (the sources fix no initial
value; TimeSformer's own code starts its counterpart at zero too). Source: Bertasius et al., Is Space-Time Attention All
You Need for Video Understanding?, ICML 2021, in the form that Yang et al., ICLR 2023, compare AIM with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aim_fast.models.choices import Tune
from aim_fast.models.pixels import CLIP_MEAN, CLIP_STD
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.models.video_model import check_tune
from aim_fast.models.weights import clip as clip_weights
from aim_fast.models.weights.architecture import infer_architecture, usual_heads, visual_tower
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_frames
from aim_kernels.adaptation import activate, attention_over_space, attention_over_time
from aim_kernels.choices import Activation, BlockBackend, DropPathMode, Memory
from aim_kernels.memory import check_memory
from aim_kernels.modules import MLP, DropPath, TemporalAttention
from aim_kernels.trained_trunk import attention_branch, mlp_branch
from aim_kernels.weights import NormWeights


class TimeSformerCLIP(CLIPViT):
    """TimeSformer on a CLIP ViT: clips in, class logits out, as :class:`~aim_fast.models.video_model.VideoModel` says.

    Args:
        tune: "all" trains everything; "adapters" what the published code leaves trainable when it freezes by name:
            ``temporal_embedding``, every ``T_Adapter``, ``ln_post`` and ``fc_cls``.
        memory: what a block keeps for backward: "fast" all that backward reads, "balanced" without the MLP's hidden
            state, "lean" its input alone; the rest is computed again.

    The other arguments are those of ``AIMViTCLIP``. Raises ValueError for sizes that
    cannot be, and in ``forward`` for a clip of another layout or size.
    """

    arguments = (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_frames", "drop_path", "num_classes"),
        *("drop_path_mode", "tune", "activation", "head_dropout", "mean", "std"),
    )

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_frames: int = 8,
        drop_path: float = 0.2,
        num_classes: int = 400,
        *,
        drop_path_mode: DropPathMode = "position",
        tune: Tune = "all",
        activation: Activation = "quick_gelu",
        head_dropout: float = 0.5,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        backend: BlockBackend = "fused",
        memory: Memory = "fast",
    ) -> None:
        check_tune(tune)

        def block(drop_rate: float, number: int) -> nn.Module:
            return TimeSformerBlock(embed_dim, num_heads, drop_rate, drop_path_mode, activation, backend, memory)

        super().__init__(
            block,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_frames=num_frames,
            num_classes=num_classes,
            drop_path=drop_path,
            head_dropout=head_dropout,
            mean=mean,
            std=std,
        )
        self.drop_path_mode = drop_path_mode
        self.tune = tune
        self.reset_parameters()
        self.freeze()

    def freeze(self) -> None:
        self.requires_grad_(self.tune == "all")
        for name, parameter in self.named_parameters():
            if "T_Adapter" in name or name.split(".")[0] in ("temporal_embedding", "ln_post", "fc_cls"):
                parameter.requires_grad_(True)

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        if "conv1.weight" not in tensors or not any(".t_attn." in name for name in tensors):
            return None
        taken = {name: value for name, value in infer_architecture(tensors, where).items() if name in cls.arguments}
        return taken | {"num_heads": usual_heads(taken["embed_dim"])}

    def is_adaptation(self, name: str) -> bool:
        return super().is_adaptation(name) or ".t_attn." in name or ".t_norm." in name

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        """CLIP's weights, its attention and norm copied to the temporal ones; or those of a whole TimeSformer."""
        tower = visual_tower(file.tensors, source)
        if not any(".t_attn." in name for name in tower):
            fit = clip_weights.fit_weights(self, file, source)
            copied = {_temporal_name(name): tensor for name, tensor in fit.tensors.items()}
            copied = {name: tensor for name, tensor in copied.items() if name not in fit.tensors}
            line = "temporal attention and its norm start as copies of the spatial ones, T_Adapter at zero"
            return Fit(fit.tensors | copied, fit.left - copied.keys(), fit.kind, [*fit.lines, line], fit.activation)
        image = {name: tensor for name, tensor in tower.items() if not self.is_adaptation(name)}
        fit = clip_weights.fit_weights(self, WeightsFile(image, file.activation or "quick_gelu"), source)
        lines, left = [], set()
        own = {name: tensor for name, tensor in tower.items() if name not in image}
        frames = own["temporal_embedding"].shape[1] if "temporal_embedding" in own else self.num_frames
        if frames != self.num_frames:
            own["temporal_embedding"] = interpolate_frames(own["temporal_embedding"], self.num_frames)
            lines.append(f"temporal embedding interpolated from {frames} to {self.num_frames} frames")
        head = own.get("fc_cls.weight")
        if head is None or len(head) != self.num_classes:
            left = {"fc_cls.weight", "fc_cls.bias"}
            own = {name: tensor for name, tensor in own.items() if name not in left}
            why = "has no head" if head is None else f"has a head of {len(head)} classes, not {self.num_classes}"
            lines.append(f"{source} {why}: the head is left at its initialisation")
        return Fit(fit.tensors | own, left, "aim", fit.lines + lines, fit.activation)


class TimeSformerBlock(nn.Module):
    """A pre-norm ViT block with an attention over time of its own before the one over space.

    Input and output ``[B, T, N, dim]``. Parameter names as published: ``attn.*, ln_1.*, ln_2.*, mlp.*`` of CLIP, and
    ``t_attn.*`` (as ``attn``), ``t_norm.*``, ``T_Adapter.*``. ``backend`` "fused" runs the attention operators of
    ``aim_kernels``, "reference" plain torch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path: float,
        drop_path_mode: DropPathMode,
        activation: Activation,
        backend: BlockBackend,
        memory: Memory,
    ) -> None:
        super().__init__()
        check_memory(memory)
        for name, word, choices in (("backend", backend, BlockBackend), ("activation", activation, Activation)):
            if word not in get_args(choices):
                raise ValueError(f"{name} {word!r} is none of {', '.join(get_args(choices))}")
        self.num_heads = num_heads
        self.activation = activation
        self.backend = backend
        self.memory = memory
        self.t_norm = nn.LayerNorm(dim)
        self.t_attn = TemporalAttention(dim, num_heads)
        self.T_Adapter = nn.Linear(dim, dim)
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = TemporalAttention(dim, num_heads)  # its parameters; it runs over space
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)
        self.drop_path = DropPath(drop_path, drop_path_mode)

    def reset_parameters(self) -> None:
        """CLIP's initialisation; the temporal attention and norm equal the spatial ones, ``T_Adapter`` is zero."""
        for part in (self.ln_1, self.attn, self.ln_2, self.mlp):
            part.reset_parameters()
        self.t_norm.load_state_dict(self.ln_1.state_dict())
        self.t_attn.load_state_dict(self.attn.state_dict())
        nn.init.zeros_(self.T_Adapter.weight)
        nn.init.zeros_(self.T_Adapter.bias)

    def forward(self, x: Tensor) -> Tensor:
        time, space, mlp = (self.drop_path(x) for _ in range(3))
        if self.memory == "lean" and torch.is_grad_enabled():
            # the drops are drawn outside, so nothing random is run twice
            return checkpoint(self._forward, x, time, space, mlp, "fast", use_reentrant=False, preserve_rng_state=False)
        return self._forward(x, time, space, mlp, self.memory)

    def _forward(
        self, x: Tensor, time: Tensor | None, space: Tensor | None, mlp: Tensor | None, memory: Memory
    ) -> Tensor:
        attended = _dropped(self._attend(x, self.t_norm, self.t_attn, over_time=True), time)
        x = x + F.linear(attended, self.T_Adapter.weight, self.T_Adapter.bias)
        x = x + _dropped(self._attend(x, self.ln_1, self.attn, over_time=False), space)
        return x + _dropped(self._expand(x, memory), mlp)

    def _attend(self, x: Tensor, norm: nn.LayerNorm, attention: TemporalAttention, over_time: bool) -> Tensor:
        weights = attention.weights
        if self.backend == "reference":
            attend = attention_over_time if over_time else attention_over_space
            attended = attend(F.linear(norm(x), weights.qkv_weight, weights.qkv_bias), self.num_heads)
            return attention.out_proj(attended)
        affine = NormWeights(norm.weight, norm.bias)
        return attention_branch(x, affine, weights, self.num_heads, "time" if over_time else "space", eps=norm.eps)

    def _expand(self, x: Tensor, memory: Memory) -> Tensor:
        norm, mlp = self.ln_2, self.mlp
        if self.backend == "reference":
            return mlp.c_proj(activate(mlp.c_fc(norm(x)), self.activation))
        affine = NormWeights(norm.weight, norm.bias)
        return mlp_branch(x, affine, mlp.weights, activation=self.activation, eps=norm.eps, memory=memory)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, activation={self.activation!r}"


def _dropped(branch: Tensor, drop: Tensor | None) -> Tensor:
    return branch if drop is None else branch * drop.to(branch.dtype)


def _temporal_name(name: str) -> str:
    """The temporal parameter that starts as a copy of a spatial one; other names as they are."""
    return name.replace(".attn.", ".t_attn.").replace(".ln_1.", ".t_norm.")
