"""Which decoder is fastest for a data set on this machine, found by timing it on the data set's own clips.

The routes of ``aim_fast.data.pixels.route`` that can differ here each decode a sample of the clips with the recipe's
own frames and image size, in turns, so that what else the machine does falls on all alike; the one with the best median
is taken. Only routes that give the right frames stand for choice: on a CPU all give the same bits, on a GPU those whose
codecs ``aim_fast.data.pixels.gpu_decode`` found right. The result is kept beside the index, by machine and settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aim_fast.data.index.index_file import index_paths
from aim_fast.data.index.rows import Index
from aim_fast.data.loader import ClipLoader
from aim_fast.data.pixels.route import dali_available, routes
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import epoch_order
from aim_fast.data.plan.sampling import Sampling
from aim_fast.errors import DataError
from aim_fast.files import write_whole

__all__ = ["DecoderChoice", "choose_decoder", "measure_decoders", "prefetch_depth"]

WORTH_MEASURING = 256  # clips; fewer are decoded sooner than a choice pays
_CLIPS = 32  # of the sample
_ROUNDS = 3  # at least, of each route
_SECONDS = 1.5  # and until a route has had so many
_LONGEST = 4.0  # seconds of a round: a slower route is judged by the batches that it gave until then
_CLEARLY = 1.05  # another route than the first must be this much faster
_DEEPEST = 8  # finished batches held ready
_MEMORY = 0.05  # of what is free, for them


@dataclass(frozen=True, slots=True)
class DecoderChoice:
    """A route, and the clips a second of each that was timed; none where nothing was to choose or known before."""

    decoder: str
    clips_per_s: dict[str, float]
    measured: bool = True

    @property
    def description(self) -> str:
        """One line to print."""
        if not self.clips_per_s:
            return f"decoder {self.decoder}"
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in self.clips_per_s.items())
        return f"decoder {self.decoder}, the fastest of {rates} clips/s{'' if self.measured else ' (measured before)'}"


def choose_decoder(
    index: Index,
    *,
    sampling: Sampling,
    img_size: int,
    batch_size: int,
    threads: int,
    device: torch.device,
    augmentation: Augmentation | None,
    worth: int = WORTH_MEASURING,
) -> DecoderChoice:
    """The fastest right route for an index: measured before on this machine, or measured now, which takes seconds.

    Without an augmentation, as in evaluation, what training measured is taken, and nothing is measured.
    """
    candidates = routes(index, device, threads)
    if len(candidates) == 1 or len(index.healthy) < worth:
        return DecoderChoice(candidates[0], {}, measured=False)
    machine = _machine(device, threads)
    settings: dict[str, Any] = {"frames": sampling.num_frames, "interval": sampling.interval, "img_size": img_size}
    settings |= {"files": _fingerprint(index)}
    for known in _stored(index):
        fits = known.get("machine") == machine and known.get("decoder") in candidates
        if fits and (augmentation is None or known.get("settings") == settings):
            return DecoderChoice(known["decoder"], known["clips_per_s"], measured=False)
    if augmentation is None:
        return DecoderChoice(candidates[0], {}, measured=False)
    try:
        rates = measure_decoders(
            index,
            candidates,
            sampling=sampling,
            img_size=img_size,
            batch_size=batch_size,
            threads=threads,
            device=device,
            augmentation=augmentation,
        )
    except (
        DataError
    ):  # a sample of clips that are all too short, or that broke since: the run itself says what is wrong
        return DecoderChoice(candidates[0], {}, measured=False)
    best = max(rates, key=lambda name: rates[name] * (_CLEARLY if name == candidates[0] else 1.0))
    choice = DecoderChoice(best, {name: round(rate, 2) for name, rate in rates.items()})
    _store(index, {"machine": machine, "settings": settings, **asdict(choice)})
    return choice


def measure_decoders(
    index: Index,
    candidates: list[str],
    *,
    sampling: Sampling,
    img_size: int,
    batch_size: int,
    threads: int,
    device: torch.device,
    augmentation: Augmentation | None,
    seconds: float = _SECONDS,
) -> dict[str, float]:
    """Clips a second of each route over a sample of the index's healthy clips, the median of rounds in turns."""
    drawn = index.healthy[epoch_order(len(index.healthy), 0, 0)[:_CLIPS]]
    sample = replace(index, rows=[index.rows[number] for number in drawn])
    loaders = {
        name: ClipLoader(
            sample,
            train=augmentation is not None,
            batch_size=min(batch_size, len(sample)),
            img_size=img_size,
            sampling=sampling,
            augmentation=augmentation,
            workers=threads,
            device=device,
            decoder=name,
        )
        for name in candidates
    }
    spent = dict.fromkeys(candidates, 0.0)
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    try:
        for loader in loaders.values():
            _round(loader, 0)  # builds the pipelines and brings the files into memory
        for epoch in range(1, 100):
            for name, loader in loaders.items():
                clips, took = _round(loader, epoch)
                rates[name].append(clips / took)
                spent[name] += took
            if epoch >= _ROUNDS and min(spent.values()) > seconds:
                break
    finally:
        for loader in loaders.values():
            loader.close()
    return {name: statistics.median(rounds) for name, rounds in rates.items()}


def prefetch_depth(batch_size: int, num_frames: int, img_size: int, threads: int, device: torch.device) -> int:
    """Finished batches to hold ready: two clips a decoding thread, so that one slow file is not waited for, in at most
    a twentieth of the memory that is free, and from 2 to 8."""
    batch_bytes = batch_size * num_frames * img_size * img_size * 3
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    wanted = min(max(-(-2 * threads // batch_size), 2), _DEEPEST)
    return max(min(wanted, int(_MEMORY * free / batch_bytes)), 2)


def _round(loader: ClipLoader, epoch: int) -> tuple[int, float]:
    """Clips of an epoch, or of its first seconds, and the seconds that they took."""
    start, clips = time.perf_counter(), 0
    for batch in loader.batches(epoch):
        clips += len(batch.labels)
        if time.perf_counter() - start > _LONGEST:
            break
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)
    return min(clips, loader.clips_per_epoch), time.perf_counter() - start


def _machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What the speed of decoding depends on beside the clips."""
    import av

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "av": av.__version__,
        "dali": None,
    }
    if dali_available():
        import nvidia.dali

        found["dali"] = nvidia.dali.__version__
    return {**found, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fingerprint(index: Index) -> str:
    """Of the files: another choice may be right once they are transcoded."""
    sizes = np.array([index.rows[number].size for number in index.healthy], np.int64)
    codecs = ",".join(sorted({index.rows[number].codec for number in index.healthy}))
    return hashlib.blake2b(sizes.tobytes() + codecs.encode(), digest_size=8).hexdigest()


def _paths(index: Index) -> list[Path]:
    return [path.with_suffix(".json") for path in index_paths(index.dataset, index.root, "decoder")]


def _stored(index: Index) -> list[dict[str, Any]]:
    """What was measured before, the latest of each place first; a file that cannot be read counts for nothing."""
    entries: list[dict[str, Any]] = []
    for path in reversed(_paths(index)):  # data that cannot be written to any more may have old ones beside them
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
            if isinstance(known, list):
                entries += [entry for entry in known if isinstance(entry, dict)]
    return entries


def _store(index: Index, entry: dict[str, Any]) -> None:
    """Beside the index, or in the cache; where neither can be written the next run measures again."""
    same = ("machine", "settings")
    others = [known for known in _stored(index) if any(known.get(name) != entry[name] for name in same)]
    text = json.dumps([entry, *others[:31]], indent=1)
    for path in _paths(index):
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
            return
