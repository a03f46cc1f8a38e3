"""The loss of a step that may still be under way on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aim_fast.errors import TrainingError
from aim_fast.training.arriving import Arriving


@dataclass
class PendingLoss:
    """A step's loss, and the files that it came from."""

    loss: Arriving
    files: list[str]
    step: int

    def value(self) -> float:
        """The loss; raises TrainingError when it is not finite."""
        loss = self.loss.item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of step {self.step} is {loss}: train again in another --output "
                f"with a lower --lr or --precision fp32; files of that step: {', '.join(self.files)}"
            )
        return loss
