"""X-CLIP: a message token of every frame, which has attended to those of the other frames, within a block that trains.

    m_t = message_fc(x_t,CLS);  m = m + message_attn(message_ln m) over T                      [B, T, D]
    x = x + attn(ln_1 (x ; m)) over the N + 1 tokens of a frame, m's own output left out;  x = x + mlp(ln_2 x)

Everything of the image tower trains. What reads it is :mod:`aim_fast.models.heads.x_clip`. It needs a class token; on
trunks other than CLIP's the form is ours. Its authors trained and tested with ImageNet's mean and deviation of pixels
(VideoX, ``X-CLIP/datasets/build.py``), though they began from CLIP's weights: their files have those here too. Source:
Ni et al., Expanding Language-Image Pretrained Models for General Video Recognition, ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.method import Method
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class XCLIP(Method):
    """Messages between frames; ``memory`` of a block: "fast" keeps all that backward reads, "balanced" all but the
    MLP's hidden state, "lean" its input alone."""

    heading: ClassVar[str] = "X-CLIP"
    name: ClassVar[str] = "x_clip"
    line: ClassVar[str] = "a CLIP trained whole, frames linked by message tokens, class names by prompts (ECCV 2022)"
    pixels: ClassVar[tuple[Sequence[float], Sequence[float]] | None] = (IMAGENET_MEAN, IMAGENET_STD)
    lr_factors: ClassVar[Mapping[str, float]] = {"*.message_*": 10.0, "mit.*": 10.0, "prompts_*": 10.0}

    def extend(self, block: Any, number: int, depth: int) -> None:
        from torch import nn

        from aim_kernels.modules import TemporalAttention

        if not block.prefix:
            raise ValueError("method x_clip sends messages from class tokens, and this trunk has none")
        block.message_fc = nn.Linear(block.dim, block.dim)
        block.message_ln = nn.LayerNorm(block.dim)
        block.message_attn = TemporalAttention(block.dim, block.num_heads)

    def reset(self, block: Any) -> None:
        from torch import nn

        block.message_fc.reset_parameters()
        block.message_ln.reset_parameters()
        nn.init.xavier_uniform_(block.message_attn.in_proj_weight)
        nn.init.zeros_(block.message_attn.in_proj_bias)
        block.message_attn.out_proj.reset_parameters()
        nn.init.zeros_(block.message_attn.out_proj.bias)

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        from aim_fast.models.methods.messages import run_with_messages

        return block.remembering(run_with_messages, x, cls_only)

    def trains(self, name: str, last_norm: str) -> bool:
        return True

    def lowest(self, depth: int) -> int:
        return 0

    def is_own(self, name: str) -> bool:
        return ".message_" in name

    def published_name(self, name: str) -> str:
        if name.startswith(("mit.", "prompts_")):
            return name
        return name.removeprefix("text.") if name.startswith("text.") else f"visual.{name}"

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any(".message_fc." in name for name in names)
