"""A CLIP ViT over clips, under CLIP's own names.

Shapes: B clips, T frames, N = 1 + (img_size / patch_size)² tokens a frame (CLS first), D = embed_dim.

    stem    patches (no bias) -> prepend class_embedding -> + positional_embedding [N, D]
            -> + temporal_embedding [1, T, D] on every token -> ln_pre                       [B, T, N, D]
    blocks  depth × aim_kernels.AIMBlock, below ``transformer.resblocks``
    tail    CLS of each frame -> ln_post [B, T, D]

CLIPA's has no norm after the stem and is read from the mean over its patches (Li et al., An Inverse Scaling Law for
CLIP Training, NeurIPS 2023; open_clip's ``no_ln_pre``, ``pool_type`` avg, ``final_ln_after_pool``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.models.block import FrozenBlock, Transformer
from aim_fast.models.frame_model import FrameModel
from aim_fast.models.heads import ALL_HEADS, OF_METHODS
from aim_fast.models.weights import clip as clip_weights
from aim_fast.models.weights.adaptation import adapted_by
from aim_fast.models.weights.architecture import infer_architecture, usual_heads
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.patch_embed import patch_embed


class CLIPViT(FrameModel):
    """A CLIP ViT under any method and head."""

    undecayed = frozenset({"class_embedding", "positional_embedding"})
    normed_stem = True  # whether the stem ends in a norm

    def make_trunk(self) -> None:
        width = self.embed_dim
        self.conv1 = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + (self.img_size // self.patch_size) ** 2, width))
        self.ln_pre = nn.LayerNorm(width) if self.normed_stem else nn.Identity()
        self.transformer = Transformer(self._block(number) for number in range(self.depth))
        self.ln_post = nn.LayerNorm(width)

    def _block(self, number: int) -> FrozenBlock:
        arguments = {"activation": self.records[0].activation, **self.block_arguments(number)}  # type: ignore[attr-defined]
        return self.adapt(FrozenBlock(self.embed_dim, self.num_heads, self.mlp_ratio, **arguments), number)

    def reset_trunk(self) -> None:
        """As CLIP does."""
        self.conv1.reset_parameters()
        nn.init.normal_(self.class_embedding, std=self.embed_dim**-0.5)
        nn.init.normal_(self.positional_embedding, std=self.embed_dim**-0.5)
        for norm in (self.ln_pre, self.ln_post):
            if isinstance(norm, nn.LayerNorm):
                norm.reset_parameters()
        for block in self.row:
            block.reset_parameters()
            self.reset_added(block)
            for residual in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(residual.weight, std=(2 * self.embed_dim * self.depth) ** -0.5)

    @property
    def row(self) -> Sequence[Any]:
        return self.transformer.resblocks

    @property
    def projection(self) -> nn.Conv2d:
        return self.conv1

    @property
    def num_tokens(self) -> int:
        return len(self.positional_embedding)

    def fit_trunk(self, file: WeightsFile, source: str) -> Fit:
        return clip_weights.fit_weights(self, file, source)

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        method = adapted_by(tensors)
        return None if method is None else cls.arguments_under(method, tensors, where)

    @classmethod
    def arguments_under(cls, method: str, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        """:meth:`infer_arguments` of a model under ``method``, of which its tensors need have nothing."""
        whole = "visual." if "visual.conv1.weight" in tensors else ""  # of a CLIP, its text tower beside
        if f"{whole}conv1.weight" not in tensors or (f"{whole}ln_pre.weight" in tensors) is not cls.normed_stem:
            return None
        found = infer_architecture(tensors, where) | ({} if method == "aim" else {"method": method})
        # The published code adds the temporal embedding in the stem, wherever the adapters are.
        place = {} if 0 in found.get("adapter_layers", [0]) else {"temporal_place": "stem"}
        head = method if method in OF_METHODS else "text" if "side.proj" in tensors else "linear"
        of_head = {} if head == "linear" else {"head": head} | ALL_HEADS[head].told(tensors, where)
        return found | place | {"num_heads": usual_heads(found["embed_dim"])} | of_head

    def embed(self, x: Tensor) -> Tensor:
        """Clips to the block's first input ``[B, T, N, D]``."""
        # on a CPU the fused stem is slower: bench/NOTES.md
        if x.is_cuda and x.dtype == torch.uint8 and self.backend == "fused" and isinstance(self.ln_pre, nn.LayerNorm):
            self.check_clips(x, self.trunk_frames)
            return patch_embed(
                x,
                self.conv1.weight,
                self.class_embedding,
                self.positional_embedding,
                self.stem_embedding.squeeze(0),
                self.ln_pre.weight,
                self.ln_pre.bias,
                self.mean,
                self.std,
                self.ln_pre.eps,
            )
        patches = self.patch_tokens(x)
        b, t, _, d = patches.shape
        cls = self.class_embedding.to(patches.dtype).expand(b, t, 1, d)
        tokens = torch.cat([cls, patches], dim=2) + self.positional_embedding
        return self.ln_pre(tokens + self.stem_embedding[:, :, None])


class CLIPAViT(CLIPViT):
    """CLIPA's: no norm after the stem, the mean over patches for a feature."""

    normed_stem = False

    @property
    def pools_cls(self) -> bool:
        return False

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``: the mean of its patches."""
        return tokens[:, :, 1:].mean(2)
