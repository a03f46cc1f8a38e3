"""MTV: several ViTs side by side on one clip, each with tubelets of its own length, that now and then see each other.

Shapes: B clips; view v has tubelets of t_v frames, S_v = T / t_v steps of time, width D_v; P tubelets a step, S the
fewest and S' the most steps of a view.

    view        tubelets -> class token of each step in front -> + positions, shared by all steps -> consecutive steps
                joined until there are S sequences: [B, S, (S_v / S)·(1 + P), D_v]; views from few to many steps
    crossing    before some blocks, z the views normed, all from the values before:
                x_v = x_v + attn(q = z_v, k and v = z_(v+1))                   width and heads of view v
    blocks      each view's own, in all views that have one of that number
    global      class tokens of all steps, each view's sequence repeated to S' steps, side by side [B, S', ΣD_v] ->
                class token, positions, blocks, norm, class token -> fc_cls [B, num_classes]

From an image ViT starts the view of its width. The published accuracy rests on JFT, which is private. Source: Yan et
al., Multiview Transformers for Video Recognition, CVPR 2022, and its public code in scenic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import WeightsError
from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.weights.vit import is_vit, vit_tower
from aim_fast.models.whole.encoder import EPS, Encoder, trained_blocks
from aim_fast.models.whole.tubelet_embedding import TubeletEmbedding, Tubelets, central_kernel
from aim_fast.models.whole.whole_model import Start, WholeModel, count_blocks, resized_positions

_OF_VIEWS = ("tubelets", "embed_dims", "depths", "num_heads", "hidden_dims")


@dataclass(frozen=True)
class Mtv(Tubelets):
    """Arguments of MTV, one number a view, from long tubelets to short ones.

    Args:
        tubelets: frames of a tubelet. embed_dims, depths, num_heads, hidden_dims: of the views' blocks.
        crossings: the blocks before which views look at each other.
        global_layers, global_heads, global_hidden: of the encoder over all views' class tokens.
    """

    tubelets: Sequence[int] = (8, 4, 2)
    embed_dims: Sequence[int] = (192, 384, 768)
    depths: Sequence[int] = (12, 12, 12)
    num_heads: Sequence[int] = (3, 6, 12)
    hidden_dims: Sequence[int] = (768, 1536, 3072)
    crossings: Sequence[int] = (5, 11)
    global_layers: int = 12
    global_heads: int = 8
    global_hidden: int = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*_OF_VIEWS, "crossings"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = {name: len(getattr(self, name)) for name in _OF_VIEWS}
        if len({*counts.values()}) > 1 or not self.tubelets:
            raise ValueError(f"{', '.join(_OF_VIEWS)} take one number a view, not {[*counts.values()]}")
        for name in _OF_VIEWS:
            for value in getattr(self, name):
                check_sizes(**{f"each of {name}": value})
        for longer, shorter in zip(self.tubelets, (*self.tubelets[1:], 1)):
            if longer % shorter:
                raise ValueError(f"tubelets {self.tubelets}: each must be a multiple of the one after it")
        self.check_tubelets(self.tubelets[0])
        check_sizes(global_layers=self.global_layers, global_heads=self.global_heads, global_hidden=self.global_hidden)
        if sum(self.embed_dims) % self.global_heads:
            raise ValueError(f"global_heads {self.global_heads} do not divide the width {sum(self.embed_dims)}")
        if odd := [number for number in self.crossings if not 0 <= number < max(self.depths)]:
            raise ValueError(f"crossings name block {odd[0]}, and the deepest view has {max(self.depths)}")


class MTV(WholeModel):
    """Clips in, class logits out, everything trained."""

    record = Mtv
    activation = "gelu_tanh"
    num_heads: Sequence[int]
    tubelets: Sequence[int]
    embed_dims: Sequence[int]

    def __init__(self, of: Mtv) -> None:
        super().__init__(of)
        running: Any = {"backend": of.backend, "memory": of.memory}
        self.steps = [of.num_frames // tubelet for tubelet in of.tubelets]
        places = 1 + (of.img_size // of.patch_size) ** 2
        self.embeddings = nn.ModuleList(
            TubeletEmbedding(tubelet, of.patch_size, width) for tubelet, width in zip(of.tubelets, of.embed_dims)
        )
        self.cls_tokens = nn.ParameterList(
            torch.empty(1, steps, 1, width) for steps, width in zip(self.steps, of.embed_dims)
        )
        self.pos_embeds = nn.ParameterList(torch.empty(1, places, width) for width in of.embed_dims)
        self.views = nn.ModuleList(
            trained_blocks(width, heads, of.rates(depth), hidden, **running)
            for width, heads, depth, hidden in zip(of.embed_dims, of.num_heads, of.depths, of.hidden_dims)
        )
        self.cross_views = nn.ModuleDict(
            {str(number): _Crossing(of.embed_dims, of.num_heads) for number in of.crossings}
        )
        self.global_encoder = Encoder(
            max(self.steps),
            sum(of.embed_dims),
            of.global_heads,
            of.rates(of.global_layers),
            of.global_hidden,
            class_token=True,
            **running,
        )
        self.fc_cls = nn.Linear(sum(of.embed_dims), of.num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        """Class tokens, what views take of each other, and the classifier at zero; the rest as ViViT's."""
        if self.fc_cls.weight.is_meta:
            return
        for embedding, token, position in zip(self.embeddings, self.cls_tokens, self.pos_embeds):
            embedding.reset_parameters()  # type: ignore[operator]
            nn.init.zeros_(token)
            nn.init.normal_(position, std=0.02)
        for block in (block for view in self.views for block in view):  # type: ignore[attr-defined]
            block.reset_parameters()
        for crossing in self.cross_views.values():
            crossing.reset_parameters()  # type: ignore[operator]
        self.global_encoder.reset_parameters()
        self.zero_classifier()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        if "global_encoder.pos_embed" not in tensors or "embeddings.0.weight" not in tensors:
            return None
        views = range(count_blocks(tensors, "views."))
        kernels = [tensors[f"embeddings.{view}.weight"] for view in views]
        patch, steps = kernels[0].shape[-1], tensors["cls_tokens.0"].shape[1]
        return {
            "method": "full",
            "tubelets": tuple(kernel.shape[2] for kernel in kernels),
            "embed_dims": tuple(len(kernel) for kernel in kernels),
            "depths": tuple(count_blocks(tensors, f"views.{view}.") for view in views),
            "num_heads": tuple(max(len(kernel) // 64, 1) for kernel in kernels),
            "hidden_dims": tuple(len(tensors[f"views.{view}.0.mlp.fc1.weight"]) for view in views),
            "crossings": tuple(
                sorted({int(name.split(".")[1]) for name in tensors if name.startswith("cross_views.")})
            ),
            "global_layers": count_blocks(tensors, "global_encoder.blocks."),
            "global_hidden": len(tensors["global_encoder.blocks.0.mlp.fc1.weight"]),
            "patch_size": patch,
            "img_size": round((tensors["pos_embeds.0"].shape[1] - 1) ** 0.5) * patch,
            "num_frames": steps * kernels[0].shape[2],
        }

    def from_image(self, tensors: Mapping[str, Tensor], source: str) -> Start | None:
        if not is_vit(tensors):
            return None
        tower = vit_tower(tensors, source)
        kernel = tower.pop("patch_embed.proj.weight")
        if len(kernel) not in self.embed_dims:
            widths = " or ".join(map(str, self.embed_dims))
            raise WeightsError(f"{source} is an image ViT of width {len(kernel)}: take one of a view, {widths}")
        view = list(self.embed_dims).index(len(kernel))
        found = {
            f"embeddings.{view}.weight": central_kernel(kernel, self.tubelets[view]),
            f"embeddings.{view}.bias": tower.pop("patch_embed.proj.bias"),
            f"pos_embeds.{view}": tower.pop("pos_embed"),
        }
        for name, tensor in tower.items():
            if not name.startswith(("cls_token", "ln_post.")):
                found[f"views.{view}.{name.removeprefix('blocks.')}"] = tensor
        starts = (f"embeddings.{view}.", f"pos_embeds.{view}", f"views.{view}.")
        left = {name for name in self.state_dict() if not name.startswith(starts)}
        line = f"{source} is an image ViT: view {view + 1} of {len(self.views)} starts as it, all else anew"
        return Start(found, left, [line])

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return resized_positions(self, tensors, [f"pos_embeds.{view}" for view in range(len(self.views))], ())

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to their features ``[B, ΣD_v]``."""
        b, fewest, most = self.check_clips(x), min(self.steps), max(self.steps)
        views = [self._tokens(x, view).reshape(b, fewest, -1, width) for view, width in enumerate(self.embed_dims)]
        for number in range(max(len(view) for view in self.views)):  # type: ignore[arg-type]
            if str(number) in self.cross_views:
                views = self.cross_views[str(number)](views)
            views = [
                blocks[number](tokens) if number < len(blocks) else tokens  # type: ignore[index, arg-type]
                for blocks, tokens in zip(self.views, views)
            ]
        read = [
            tokens.reshape(b, steps, -1, tokens.shape[-1])[:, :, 0].repeat(1, most // steps, 1)
            for steps, tokens in zip(self.steps, views)
        ]
        return self.global_encoder(torch.cat(read, dim=-1)[:, None])[:, 0]

    def _tokens(self, x: Tensor, view: int) -> Tensor:
        """Of a view, before its first block: ``[B, S_v, 1 + P, D_v]``."""
        tokens = self.embeddings[view](x, self.mean, self.std)
        first = self.cls_tokens[view].to(tokens.dtype).expand(x.shape[0], -1, -1, -1)
        return torch.cat([first, tokens], dim=2) + self.pos_embeds[view]


class _Crossing(nn.Module):
    """Views ``[B, S, N_v, D_v]``, each with what it takes of the next."""

    def __init__(self, widths: Sequence[int], heads: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=EPS) for width in widths)
        self.attentions = nn.ModuleList(
            _CrossAttention(width, other, count) for width, other, count in zip(widths, widths[1:], heads)
        )

    def reset_parameters(self) -> None:
        for module in (*self.norms, *self.attentions):
            module.reset_parameters()

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        normed = [norm(view) for norm, view in zip(self.norms, views)]
        taken = [attention(z, other) for attention, z, other in zip(self.attentions, normed, normed[1:])]
        return [*(view + branch for view, branch in zip(views, taken)), views[-1]]


class _CrossAttention(nn.Module):
    """Attention of ``[..., N, D]`` to other tokens ``[..., M, D']``; its output starts at zero."""

    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(other, 2 * width)
        self.proj = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        for linear in (self.q, self.kv):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        q, k, v = (
            part.flatten(0, -3).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B·S, h, N, d]
            for part in (self.q(x), *self.kv(other).chunk(2, -1))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).reshape(x.shape))
