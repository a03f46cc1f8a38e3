"""ST-Adapter: bottlenecks with a depthwise convolution over time, before the sub-blocks of a frozen block.

    A(x) = x + fc2(conv(fc1 x))        fc1 D → C, depthwise convolution over T (and space), fc2 C → D, no activation

on patches alone, class token and registers pass; before the norm of the MLP, or before those of attention and MLP:

    x = attended(A x);  x = expanded(A x)

The frames are averaged before the last norm, which stays frozen, and there is no temporal embedding. Where the class
token alone is read after the last block, its adapter before the MLP changes nothing that is read: it is not run and has
gradients of zero, as in the published code (0.59 M of B/16's 7.1 M). On trunks other than CLIP the form is ours.
Source: Pan et al., ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from aim_fast.models.adapting import Adapting
from aim_fast.models.choices import STPlace
from aim_fast.models.method import Method
from aim_fast.models.methods.adapter_layers import resolve_layers
from aim_fast.models.record import argument, like

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"attention": "adapter_pre_attn", "mlp": "adapter_pre_mlp"}


@dataclass(frozen=True)
class STAdapter(Method):
    """Convolutions over time in bottlenecks; ``memory`` of a block: "fast" keeps all that backward reads, "balanced" of
    an adapter its input alone, "lean" the block's input alone.

    Args:
        adapter_width: hidden channels C, 384 as published on B/16 and L/14.
        adapter_before: "mlp" ("12×384", Kinetics), or "attention" and "mlp" ("24×384", Something-Something v2).
        adapter_kernel: frames, rows and columns of the convolution, odd each.
        adapter_layers: which blocks have them, as AIM's.
    """

    heading: ClassVar[str] = "ST-Adapter"
    name: ClassVar[str] = "st_adapter"
    line: ClassVar[str] = "convolutions over time in bottlenecks before attention and MLP (NeurIPS 2022)"
    mean_first: ClassVar[bool] = True
    classifier_std: ClassVar[float | None] = 0.02
    renamed: ClassVar[Mapping[str, str]] = {"fc.": "fc_cls."}

    adapter_width: int = argument(384, "ST-Adapter: hidden channels of a bottleneck", alike=True, ge=1)
    adapter_before: Collection[STPlace] = argument(
        ("mlp",), "ST-Adapter: bottlenecks before mlp (Kinetics) or attention,mlp (SSv2)", alike=True
    )
    adapter_kernel: Sequence[int] = argument(
        (3, 1, 1), "ST-Adapter: frames, rows and columns of its convolution, odd each, such as 3,1,1", alike=True
    )
    adapter_layers: str | Sequence[int | str] = like(Adapting, "adapter_layers")

    def fitted(self, depth: int) -> Self:
        places, kernel = tuple(self.adapter_before), tuple(self.adapter_kernel)
        if not places or len({*places}) < len(places) or not {*places} <= {*_NAMES}:
            known = " and ".join(get_args(STPlace))
            raise ValueError(f"adapter_before takes {known}, one of them or both, not {', '.join(places) or 'none'}")
        if len(kernel) != 3 or any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(f"adapter_kernel takes three odd numbers, frames, rows and columns, not {kernel}")
        layers = resolve_layers(self.adapter_layers, depth)
        if not layers:
            raise ValueError("adapter_layers names no block: name some, or take method probe")
        places = tuple(place for place in _NAMES if place in places)
        return replace(self, adapter_before=places, adapter_kernel=kernel, adapter_layers=layers)

    def extend(self, block: Any, number: int, depth: int) -> None:
        from aim_fast.models.methods.st_bottleneck import Bottleneck

        for place in self.adapter_before if number in self.adapter_layers else ():
            block.add_module(_NAMES[place], Bottleneck(block.dim, self.adapter_width, self.adapter_kernel))

    def reset(self, block: Any) -> None:
        for name in _NAMES.values():
            if (adapter := getattr(block, name, None)) is not None:
                adapter.reset_parameters()

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        from aim_fast.models.methods.st_bottleneck import run_convolved

        return block.remembering(run_convolved, x, cls_only)

    def trains(self, name: str, last_norm: str) -> bool:
        return self.is_own(name)

    def lowest(self, depth: int) -> int:
        return min(int(number) for number in self.adapter_layers)

    def is_own(self, name: str) -> bool:
        return ".adapter_pre_" in name

    def undecayed(self, name: str) -> bool:
        return name.endswith(".bias")

    def published_name(self, name: str) -> str:
        return name.replace("fc_cls.", "fc.", 1) if name.startswith("fc_cls.") else name

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        return any(".adapter_pre_" in name for name in names)

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        places = [place for place, own in _NAMES.items() if any(name.startswith(f"{own}.") for _, name in tensors)]
        kernels = [tensor for (_, name), tensor in tensors.items() if name.endswith(".conv.weight")]
        if not places or not kernels:
            return {}
        layers = sorted({number for number, name in tensors if name.startswith(tuple(_NAMES.values()))})
        found = {"adapter_width": len(kernels[0]), "adapter_kernel": list(kernels[0].shape[2:])}
        return found | {"adapter_before": places, "adapter_layers": layers}
