"""What training does to a clip beside choosing its frames: which parts are on, and their ranges."""

from __future__ import annotations

from dataclasses import dataclass

from aim_fast.data.plan.randaugment import OPERATIONS
from aim_fast.errors import UsageError

__all__ = ["Augmentation"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What training does to a clip, one draw for all its frames. Each part is off at the value in brackets.

    Attributes:
        random_resized_crop: [False] a box of random area and aspect; else the centre square of the short side.
        short_sides: [()] range of the short side, in pixels, of which a square of 224 is taken anywhere in the frame,
            in place of the random box.
        crop_scales: [()] shares of the short side that height and width of the box are drawn from, neighbours of the
            list at most, at one of 13 places: TSN's multi-scale crop, in place of the random box.
        scale: range of the box's area, as a fraction of the frame's.
        ratio: range of the box's aspect, width / height, drawn uniformly in its logarithm.
        flip: [0] probability of a horizontal flip. Not for classes that tell left from right, unless with:
        flip_labels: [False] a mirrored clip has the class whose name says right for left and left for right; where
            there is none of that name the clip is not mirrored.
        randaug: [None] (n, m): n operations of magnitude m (see ``aim_fast.data.plan.randaugment``).
        policy: [""] an augmentation of timm's, such as ``rand-m9-mstd0.5-inc1`` (``aim_fast.data.pixels.timm_policy``).
        pre_crop: [0] the box loses up to this many of 224 pixels on each side, each drawn apart, as imgaug's
            RandAugment does before its operations.
        color_jitter: [0] standard deviation of the weights of PCA lighting noise (Krizhevsky et al., 2012).
        jitter: [()] strengths of brightness, contrast, saturation and hue (``aim_fast.data.plan.jitter``).
        jitter_prob: probability of that jitter. grayscale: [0] probability of a clip without colour.
        erasing: [0] probability that a box is filled with ``fill`` (Zhong et al., 2020).
        erasing_scale: range of that box's area. erasing_ratio: range of its aspect.
        fill: RGB that erased pixels take, 0 to 255: the rounded mean of the model's normalisation, because frames
            stay uint8 and 0 after normalisation is the mean before it.
        repeats: [1] samples of a clip that a step takes, of the same frames, each augmented apart and weighted so that
            the clip counts once (repeated augmentation).
        none: [False] nothing is drawn at random: a training clip is the sampling's first evaluation view.
    """

    random_resized_crop: bool = True
    short_sides: tuple[int, ...] = ()
    crop_scales: tuple[float, ...] = ()
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    flip_labels: bool = False
    randaug: tuple[int, float] | None = None
    policy: str = ""
    pre_crop: float = 0.0
    color_jitter: float = 0.0
    jitter: tuple[float, ...] = ()
    jitter_prob: float = 1.0
    grayscale: float = 0.0
    erasing: float = 0.0
    erasing_scale: tuple[float, float] = (0.02, 1 / 3)
    erasing_ratio: tuple[float, float] = (0.3, 3.33)
    fill: tuple[int, int, int] = (123, 117, 104)
    repeats: int = 1
    none: bool = False

    @property
    def layers(self) -> int:
        """Operations that a clip's plan holds: RandAugment's, those of colour jitter, and grey."""
        return (self.randaug[0] if self.randaug else 0) + 4 * bool(self.jitter) + bool(self.grayscale)

    def __post_init__(self) -> None:
        for name in ("flip", "erasing", "jitter_prob", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation {name} is {getattr(self, name)}: a probability is between 0 and 1")
        for name in ("scale", "ratio", "erasing_scale", "erasing_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UsageError(f"augmentation {name} is ({low}, {high}): give a range with 0 < low <= high")
        if self.short_sides and not (len(self.short_sides) == 2 and 224 <= self.short_sides[0] <= self.short_sides[1]):
            raise UsageError(f"augmentation short_sides is {self.short_sides}: give a range from 224 on, or none")
        if self.crop_scales and (self.short_sides or not all(0 < scale <= 1 for scale in self.crop_scales)):
            raise UsageError(f"augmentation crop_scales is {self.crop_scales}: give shares up to 1, and no short_sides")
        if self.jitter and not (len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5):
            raise UsageError(
                f"augmentation jitter is {self.jitter}: give brightness, contrast, saturation and hue, hue to 0.5"
            )
        if self.repeats < 1:
            raise UsageError(f"augmentation repeats is {self.repeats}: give at least 1")
        if self.randaug is not None and not (1 <= self.randaug[0] <= len(OPERATIONS) and 0 <= self.randaug[1] <= 30):
            raise UsageError(f"randaug is {self.randaug}: give n of 1 to {len(OPERATIONS)} and m of 0 to 30")
        if self.policy and self.randaug is not None:
            raise UsageError(f"augmentation has both randaug {self.randaug} and policy {self.policy}: give one of them")
