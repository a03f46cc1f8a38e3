"""Which of a training clip's uniform numbers decides what.

A clip draws one number a frame and then ``Draws.count`` more, all of them whatever is switched on: so switching one
augmentation on or off leaves the draws of the others, and with them every clip of a run, as they were. A span that
moves or grows changes every run's clips; a new one goes behind the last.
"""

from __future__ import annotations

__all__ = ["Draws"]


class Draws:
    """Places among the numbers behind those of the frames; 46 and 47 are free."""

    box = slice(0, 40)  # ten tries of area, aspect, top and left; of a multi-scale crop size and place
    shrink = slice(40, 44)  # what the box loses at top, left, bottom and right
    flip = 44
    erase_chance = 45
    randaug = slice(48, 120)  # an order of the 18 operations, and three to each of up to 18 chosen ones
    light = slice(120, 124)  # two pairs for Box and Muller
    erase = slice(124, 164)  # ten tries of area, aspect, top and left
    policy = 164
    jitter = slice(165, 174)  # whether, an order of the four changes, and how much of each
    grayscale = 174
    count = 175
