"""A video network of another library as a model: clips in, class logits out, its library's own code within.

One class for all of them: what one has that another has not is in its record (:mod:`aim_fast.models.libraries`).
Its tensors have the library's names below ``network.``; published names are the library's, so that it reads what
``convert`` writes. A network with a classifier trains whole; one without is frozen under a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aim_fast.models.head import Head
from aim_fast.models.headed import Headed
from aim_fast.models.libraries.network import Network
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.library import OWN, fit_network
from aim_kernels.choices import Activation


class LibraryModel(Headed):
    """Clips to the logits of a library's network, or to its tokens, which ``head`` reads.

    Raises ValueError for sizes that the library refuses.
    """

    activation: Activation = "gelu"
    frozen_part = "tokens of the last block"

    def __init__(self, of: Network, head: Head | None = None) -> None:
        super().__init__(*(record for record in (of, head) if record))
        self.of, self.reader = of, head
        if head:
            head.make(self)
        self.reset_parameters()
        self.freeze()

    @property
    def feature_dim(self) -> int:  # type: ignore[override]
        return self.config["embed_dim"]

    @property
    def time_slots(self) -> int:
        """T' of the tokens that a head reads."""
        return self.num_frames // self.config["tubelet"]

    @property
    def config(self) -> dict[str, Any]:
        return super().config | ({"head": self.reader.name} if self.reader else {})

    def reset_parameters(self) -> None:
        """Builds the network as its library initialises it, and initialises the head."""
        self.network = self.of.build()
        if path := self.of.classifier:
            outer, _, last = path.rpartition(".")
            linear: Any = self.network.get_submodule(path)
            classifier = _Classifier(linear, self.config["head_dropout"])
            setattr(self.network.get_submodule(outer), last, classifier)
        if self.reader and not next(self.parameters()).is_meta:
            self.reader.reset(self)

    def freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.reader is None or name.startswith(self.reader.own))

    def is_adaptation(self, name: str) -> bool:
        return name.startswith(self.reader.own if self.reader else f"{OWN}{self.of.classifier}.")

    def part_of(self, name: str) -> str:
        return "head" if self.is_adaptation(name) else "trunk"

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """The head has the full rate, whatever ``backbone_lr_factor`` says of the rest."""
        return {"head": 1.0}

    def published_name(self, name: str) -> str:
        return name.removeprefix(OWN)

    def no_weight_decay(self) -> set[str]:
        return {name for name, p in self.named_parameters() if self.of.undecayed(name.removeprefix(OWN), p.ndim)}

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return fit_network(self, file, source)

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to the network's logits ``[B, num_classes]``, or to tokens ``[B, T', N, D]``, or their means over N.

        What :meth:`frozen_features` stored goes through as it is.
        """
        weight = next(self.network.parameters())
        if self.reader and x.is_floating_point() and x.shape[1] == self.time_slots and x.shape[-1] == self.feature_dim:
            return x.to(weight.dtype)
        self.check_clips(x)
        clips = self.normalize(x, weight.dtype) if x.dtype == torch.uint8 else x
        found = self.of.run(self.network, clips if self.of.channels_first else clips.transpose(1, 2))
        return found.mean(2) if self.reader and not self.reader.reads_tokens else found

    def forward_head(self, features: Tensor) -> Tensor:
        return self.reader.logits(self, features) if self.reader else features

    def frozen_features(self, x: Tensor) -> Tensor:
        return self.forward_features(x) if self.reader else super().frozen_features(x)


class _Classifier(nn.Linear):
    """A classifier in the place of a library's own, with its parameters, and dropout before it."""

    def __init__(self, of: nn.Linear, rate: float) -> None:
        super().__init__(of.in_features, of.out_features, device="meta")
        self.weight, self.bias = of.weight, of.bias
        self.dropout = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x))
