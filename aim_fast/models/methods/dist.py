"""DiST: a stream over time from the pixels of every frame, beside a frozen trunk that sees every second one.

A clip has 2T frames, the trunk sees the T of them at even places; t [B, 2T, P, C] is the stream, z_i the output of the
trunk's block i, J the width of the integration, m_0's r = 0:

    t = conv3d(video),  kernel (5, p, p), stride (1, p, p)
    t = quick_gelu(t + conv_{1,3,3}(quick_gelu(conv_{3,1,1}(ln t))))                    for each block i
    m = linear(z_i) + r
    m, t = m + conv(t; kernel and stride (2, 1, 1)) with a learned class token,  t + linear(m of patches) twice in time
    r = ffn(ln m) + tffn(ln m)                       J → J → J, and J → J/4, over 3 frames, → J

y = r + m is read by four layers: a query s a frame from the frame's tokens, then a query u a clip from s + p; each

    s = s + attention(ln s; ln y),  s = s + mlp(ln s);    u = u + attention(ln u; ln(s + p)),  u = u + mlp(ln u)

and the feature is ln(u + linear(mean over frames of the trunk's class tokens)), under a head of class names · proj
[J, De], which is the joint space of both towers. What goes up from the last block is read by nothing: it is not run and
has gradients of zero. On trunks without a class token the mean over patches stands for it, and registers are left out;
both are ours, as other heads are.
Source: Qing et al., Disentangling Spatial and Temporal Learning for Efficient Image-to-Video Transfer Learning,
ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.methods.beside import Beside
from aim_fast.models.record import argument

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiST(Beside):
    """An encoder over time and an integration beside all blocks; ``--frames`` counts all 2T. ``memory`` "fast" and
    "balanced" keep the inputs of their sub-blocks, "lean" those of a layer.

    Args:
        dist_width: J, a multiple of 64, the channels of a head.
        dist_temporal: C.
        dist_pooling: layers that read what is integrated.
    """

    heading: ClassVar[str] = "DiST"
    name: ClassVar[str] = "dist"
    line: ClassVar[str] = "a stream over time beside the frozen trunk, which sees every second frame (ICCV 2023)"
    frame_step: ClassVar[int] = 2
    reads: ClassVar[str] = "side.input_linears.0.weight"
    renamed: ClassVar[Mapping[str, str]] = {"dist_net.": "side."}

    dist_width: int = argument(384, "DiST: channels of its integration, a multiple of 64", alike=True, ge=64)
    dist_temporal: int = argument(96, "DiST: channels of its stream over time", alike=True, ge=1)
    dist_pooling: int = argument(4, "DiST: layers that read what is integrated", alike=True, ge=1)

    def network(self, model: Any) -> Any:
        from aim_fast.models.methods.dist_network import Network

        return Network(model, self.dist_width, self.dist_temporal, self.dist_pooling)

    def lowest(self, depth: int) -> int:
        return 0

    def undecayed(self, name: str) -> bool:
        return name.endswith(("bias", "positional_embedding", "cls_token"))

    def published_name(self, name: str) -> str | None:
        if name.startswith("text."):
            return name.removeprefix("text.")
        return f"dist_net.{name.removeprefix('side.')}" if name.startswith("side.") else f"visual.{name}"

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any("adapooling_nets." in name for name in names)

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        side = {name: tensor for (_, name), tensor in tensors.items()}
        if "side.temporal_stem.weight" not in side:
            return {}
        pooling = [name for name in side if name.endswith(".positional_embedding") and ".adapooling_nets." in name]
        frames = {"num_frames": 2 * side[pooling[0]].shape[1]} if pooling else {}
        widths = {
            "dist_width": len(side["side.ln_post.weight"]),
            "dist_temporal": len(side["side.temporal_stem.weight"]),
        }
        return widths | {"dist_pooling": len(pooling)} | frames
