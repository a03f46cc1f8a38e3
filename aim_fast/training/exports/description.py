"""What an exported file says of itself: JSON under the name ``aim_fast``, in the metadata that its format has.

    model, options      of ``create_model``, for figures of the structure
    classes             names, in the order of the logits
    format, precision   pt2, onnx or aoti; float32 or float16, of the products: logits are float32 in both
    input               clips uint8 [batch, T, S, S, 3], RGB; ``mean`` and ``std`` (0 to 255) are applied inside
    sampling            how frames and crops are taken from a video, see below

A clip of a video of n frames, without an ``interval``: edges e_i = round(i (n - 1) / T), halves to even, and frame i is
(e_i + e_{i+1}) // 2. With one: start (n - T interval + 1) // 2, or 0 where the video is shorter, then every
``interval``-th frame, modulo n. Each frame is resized so that its short side is ``short_side``, and its centre of
S × S cut out. Of several ``clips`` and ``crops`` the softmax of the logits is averaged.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from aim_fast.errors import CheckpointError
from aim_fast.models.video_model import VideoModel
from aim_fast.training.clips import sampling_of
from aim_fast.training.trained_model import TrainedModel

KEY = "aim_fast"
_VERSION = 1


@dataclass(frozen=True)
class Description:
    """See the module; ``input`` has ``shape`` with a string for the batch, ``mean`` and ``std``."""

    model: str
    options: dict[str, Any]
    classes: list[str]
    format: str
    precision: str
    input: dict[str, Any]
    sampling: dict[str, Any]
    version: int = _VERSION

    @property
    def frames(self) -> int:
        return self.input["shape"][1]

    @property
    def side(self) -> int:
        return self.input["shape"][2]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def describe(trained: TrainedModel, format: str, precision: str) -> Description:
    """The description of a run's model in a format."""
    model: VideoModel = trained.model
    sampling, side = sampling_of(trained.recipe), model.img_size
    return Description(
        model=trained.identity.model,
        options=trained.identity.options,
        classes=trained.classes,
        format=format,
        precision=precision,
        input={
            "name": "clips",
            "dtype": "uint8",
            "shape": ["batch", model.num_frames, side, side, 3],
            "channels": "RGB",
            "mean": [float(value) for value in model.mean],
            "std": [float(value) for value in model.std],
            "normalised": "inside",
        },
        sampling={
            "frames": model.num_frames,
            "interval": sampling.interval,
            "clips": sampling.clips,
            "crops": sampling.crops,
            "ends": sampling.ends,
            "short_side": sampling.short_side or side,
        },
    )


def read_description(text: str, path: object) -> Description:
    """The description that a file has. Raises CheckpointError for one that is cut short or of a newer version."""
    try:
        content = json.loads(text)
        version = content["version"]
        if version <= _VERSION:
            found = Description(**content)
            if len(found.input["shape"]) == 5 and found.sampling["frames"] == found.frames and found.side > 0:
                return found
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{path}: what it says of itself is damaged; export the run again") from None
    if version > _VERSION:
        raise CheckpointError(f"{path}: was exported by a newer aim-fast; update this one, or export the run again")
    raise CheckpointError(f"{path}: what it says of itself is damaged; export the run again")
