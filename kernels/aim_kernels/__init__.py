"""aim_kernels: the operators of AIM, and the modules made of them, for any model.

``AIMBlock``, ``AIMViTBlock``, ``AIMSwinBlock``, ``Adapter`` and ``TemporalAttention`` are drop-in ``torch.nn`` modules
with the published parameter names; ``wide_mlp`` is a frozen MLP with a parallel adapter as one function; the
``*_adaptation_reference`` functions are the same mathematics in plain torch, on weights as records.

Names are imported when first used, so that ``aim_kernels.choices`` can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_kernels.adaptation import (
        joint_adaptation_reference,
        spatial_adaptation_reference,
        temporal_adaptation_reference,
    )
    from aim_kernels.drop_path import DropPath
    from aim_kernels.frozen_trunk import hold_trunk
    from aim_kernels.modules import Adapter, AIMBlock, TemporalAttention
    from aim_kernels.swin_block import AIMSwinBlock
    from aim_kernels.vit_block import AIMViTBlock
    from aim_kernels.weights import AdapterWeights, AttentionWeights, MLPWeights, NormWeights
    from aim_kernels.widened_mlp import wide_mlp

_REFERENCES = (f"{part}_adaptation_reference" for part in ("joint", "spatial", "temporal"))
_HOME = {
    **dict.fromkeys(_REFERENCES, "adaptation"),
    **dict.fromkeys(("AdapterWeights", "AttentionWeights", "MLPWeights", "NormWeights"), "weights"),
    **dict.fromkeys(("AIMBlock", "Adapter", "TemporalAttention"), "modules"),
    "AIMSwinBlock": "swin_block",
    "AIMViTBlock": "vit_block",
    "DropPath": "drop_path",
    "hold_trunk": "frozen_trunk",
    "wide_mlp": "widened_mlp",
}

__all__ = [
    "AIMBlock",
    "AIMSwinBlock",
    "AIMViTBlock",
    "Adapter",
    "AdapterWeights",
    "AttentionWeights",
    "DropPath",
    "MLPWeights",
    "NormWeights",
    "TemporalAttention",
    "hold_trunk",
    "joint_adaptation_reference",
    "spatial_adaptation_reference",
    "temporal_adaptation_reference",
    "wide_mlp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
