"""The most probable classes of a camera or an address while it is watched: a run's model on sliding windows."""

from __future__ import annotations

from collections.abc import Iterator

from aim_fast.data.live import LiveWindows
from aim_fast.training.clips import sampling_of
from aim_fast.training.devices import Place
from aim_fast.training.prediction import Prediction, most_probable, probabilities
from aim_fast.training.trained_model import TrainedModel


class Watch(Iterator[Prediction]):
    """A prediction a window, as it comes, until the camera or the address ends or ``close`` is called.

    Attributes:
        windows: where they come from: what was taken, passed over and damaged so far.

    Raises:
        UsageError, DataError: as of :class:`~aim_fast.data.live.LiveWindows`.
    """

    def __init__(
        self,
        run: TrainedModel,
        place: Place,
        source: int | str,
        top_k: int,
        window: float | None,
        stride: float | None,
    ) -> None:
        self.run, self.place, self.top_k = run, place, top_k
        self.windows = LiveWindows(source, sampling_of(run.recipe), run.model.img_size, window, stride)

    def __next__(self) -> Prediction:
        window = next(self.windows)
        values = probabilities(self.run, self.place, window.frames[None])[0]
        best = most_probable(self.run.classes, values, self.top_k)
        return Prediction(self.windows.name, *best, start=window.start, end=window.end)

    def close(self) -> None:
        """Ends the watching."""
        self.windows.close()

    def summary(self) -> str:
        """What was watched so far, in a few words."""
        seen = self.windows
        counts = [f"1 window, {seen.until:.1f} s" if seen.taken == 1 else f"{seen.taken} windows, {seen.until:.1f} s"]
        if seen.skipped:
            counts.append(f"{seen.skipped} passed over, which came faster than they are predicted")
        if seen.damaged:
            counts.append(f"{seen.damaged} damaged packets")
        return "; ".join(counts)
