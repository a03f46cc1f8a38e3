"""aim_kernels: the operators of AIM, and the modules made of them, for any model.

``AIMBlock``, ``AIMViTBlock``, ``AIMSwinBlock``, ``Adapter`` and ``TemporalAttention`` are drop-in ``torch.nn`` modules
with the published parameter names; ``wide_mlp`` is a frozen MLP with a parallel adapter as one function; the
``*_adaptation_reference`` functions are the same mathematics on explicit tensors, in plain torch.

Names are imported when first used, so that ``aim_kernels.choices`` can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_kernels.adaptation import (
        AdapterWeights,
        joint_adaptation_reference,
        spatial_adaptation_reference,
        temporal_adaptation_reference,
    )
    from aim_kernels.modules import Adapter, AIMBlock, DropPath, TemporalAttention
    from aim_kernels.precision import hold_trunk
    from aim_kernels.swin_block import AIMSwinBlock
    from aim_kernels.vit_block import AIMViTBlock
    from aim_kernels.widened_mlp import wide_mlp

_REFERENCES = (f"{part}_adaptation_reference" for part in ("joint", "spatial", "temporal"))
_HOME = {
    **dict.fromkeys(("AdapterWeights", *_REFERENCES), "adaptation"),
    **dict.fromkeys(("AIMBlock", "Adapter", "DropPath", "TemporalAttention"), "modules"),
    "AIMSwinBlock": "swin_block",
    "AIMViTBlock": "vit_block",
    "hold_trunk": "precision",
    "wide_mlp": "widened_mlp",
}

__all__ = [
    "AIMBlock",
    "AIMSwinBlock",
    "AIMViTBlock",
    "Adapter",
    "AdapterWeights",
    "DropPath",
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
