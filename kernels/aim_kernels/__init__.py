"""aim_kernels: the operators of AIM, and the modules made of them, for any model.

``AIMBlock``, ``AIMViTBlock``, ``AIMSwinBlock``, ``Adapter`` and ``TemporalAttention`` are drop-in ``torch.nn`` modules
with the published parameter names; ``wide_mlp`` is a frozen MLP with a parallel adapter as one function; the
``*_adaptation_reference`` functions are the same mathematics on explicit tensors, in plain torch.
"""

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
from aim_kernels.wide_mlp import wide_mlp

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
