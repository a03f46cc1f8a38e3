"""The words that models' arguments take, beside those of ``aim_kernels.choices``. Imports no torch."""

from typing import Literal

Head = Literal["linear", "text"]  # a classifier, or CLIP's own head over class names
TemporalPlace = Literal["lowest", "stem", "frozen"]  # where the temporal embedding is
Tune = Literal["adapters", "all"]  # what trains: what adaptation added, or everything
