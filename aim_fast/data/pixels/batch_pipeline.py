"""From planned clips to tensors, batch after batch: on the host, or on a GPU.

``HostPipeline`` decodes with DALI in the background, boxes and resizes in threads, and augments with DALI where the
plan asks for it; timm's policies run in those threads, behind the resize. Clips that PyAV decoded join behind it too,
and plain views of such clips need no DALI at all. ``DevicePipeline`` has a pipeline of DALI's for files and one for
what PyAV decoded. Both keep two batches under way, so that decoding never waits for the consumer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aim_fast.data.pixels.clip_input import ClipInput, PipelineError
from aim_fast.data.pixels.resize import resize_box
from aim_fast.data.plan.augmentation import Augmentation

if TYPE_CHECKING:
    from aim_fast.data.pixels.dali_pipelines import DaliPipeline
    from aim_fast.data.pixels.timm_policy import TimmPolicy

__all__ = ["UNDER_WAY", "BatchPipeline", "DevicePipeline", "HostPipeline"]

UNDER_WAY = 2


class BatchPipeline(ABC):
    """Batches of exactly B planned clips to uint8 frames [B, T, S, S, 3], in order."""

    def run(self, batches: Iterable[Sequence[ClipInput]]) -> Iterator[torch.Tensor]:
        """Frames of each batch, in memory of their own. Two batches are drawn ahead of the one that is given out;
        closing the iterator finishes and discards them.

        Raises:
            PipelineError: DALI failed on a batch that is under way; make a new pipeline.
        """
        source = iter(batches)
        under_way = 0
        try:
            for batch in islice(source, UNDER_WAY):
                self._begin(batch)
                under_way += 1
            while under_way:
                frames = self._finish()
                under_way -= 1
                for batch in islice(source, 1):
                    self._begin(batch)
                    under_way += 1
                yield frames
        except PipelineError:
            under_way = 0
            raise
        finally:
            for _ in range(under_way):
                self._finish()

    @abstractmethod
    def _begin(self, clips: Sequence[ClipInput]) -> None:
        """Start on a batch and return."""

    @abstractmethod
    def _finish(self) -> torch.Tensor:
        """Wait for the oldest batch begun."""

    @abstractmethod
    def close(self) -> None:
        """End the pipeline's threads."""


class HostPipeline(BatchPipeline):
    """Everything on the CPU. Samples of the same frames, one behind the other, are decoded once."""

    def __init__(self, *, batch_size: int, img_size: int, augmentation: Augmentation | None, threads: int) -> None:
        self.batch_size, self.img_size, self.augmentation, self.threads = batch_size, img_size, augmentation, threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._idle: list[DaliPipeline] = []
        self._begun: deque[tuple[Sequence[ClipInput], DaliPipeline | None]] = deque()
        self._augmenting: DaliPipeline | None = None
        self._policy: TimmPolicy | None = None
        if augmentation is not None and augmentation.policy:
            from aim_fast.data.pixels.timm_policy import TimmPolicy

            self._policy = TimmPolicy(augmentation.policy, img_size, augmentation.fill)
        if augmentation is not None and (augmentation.layers or augmentation.color_jitter or augmentation.erasing):
            from aim_fast.data.pixels.dali_pipelines import augmenting

            self._augmenting = augmenting(img_size, augmentation, batch_size=batch_size, threads=threads)

    def _begin(self, clips: Sequence[ClipInput]) -> None:
        native = [
            clip for clip, before in zip(clips, (None, *clips)) if clip.pixels is None and not _again(clip, before)
        ]
        decoder = None
        if native:
            from aim_fast.data.pixels.dali_pipelines import decode_inputs, decoding

            decoder = self._idle.pop() if self._idle else decoding(batch_size=self.batch_size, threads=self.threads)
            decoder.start(decode_inputs(native))
        self._begun.append((clips, decoder))

    def _finish(self) -> torch.Tensor:
        clips, decoder = self._begun.popleft()
        decoded = iter(decoder.wait()) if decoder is not None else iter(())
        # Zero-copy views of DALI's buffers, which stay as they are until this decoder is started again.
        sources: list[torch.Tensor | None] = []
        for clip, before in zip(clips, (None, *clips)):
            again = clip.pixels is None and _again(clip, before)
            sources.append(sources[-1] if again else torch.from_dlpack(next(decoded)) if clip.pixels is None else None)
        if self._augmenting is None:
            length, size = len(clips[0].plan.order), self.img_size
            out = torch.empty(len(clips), length, size, size, 3, dtype=torch.uint8)
            if (
                decoder is None and self._policy is None
            ):  # resized already: handing the copies to threads would cost more than they do
                for work in zip(out, clips, sources):
                    _fill(*work, size, None)
            else:
                for job in [
                    self._threads.submit(_fill, *work, size, self._policy) for work in zip(out, clips, sources)
                ]:
                    job.result()
        else:
            from aim_fast.data.pixels.dali_pipelines import augment_inputs

            jobs = [self._threads.submit(_resized, *work, self.img_size, self._policy) for work in zip(clips, sources)]
            pixels = [job.result() for job in jobs]
            self._augmenting.start(augment_inputs(clips, pixels, self.augmentation))
            out = torch.from_dlpack(self._augmenting.wait().as_tensor()).clone()
        if decoder is not None:
            self._idle.append(decoder)
        return out

    def close(self) -> None:
        self._threads.shutdown()


