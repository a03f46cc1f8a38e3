"""The words that arguments of the operators and modules take. Imports no torch, so that asking is cheap."""

from typing import Literal

Activation = Literal["quick_gelu", "gelu"]  # of a frozen MLP
AdapterPlace = Literal["spatial", "temporal", "joint"]
BlockBackend = Literal["fused", "reference"]
DropPathMode = Literal["position", "clip", "frame"]
Memory = Literal["fast", "balanced", "lean"]  # what is kept for backward
