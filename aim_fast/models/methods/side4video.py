"""Side4Video: a narrow spatial-temporal network beside a frozen trunk, into which every block's output is mixed.

s [B, T, P, E], E channels on the P patches of each frame; z_i the trunk's block i, of which nothing is propagated back:

    s = BN(conv3d(video)),  kernel (3, p, p), stride (1, p, p)
    d = linear_i(ln_i(z_i));  s = ½ s + ½ d of patches                                  for each block i of the trunk
    s = s + conv1(dwconv_t(conv1(BN s)))                                   depthwise over 3 frames
    s = s + attention(queries ln(s + p), keys and values ln(c and s + p))  p [P, E], one for all layers
    s = s + fc2(gelu(fc1(BN s)))

c is d of the class token, half of its channels from the frame after and half from the one before, zeros at the ends; on
a trunk without a class token the mean of d over the patches stands for it, which is ours, as every trunk but CLIP is.
The feature is the mean of BN(s) over frames and patches. Batch norms see all clips of one forward, in all processes.
Source: Yao et al., Side4Video: Spatial-Temporal Side Network for Memory-Efficient Image-to-Video Transfer Learning,
2023.
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
class Side4Video(Beside):
    """A network beside all blocks; ``memory`` "fast" and "balanced" keep the input of each of its sub-blocks, "lean"
    that of each layer.

    Args:
        side_width: E, a multiple of 64, the channels of a head: 320 on B/16, 512 on L/14.
    """

    heading: ClassVar[str] = "Side4Video"
    name: ClassVar[str] = "side4video"
    line: ClassVar[str] = "a narrow network of convolution and attention beside all blocks of the frozen trunk (2023)"
    decays_all: ClassVar[bool] = True
    reads: ClassVar[str] = "side.transformer.side_linears.0.weight"
    renamed: ClassVar[Mapping[str, str]] = {
        "visual.side_": "side.side_",
        "visual.transformer.side_": "side.transformer.side_",
        "fc.": "fc_cls.",
        "visual.": "",
    }

    side_width: int = argument(320, "Side4Video: channels of its network, a multiple of 64", alike=True, ge=64)

    def network(self, model: Any) -> Any:
        from aim_fast.models.methods.side4video_network import Network

        return Network(model, self.side_width)

    def lowest(self, depth: int) -> int:
        return 0

    def published_name(self, name: str) -> str | None:
        if name.startswith("fc_cls."):
            return name.replace("fc_cls.", "fc.", 1)
        return f"visual.{name.removeprefix('side.')}"

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any("side_pre_bn3d." in name for name in names)

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        widths = [len(tensor) for (_, name), tensor in tensors.items() if name.endswith("side_pre_bn3d.weight")]
        return {"side_width": widths[0]} if widths else {}