class DevicePipeline(BatchPipeline):
    """Everything behind the file on a GPU, but for the clips that PyAV decodes and resizes. On a CPU only slower."""

    def __init__(
        self,
        *,
        batch_size: int,
        img_size: int,
        augmentation: Augmentation | None,
        threads: int,
        device: torch.device,
        decode_on: str,
    ) -> None:
        self.augmentation = augmentation
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._settings: dict[str, Any] = {
            "img_size": img_size,
            "augmentation": augmentation,
            "batch_size": batch_size,
            "threads": threads,
            "device_id": torch.cuda.current_device() if on_gpu and device.index is None else device.index,
        }
        self._decode_on = decode_on
        self._idle: dict[bool, list[DaliPipeline]] = {False: [], True: []}  # by whether they begin with pixels
        self._begun: deque[list[tuple[list[int], bool, DaliPipeline]]] = deque()  # each with the clips' places

    def _begin(self, clips: Sequence[ClipInput]) -> None:
        begun = []
        for resized in (False, True):
            places = [i for i, clip in enumerate(clips) if (clip.pixels is not None) is resized]
            if self._decode_on == "gpu":  # clips of one size behind one another: others take a decoder made anew
                places.sort(key=lambda i: (clips[i].coded_size, clips[i].size))
            if places:
                pipeline = self._idle[resized].pop() if self._idle[resized] else self._made(resized)
                pipeline.start(self._inputs([clips[i] for i in places], resized))
                begun.append((places, resized, pipeline))
        self._begun.append(begun)

    def _made(self, resized: bool) -> DaliPipeline:
        from aim_fast.data.pixels.dali_pipelines import augmenting, whole

        return augmenting(**self._settings) if resized else whole(**self._settings, decode_on=self._decode_on)

    def _inputs(self, clips: list[ClipInput], resized: bool) -> dict[str, list[np.ndarray]]:
        from aim_fast.data.pixels.dali_pipelines import augment_inputs, box_inputs, decode_inputs

        if resized:
            pixels = [clip.pixels for clip in clips if clip.pixels is not None]
            return augment_inputs(clips, pixels, self.augmentation)
        return decode_inputs(clips) | box_inputs(clips) | augment_inputs(clips, None, self.augmentation)

    def _finish(self) -> torch.Tensor:
        begun = self._begun.popleft()
        with torch.cuda.stream(self._stream):  # not behind the training step's kernels
            parts = [torch.from_dlpack(pipeline.wait().as_tensor()) for _, _, pipeline in begun]
            frames = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
            for (places, _, _), part in zip(begun, parts):
                frames[places] = part
        if self._stream is not None:
            self._stream.synchronize()
        for _, resized, pipeline in begun:
            self._idle[resized].append(pipeline)
        return frames

    def close(self) -> None:
        self._idle = {False: [], True: []}


def _again(clip: ClipInput, before: ClipInput | None) -> bool:
    """Whether a clip is of the frames that were decoded for the one before it."""
    if before is None or before.pixels is not None or clip.path != before.path:
        return False
    return np.array_equal(clip.plan.frames, before.plan.frames)


def _resized(clip: ClipInput, source: torch.Tensor | None, img_size: int, policy: TimmPolicy | None) -> np.ndarray:
    frames = clip.pixels
    if frames is None:
        assert source is not None
        frames = resize_box(source, clip.plan, img_size)
    return frames if policy is None or clip.plan.policy_seed is None else policy(frames, clip.plan.policy_seed)


def _fill(
    out: torch.Tensor, clip: ClipInput, source: torch.Tensor | None, img_size: int, policy: TimmPolicy | None
) -> None:
    frames = torch.from_numpy(_resized(clip, source, img_size, policy))
    torch.index_select(frames, 0, torch.from_numpy(clip.plan.order), out=out)
