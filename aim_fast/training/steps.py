"""The arithmetic of a run's steps: which clips belong to which step, and the seeds of its random numbers.

An epoch has ``clips`` clips. A step takes ``accumulate`` batches of ``batch_size`` clips in each of ``world``
processes; the last step of an epoch takes what is left. The clips of a step do not depend on how it is split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from aim_fast.errors import UsageError
from aim_fast.training.recipe import Recipe


@dataclass(frozen=True)
class Steps:
    clips: int
    batch_size: int
    world: int
    accumulate: int

    @classmethod
    def of(cls, recipe: Recipe, clips: int, world: int) -> Steps:
        """From ``accumulate`` where the recipe has it, else from ``total_batch_size``, else one batch a step."""
        asked = recipe.optimisation
        accumulate, at_once = asked.accumulate, asked.batch_size * world
        if accumulate is None:
            accumulate, rest = divmod(asked.total_batch_size or at_once, at_once)
            if accumulate and rest:
                raise UsageError(
                    f"total_batch_size {asked.total_batch_size} is no multiple of {asked.batch_size} clips x {world} "
                    "processes: change --batch-size, or give --accumulate"
                )
        return cls(clips, asked.batch_size, world, max(accumulate, 1))

    def larger_than_asked(self, recipe: Recipe) -> str:
        """What is said where one batch of all processes is more than the recipe's step; empty where it is not."""
        asked = recipe.optimisation
        if asked.accumulate or asked.total_batch_size is None or self.clips_per_step <= asked.total_batch_size:
            return ""
        return (
            f"a step is larger than total_batch_size {asked.total_batch_size}: {asked.batch_size} clips x {self.world} "
            f"processes; the learning rate stays {asked.lr:g}"
        )

    @property
    def clips_per_step(self) -> int:
        return self.batch_size * self.world * self.accumulate

    @property
    def per_epoch(self) -> int:
        return -(-self.clips // self.clips_per_step)

    def clips_of(self, step: int) -> int:
        """Clips that step ``step`` (from 0, over the whole run) trains on, over all processes."""
        before = step % self.per_epoch * self.clips_per_step
        return min(self.clips_per_step, self.clips - before)

    def batches_of(self, step: int) -> int:
        """Batches that each process takes in step ``step``."""
        return -(-self.clips_of(step) // (self.batch_size * self.world))

    def first_batch(self, step: int) -> int:
        """Number, in its epoch, of the first batch of step ``step``."""
        return step % self.per_epoch * self.accumulate


def step_seed(*parts: int) -> int:
    """A 63-bit seed that is a function of its arguments, such as (seed, step, batch, rank)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
