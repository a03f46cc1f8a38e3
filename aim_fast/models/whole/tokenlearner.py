"""TokenLearner: a ViT over all tubelets of a clip, which half way keeps a few learned tokens of each step of time.

Shapes: B clips, S steps of time, g = img_size // patch_size, P = g² tubelets a step, K = num_tokens, D width.

    tubelets [B, S·P, D], of pixels that g × g whole ones cover -> + positions -> blocks
    before block learner_at, of each step's f [P, D]:
      v1      w = σ(conv(tgelu(conv(tgelu(conv(tgelu(conv(LN f))))))))   3×3, no bias, K channels          [K, P]
      v1.1    w = softmax over P of fc2(tgelu(fc1(LN f)))                64 hidden units
      tokens  w f                                                                                          [K, D]
    the other blocks on [B, S·K, D] -> norm -> mean -> fc_cls [B, num_classes]

The published accuracy rests on JFT, which is private, and no weights are public. Source: Ryoo et al., TokenLearner:
What Can 8 Learned Tokens Do for Images and Videos?, NeurIPS 2021, and its public code in scenic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.models.argument_checks import check_sizes
from aim_fast.models.record import argument, like
from aim_fast.models.trunk import Trunk
from aim_fast.models.whole.encoder import EPS, Encoder
from aim_fast.models.whole.tubelet_embedding import TubeletEmbedding, Tubelets
from aim_fast.models.whole.whole_model import WholeModel, count_blocks

_HIDDEN = 64  # units of v1.1


@dataclass(frozen=True)
class Learned(Tubelets):
    """Arguments of TokenLearner: ``num_tokens`` a step of time are kept before block ``learner_at``."""

    patch_size: int = like(Trunk, "patch_size", default=10)
    tubelet: int = argument(4, alike=True)
    embed_dim: int = like(Trunk, "embed_dim", default=1024)
    depth: int = like(Trunk, "depth", default=35)
    num_heads: int = like(Trunk, "num_heads", default=16)
    learner_at: int = 18
    num_tokens: int = 16
    learner: Literal["v1", "v1.1"] = "v1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_tubelets(self.tubelet)
        check_sizes(depth=self.depth, num_tokens=self.num_tokens)
        if not 0 <= self.learner_at < self.depth:
            raise ValueError(f"learner_at {self.learner_at} is none of the {self.depth} blocks, from 0")
        if self.img_size < self.patch_size:
            raise ValueError(f"img_size {self.img_size} is less than patch_size {self.patch_size}")


class TokenLearner(WholeModel):
    """Clips in, class logits out, everything trained."""

    record = Learned
    activation = "gelu_tanh"
    patch_size: int
    learner_at: int

    def __init__(self, of: Learned) -> None:
        super().__init__(of)
        self.grid, self.steps = of.img_size // of.patch_size, of.num_frames // of.tubelet
        self.embedding = TubeletEmbedding(of.tubelet, of.patch_size, of.embed_dim)
        self.encoder = Encoder(
            self.steps * self.grid**2,
            of.embed_dim,
            of.num_heads,
            of.rates(of.depth),
            4 * of.embed_dim,
            class_token=False,
            backend=of.backend,
            memory=of.memory,
        )
        make = _ConvolutionLearner if of.learner == "v1" else _SoftmaxLearner
        self.token_learner = make(of.embed_dim, of.num_tokens)
        self.fc_cls = nn.Linear(of.embed_dim, of.num_classes)
        self.reset_parameters()
        self.freeze()

    def reset_parameters(self) -> None:
        if self.fc_cls.weight.is_meta:
            return
        self.embedding.reset_parameters()
        self.encoder.reset_parameters()
        for module in self.token_learner.modules():
            if isinstance(module, (nn.LayerNorm, nn.Linear, nn.Conv2d)):
                module.reset_parameters()
        self.zero_classifier()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        """Where the learner stands leaves no trace: it is taken to be where the model of the table has it."""
        if "encoder.pos_embed" not in tensors or not any(name.startswith("token_learner.") for name in tensors):
            return None
        width, _, tubelet, patch, _ = tensors["embedding.weight"].shape
        last = tensors.get("token_learner.convolutions.3.weight", tensors.get("token_learner.fc2.weight"))
        return {
            "method": "full",
            "embed_dim": width,
            "depth": count_blocks(tensors, "encoder.blocks."),
            "num_heads": max(width // 64, 1),
            "patch_size": patch,
            "tubelet": tubelet,
            "num_tokens": 16 if last is None else len(last),
            "learner": "v1.1" if "token_learner.fc2.weight" in tensors else "v1",
        }

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to their features ``[B, D]``."""
        b, side = self.check_clips(x), self.grid * self.patch_size
        x = x[:, :, :side, :side] if x.dtype == torch.uint8 else x[..., :side, :side]
        tokens = self.embedding(x, self.mean, self.std)
        tokens = self.encoder.embed(tokens.reshape(b, 1, -1, tokens.shape[-1]))
        for number, block in enumerate(self.encoder.blocks):
            if number == self.learner_at:
                frames = tokens.reshape(b * self.steps, self.grid, self.grid, -1)
                tokens = self.token_learner(frames).reshape(b, 1, -1, tokens.shape[-1])
            tokens = block(tokens)
        return self.encoder.norm(tokens)[:, 0].mean(1)


class _ConvolutionLearner(nn.Module):
    """``[B, g, g, D]`` to learned tokens ``[B, K, D]``."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, tokens, 3, padding=1, bias=False) for before in (width, tokens, tokens, tokens)
        )

    def forward(self, frames: Tensor) -> Tensor:
        z = self.norm(frames).movedim(-1, 1)
        for convolution in self.convolutions[:-1]:
            z = F.gelu(convolution(z), approximate="tanh")
        return self.convolutions[-1](z).sigmoid().flatten(2) @ frames.flatten(1, 2)


class _SoftmaxLearner(nn.Module):
    """The same in version 1.1."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, tokens)

    def forward(self, frames: Tensor) -> Tensor:
        f = frames.flatten(1, 2)
        scores = self.fc2(F.gelu(self.fc1(self.norm(f)), approximate="tanh"))  # [B, P, K]
        return scores.transpose(1, 2).softmax(-1) @ f
