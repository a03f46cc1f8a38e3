"""Sliding windows over a camera or an address while it is filmed: those of :mod:`aim_fast.data.windows`, as they come.

A thread of its own reads and decodes, so that nothing is lost while a window is predicted. One window waits to be
taken. What comes no faster than it is filmed is kept up with: a window that nobody took when the next is there is
passed over, and counted. What comes faster, as a file by HTTP does, is read no faster than its windows are taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.video.camera import open_live, shown
from aim_fast.data.video.decode import ORDERED_BY_TIME, ShownFrame, reason, shown_frames
from aim_fast.data.video.stream import Clock, video_stream
from aim_fast.data.windows import Window, check_lengths, slide
from aim_fast.errors import AimFastError, DataError

__all__ = ["LiveWindows"]

_PATIENCE = 10.0  # seconds without a frame
_CUT_OFF = 1.0  # seconds that may be missing at the end of what says its length


class LiveWindows(Iterator[Window]):
    """The windows of a camera or an address until it ends; reading begins with the first.

    Args:
        source: a camera's number or an address.
        sampling, img_size, seconds, stride: as of ``read_windows``.

    Attributes:
        name: the source, to be printed.
        taken, skipped: windows that were given and that were passed over.
        damaged: packets that did not decode.
        until: seconds of the end of the last window that was given.

    Raises:
        UsageError: lengths or an address that cannot be. DataError: the source cannot be opened, gives no frame for ten
        seconds, breaks off, or ends before the time that it says.
    """

    def __init__(
        self, source: int | str, sampling: Sampling, img_size: int, seconds: float | None, stride: float | None
    ) -> None:
        check_lengths(sampling, seconds, stride)
        self.source, self.name = source, shown(source)
        self.sampling, self.img_size, self.seconds, self.stride = sampling, img_size, seconds, stride
        self.taken = self.skipped = self.damaged = 0
        self.until = 0.0
        self._turn = threading.Condition()
        self._window: Window | None = None
        self._failure: Exception | None = None
        self._ended = self._closed = False
        self._heard = self._begun = 0.0  # when a frame came last, and first
        self._thread = threading.Thread(target=self._read, name=f"watch {self.name}", daemon=True)

    def __next__(self) -> Window:
        with self._turn:
            if self._thread.ident is None and not self._closed:
                self._heard = time.monotonic()
                self._thread.start()
            while self._window is None and not self._ended:
                self._turn.wait(0.2)  # short, so that signals are heard
                if self._window is None and not self._ended and time.monotonic() - self._heard > _PATIENCE:
                    self._closed = self._ended = True
                    raise self._stalled()
            window, self._window = self._window, None
            self._heard = time.monotonic()
            self._turn.notify_all()
        if self._closed:
            raise StopIteration
        if window is None:
            raise self._failure or StopIteration
        self.taken += 1
        self.until = window.end
        return window

    def close(self) -> None:
        """Ends the reading, at the next frame."""
        with self._turn:
            self._closed = self._ended = True
            self._turn.notify_all()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def _read(self) -> None:
        """The thread: opens, reads to the end, and leaves why it ended."""
        failure: Exception | None = None
        try:
            with open_live(self.source, _PATIENCE) as container:
                stream = video_stream(container)
                if stream is None or stream.codec_context is None:
                    raise IndexError("no video stream that is known here")
                stream.codec_context.thread_count, stream.thread_type = 0, "SLICE"  # those of frames come late
                finite = container.duration is not None
                for window in slide(
                    self._frames(container, stream), self.sampling, self.img_size, self.seconds, self.stride
                ):
                    if not self._offer(window, finite):
                        break
        except AimFastError as error:
            failure = error
        except av.error.ExitError:
            failure = self._stalled()
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            what = "breaks off" if self._begun else "cannot be opened"
            failure = DataError(f"{self.name} {what}: {reason(error)}; check that it is there and sends a video")
        except Exception as error:  # a mistake of ours: to be seen where the windows are taken
            failure = error
        with self._turn:
            self._failure, self._ended = failure, True
            self._turn.notify_all()

    def _stalled(self) -> DataError:
        what = "stalls: no frame" if self._begun else "cannot be opened: nothing came"
        return DataError(f"{self.name} {what} for {_PATIENCE:.0f} s; check that it is there and sends a video")

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[ShownFrame]:
        clock, last = Clock(container, stream), 0.0
        for frame in shown_frames(stream, clock, self._decoded(container, stream, clock)):
            self._heard = time.monotonic()
            self._begun = self._begun or self._heard
            last = frame.time + 1 / frame.rate
            yield frame
            if self._closed:
                return
        if not self._begun:
            raise DataError(f"{self.name} ended before its first frame; check that it sends a video")
        whole = (container.duration or 0) / av.time_base
        if container.format.name in ORDERED_BY_TIME and last < min(whole - _CUT_OFF, 0.9 * whole):
            raise DataError(f"{self.name} ended after {last:.1f} of its {whole:.1f} s: the rest did not come")

    def _decoded(self, container: InputContainer, stream: VideoStream, clock: Clock) -> Iterator[av.VideoFrame]:
        """Every frame that decodes: what was lost on the way costs no more than itself."""
        for packet in container.demux(stream):
            clock.packet(packet)
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self.damaged += self._begun > 0  # before, it is where a recording was joined

    def _offer(self, window: Window, finite: bool) -> bool:
        """Puts a window where it is taken; False when nobody takes any more."""
        with self._turn:
            while self._window is not None and not self._closed:
                ahead = window.end - (time.monotonic() - self._begun)
                if not finite and ahead <= 0:
                    self.skipped += 1
                    break
                self._turn.wait(None if finite else ahead)
            self._window = window
            self._turn.notify_all()
            self._heard = time.monotonic()
            return not self._closed
