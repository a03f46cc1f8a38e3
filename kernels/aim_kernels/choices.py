"""The words that arguments of the operators and modules take. Imports no torch, so that asking is cheap."""

from typing import Literal

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]  # of a frozen MLP: GELU's by its sigmoid, exact, by tanh
MLPActivation = Literal[Activation, "swiglu"]  # of one that may be gated by SiLU
# of attention over space
AttentionBackend = Literal["auto", "cpu", "reference", "triton", "sdpa", "cudnn", "xformers", "flash3"]
AdapterPlace = Literal["spatial", "temporal", "joint"]
BlockBackend = Literal["fused", "reference"]
DropPathMode = Literal["position", "clip", "frame"]
Memory = Literal["fast", "balanced", "lean"]  # what is kept for backward
