"""ZeroI2V: linear adapters around the products of a frozen block, keys and values of some channels from other frames.

    A(z) = z + s·(W2 (W1 z + b1) + b2)                                   D → D/4 → D, no activation
    q, k, v = Wqkv T_Adapter_in(n1(x)) + b;  k, v shifted over time
    x = x + S_Adapter(attention within the frame of q, k, v)
    x = x + MLP_Adapter_out(mlp(MLP_Adapter(n2(x))))

Shifted are channels in order, of all tokens: the first D / ``shift_div`` of k and of v are of the frame before, the
next of the frame after, and with ``shift_reach`` 2 two more groups of two frames before and after; frames at the ends
keep their own. Nothing of it is nonlinear, so after training the adapters merge into the four frozen products,

    W' = W (I + s W2 W1),   b' = W s (W2 b1 + b2) + b   before a product, mirrored after it,

and what is left is the frozen trunk with the shift (``adapters_merged``). Source: Li et al., ZeroI2V: Zero-Cost
Adaptation of Pre-trained Transformers from Image to Video, ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from aim_fast.models.adapting import Adapting
from aim_fast.models.method import Method
from aim_fast.models.record import argument, like

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ZeroI2V(Method):
    """Shifted keys and values and linear adapters; ``memory`` of a block: "fast" keeps all that backward reads,
    "balanced" all but the MLP's hidden state, "lean" its input alone.

    Args:
        mlp_adapters: 2 (published, there ``num_tadapter``) has ``MLP_Adapter_out`` as well, 1 has not.
        adapter_scale: s, 0.5 on Kinetics, 1 on Something-Something v2. adapter_ratio: as AIM's.
        zero_dropout: between W1 and W2: 0.1, on Something-Something v2 0.
        shift_div: channels of a group, D / shift_div: one head of B/16.
        shift_reach: 1 (Kinetics), or 2 for the frames two before and after too (Something-Something v2).
        adapters_merged: whether there are no adapters: what ``aim-fast convert --merge`` makes.
    """

    heading: ClassVar[str] = "ZeroI2V"
    name: ClassVar[str] = "zeroi2v"
    line: ClassVar[str] = "linear adapters that merge into the trunk, keys and values shifted over time (ECCV 2024)"
    over_time: ClassVar[bool] = True
    merges: ClassVar[Mapping[str, Any]] = {"adapters_merged": True}

    mlp_adapters: int = argument(
        2, "ZeroI2V: linear adapters around the MLP: 2 (published), or 1 before it alone", alike=True, ge=1, le=2
    )
    adapter_scale: float = like(Adapting, "adapter_scale")
    adapter_ratio: float = like(Adapting, "adapter_ratio")
    zero_dropout: float = argument(
        0.1, "ZeroI2V: dropout inside of its adapters", structure=False, alike=True, ge=0, lt=1
    )
    shift_div: int = argument(
        12, "ZeroI2V: the share of channels that one shift moves is one of this many", told=False, alike=True, ge=2
    )
    shift_reach: int = argument(
        1,
        "ZeroI2V: frames that keys and values are shifted by at most: 1 (Kinetics) or 2 (SSv2)",
        told=False,
        alike=True,
        ge=1,
        le=2,
    )
    adapters_merged: bool = argument(False, structure=False, alike=True)

    def fitted(self, depth: int) -> Self:
        if self.shift_div < 2 * self.shift_reach:
            raise ValueError(f"shift_div {self.shift_div} leaves no room for {2 * self.shift_reach} groups of channels")
        return self

    def extend(self, block: Any, number: int, depth: int) -> None:
        from aim_fast.models.methods.linear_adapters import LinearAdapter

        if block.dim < self.shift_div:
            raise ValueError(f"shift_div {self.shift_div} of width {block.dim} leaves no channel to shift")
        for name in () if self.adapters_merged else self.adapter_names:
            setattr(block, name, LinearAdapter(block.dim, self.adapter_ratio, self.adapter_scale, self.zero_dropout))

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Of a block's adapters."""
        usual = ("MLP_Adapter", "S_Adapter", "T_Adapter_in")
        return (*usual, "MLP_Adapter_out") if self.mlp_adapters == 2 else usual

    def reset(self, block: Any) -> None:
        for name in self.adapter_names:
            if (adapter := getattr(block, name, None)) is not None:
                adapter.reset_parameters()

    def run(self, block: Any, x: Tensor, cls_only: bool) -> Tensor:
        from aim_fast.models.methods.linear_adapters import run_shifted

        return run_shifted(block, x, cls_only)

    def trains(self, name: str, last_norm: str) -> bool:
        return self.is_own(name) or name.startswith(last_norm)

    def lowest(self, depth: int) -> int:
        return 0

    def undecayed(self, name: str) -> bool:
        return name == "temporal_embedding"

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        kinds = {
            name.split(".")[-3] for name in names if name.endswith("Adapter_in.D_fc1.weight") or "T_Adapter." in name
        }
        return kinds == {"T_Adapter_in"}  # AIM has it beside its T_Adapter alone

    @classmethod
    def told(cls, tensors: Mapping[tuple[int, str], Tensor]) -> dict[str, Any]:
        kinds = {name: tensor for (_, name), tensor in tensors.items() if name.endswith("_in.D_fc1.weight")}
        if not kinds:
            return {}
        hidden, width = next(iter(kinds.values())).shape
        out = any(name.startswith("MLP_Adapter_out.") for _, name in tensors)
        return {"mlp_adapters": 2 if out else 1, "adapter_ratio": hidden / width}

    def merge(self, block: Any) -> list[tuple[Tensor, Tensor]]:
        from aim_fast.models.methods.linear_adapters import merge_linear

        return merge_linear(block)
