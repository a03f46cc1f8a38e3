"""The words that models' arguments take, beside those of ``aim_kernels.choices``. Imports no torch."""

from typing import Literal

Method = Literal["aim", "probe", "full", "timesformer", "promptclip"]  # what is put on a trunk
Head = Literal["linear", "text", "attentive"]  # a classifier, CLIP's own over class names, or one over all tokens
TemporalPlace = Literal["lowest", "stem", "frozen"]  # where the temporal embedding is
Tune = Literal["adapters", "all"]  # what trains: what adaptation added, or everything
