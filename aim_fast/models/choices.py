"""The words that models' arguments take, beside those of ``aim_kernels.choices``. Imports no torch."""

from typing import Literal

Pool = Literal["token", "avg"]  # a frame's feature: the class token, or the mean over its patches
TemporalPlace = Literal["lowest", "stem", "frozen"]  # where the temporal embedding is
Tune = Literal["adapters", "all"]  # what trains: what adaptation added, or everything
STPlace = Literal["attention", "mlp"]  # before which sub-blocks ST-Adapter puts its bottlenecks
