"""Clips a second of the data path against one PyAV thread that does the same work.

Files are made here: SSv2-like VP9 webm (427×240, 12 fps, 40 to 60 frames, libvpx's default key frames, uniform
sampling) and Kinetics-like H.264 mp4 (340×256, 30 fps, 150 frames, GOP 12 and 250, dense sampling at interval 16).
Both sides take the same frames and boxes of the same shuffled clips to T × 224². The baseline seeks to the key frame
before the clip, decodes to its last frame in one thread, converts the wanted frames, crops, and resizes them with
PyTorch's own antialiased uint8 kernel. Rounds of both alternate, and a ratio is the median of the rounds' ratios. Last,
ten-second files of GOP 250 are transcoded, and our loader reads old and new ones in turn. A consumer that takes clips
at a given rate (a training step that runs elsewhere: here it sleeps) tells the share of its time that it waits for
them: at the rate of the engine's measured step, and at half and nine tenths of what our loader gave. Processor time a
clip is given beside it: on a machine that is busy with something else it says more than the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from aim_fast.cores import default_workers
from aim_fast.data.copies.frame_cache import KINDS, load_or_build_frame_cache
from aim_fast.data.copies.transcode import transcode
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.rows import Index
from aim_fast.data.loader import ClipLoader
from aim_fast.data.plan.augmentation import Augmentation
from aim_fast.data.plan.clip_plan import epoch_order, plan_clip
from aim_fast.data.plan.sampling import Sampling
from aim_fast.data.video.encode import CODECS, Encoding
from aim_fast.demo.moving_objects import write_demo_set
from aim_fast.training.clock import Clock
from bench import goals

_SIZE = 224
_FILES = 12
_CLIPS = 48  # a round
_ROUNDS = 5
_CONSUMER_SECONDS = 10.0
_AUGMENTATION = Augmentation(random_resized_crop=True, flip=0.5)


def run(options: argparse.Namespace) -> dict:
    """Measure and print; the dictionary has ``ratio_vs_pyav_<set>`` and clips a second of both sides, with spread."""
    frames, batch = options.frames or 8, options.batch or 8
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    step_rate = options.consumer or _measured_step(device)
    results: dict = {"clips": _CLIPS, "rounds": _ROUNDS, "frames": frames, "batch": batch, "threads": default_workers()}
    columns = ("set", "ours, clips/s", "ms of CPU", "one PyAV thread", "ms of CPU", "ratio", "spread")
    table = Table(*columns, title=f"decode + augment to {frames} x {_SIZE}², {device}, {default_workers()} cores")
    consumers = ["half", "nine_tenths", *(["step"] if step_rate else [])]
    waiting = Table("set", *consumers, title=f"data-wait of a consumer; step: {step_rate or 0:.1f} clips/s")
    if step_rate:
        results["consumer_clips_per_s"] = round(step_rate, 3)
    with tempfile.TemporaryDirectory() as folder:
        for name, make, sampling in _sets(frames):
            index = _made(Path(folder) / name, make)
            ours, theirs = _measured(index, sampling, batch, device)
            ratios = [a.clips_per_s / b.clips_per_s for a, b in zip(ours, theirs)]
            own, other = _median(ours), _median(theirs)
            results |= {
                f"ratio_vs_pyav_{name}": round(statistics.median(ratios), 3),
                f"ratios_{name}": [round(ratio, 3) for ratio in ratios],
                f"clips_per_s_{name}": round(own.clips_per_s, 2),
                f"cpu_ms_{name}": round(own.cpu_ms, 2),
                f"pyav_clips_per_s_{name}": round(other.clips_per_s, 2),
                f"pyav_cpu_ms_{name}": round(other.cpu_ms, 2),
            }
            waits = _data_waits(index, sampling, batch, device, own.clips_per_s, step_rate)
            results |= {f"data_wait_{name}_at_{what}": share for what, share in waits.items()}
            waiting.add_row(name, *(f"{100 * share:.1f} %" for share in waits.values()))
            cells = [own.clips_per_s, own.cpu_ms, other.clips_per_s, other.cpu_ms]
            ratio = f"{statistics.median(ratios):.2f}"
            table.add_row(name, *(f"{c:.1f}" for c in cells), ratio, f"{min(ratios):.2f} to {max(ratios):.2f}")
        dense = Sampling(frames, interval=16)
        results |= _transcoding(Path(folder), dense, batch, device)
        cached = Table(
            "set", "decoding, clips/s", *(f"{kind} cache" for kind in KINDS), title="epochs from cached frames"
        )
        for name, index, sampling, size in _cached_sets(Path(folder), frames):
            rates, ratios = _cached(index, sampling, batch, device, size, Path(folder) / "cache" / name)
            results |= {f"clips_per_s_{kind}_cache_{name}": round(rates[kind], 2) for kind in KINDS}
            results |= {f"ratio_{kind}_cache_vs_decoding_{name}": round(ratios[kind], 3) for kind in KINDS}
            cached.add_row(name, f"{rates['none']:.1f}", *(f"{rates[k]:.1f} ({ratios[k]:.2f} x)" for k in KINDS))
    results["clips_per_s"] = results["clips_per_s_vp9"]
    results["planning_us"] = round(_planning_us(frames), 1)
    console = Console()
    console.print(table)
    console.print(waiting)
    for codec in ("h264", "vp9"):
        ratios = results[f"ratios_transcoded_{codec}_vs_gop250"]
        console.print(
            f"transcoded to {codec}, GOP 12, against H.264 of GOP 250, both by our loader: "
            f"{results[f'ratio_transcoded_{codec}_vs_gop250']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    console.print(cached)
    console.print(f"planning: {results['planning_us']} µs a clip")
    return results


@dataclass(frozen=True)
class _Rate:
    clips_per_s: float
    cpu_ms: float


def _sets(frames: int) -> list[tuple[str, Callable[[Path, int], None], Sampling]]:
    uniform, dense = Sampling(frames), Sampling(frames, interval=16)
    return [
        ("vp9", _make_vp9, uniform),
        ("h264", lambda file, number: _make_h264(file, number, 12), dense),
        ("h264_gop250", lambda file, number: _make_h264(file, number, 250), dense),
    ]


def _loader(index: Index, sampling: Sampling, batch: int, device: str) -> ClipLoader:
    return ClipLoader(
        index,
        train=True,
        batch_size=batch,
        img_size=_SIZE,
        sampling=sampling,
        augmentation=_AUGMENTATION,
        device=device,
    )


def _measured(index: Index, sampling: Sampling, batch: int, device: str) -> tuple[list[_Rate], list[_Rate]]:
    loader = _loader(index, sampling, batch, device)
    _pass_of(loader, 0)  # builds the pipeline and warms the page cache
    ours, theirs = [], []
    for epoch in range(1, _ROUNDS + 1):
        ours.append(_rate(_pass_of, loader, epoch))
        theirs.append(_rate(_baseline, index, sampling, epoch))
    loader.close()
    return ours, theirs


def _measured_step(device: str) -> float | None:
    """Clips a second of the engine's step on this kind of device, from the figures that are kept."""
    rates = [
        row["clips_per_s"]
        for row in goals.read_results()
        if row.get("bench") == "step" and str(row.get("device", "")).startswith(device.split(":")[0])
    ]
    return max(rates, default=None)


def _data_waits(
    index: Index, sampling: Sampling, batch: int, device: str, loader_rate: float, step_rate: float | None
) -> dict[str, float]:
    """Share of an epoch, 0 to 1, that consumers of different rates wait for clips, the first batch left out."""
    rates = {"half": loader_rate / 2, "nine_tenths": 0.9 * loader_rate} | ({"step": step_rate} if step_rate else {})
    loader = _loader(index, sampling, batch, device)
    _pass_of(loader, 0)
    waits = {}
    for name, rate in rates.items():
        clock: Clock | None = None
        batches = iter(loader.batches(1))
        next(batches)
        for _ in range(1, min(loader.batches_per_epoch, 2 + int(_CONSUMER_SECONDS * rate / batch))):
            clock = clock or Clock()
            with clock.wait():
                next(batches)
            time.sleep(batch / rate)
        waits[name] = round(clock.waiting, 4) if clock else 0.0
    loader.close()
    return waits


def _transcoding(folder: Path, sampling: Sampling, batch: int, device: str) -> dict:
    """What ``aim-fast transcode`` gains: our loader on ten-second files of GOP 250 and on its output, rounds in
    turn."""
    results: dict = {}
    original = folder / "original"
    _write(original, lambda file, number: _make_h264(file, number, 250, frames=300), _FILES // 3)
    for codec in ("h264", "vp9"):
        output = folder / f"transcoded_{codec}"
        transcode("folder", original, output, Encoding(256, 12, codec, CODECS[codec].quality))
        loaders = [_loader(_indexed(root), sampling, batch, device) for root in (original, output)]
        for loader in loaders:
            _pass_of(loader, 0)
        pairs = [[_rate(_pass_of, loader, epoch) for loader in loaders] for epoch in range(1, _ROUNDS + 1)]
        for loader in loaders:
            loader.close()
        ratios = [after.clips_per_s / before.clips_per_s for before, after in pairs]
        results |= {
            f"ratio_transcoded_{codec}_vs_gop250": round(statistics.median(ratios), 3),
            f"ratios_transcoded_{codec}_vs_gop250": [round(ratio, 3) for ratio in ratios],
            f"clips_per_s_transcoded_{codec}": round(_median([after for _, after in pairs]).clips_per_s, 2),
        }
    return results


def _cached_sets(folder: Path, frames: int) -> Iterator[tuple[str, Index, Sampling, int]]:
    """The SSv2-like files that are there already, and the clips of ``aim-fast demo`` at the demo's own size."""
    made = load_or_build_index("folder", folder / "vp9", "train")
    yield "vp9", replace(made, rows=[made.rows[i % _FILES] for i in range(_CLIPS)]), Sampling(frames), _SIZE
    write_demo_set(folder / "demo", train=4 * _CLIPS, validation=8)
    yield "demo", load_or_build_index("ssv2", folder / "demo", "train"), Sampling(frames), 48


def _cached(
    index: Index, sampling: Sampling, batch: int, device: str, size: int, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Clips a second without and with each kind of cache, and the medians of the rounds' ratios to decoding."""
    caches = {"none": None, **{kind: load_or_build_frame_cache(index, folder, kind=kind) for kind in KINDS}}
    loaders = {
        kind: ClipLoader(
            index,
            train=True,
            batch_size=batch,
            img_size=size,
            sampling=sampling,
            augmentation=_AUGMENTATION,
            device=device,
            cache=cache,
        )
        for kind, cache in caches.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in loaders}
    for epoch in range(_ROUNDS + 1):
        for kind, loader in loaders.items():
            start = time.perf_counter()
            _pass_of(loader, epoch)
            seconds[kind].append(time.perf_counter() - start)
    for loader in loaders.values():
        loader.close()
    rates = {kind: len(index) / statistics.median(spent[1:]) for kind, spent in seconds.items()}
    ratios = {
        kind: statistics.median(a / b for a, b in zip(seconds["none"][1:], spent[1:]))
        for kind, spent in seconds.items()
    }
    return rates, ratios


def _rate(work: Callable, *arguments) -> _Rate:
    start, used = time.perf_counter(), time.process_time()
    work(*arguments)
    return _Rate(_CLIPS / (time.perf_counter() - start), 1e3 * (time.process_time() - used) / _CLIPS)


def _median(rates: list[_Rate]) -> _Rate:
    return _Rate(statistics.median(r.clips_per_s for r in rates), statistics.median(r.cpu_ms for r in rates))


def _planning_us(frames: int, clips: int = 2000) -> float:
    start = time.perf_counter()
    for index in range(clips):
        plan_clip(45, 240, 427, sampling=Sampling(frames), augmentation=_AUGMENTATION, img_size=_SIZE, index=index)
    return 1e6 * (time.perf_counter() - start) / clips


def _pass_of(loader: ClipLoader, epoch: int) -> None:
    for batch in loader.batches(epoch):
        assert len(batch) == loader.batch_size
    if loader.device.type == "cuda":
        torch.cuda.synchronize()


def _baseline(index: Index, sampling: Sampling, epoch: int) -> None:
    """What a careful one-thread loader does, with its own decoding and resizing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number in epoch_order(len(index), 0, epoch).tolist():
        row = index.rows[number]
        plan = plan_clip(
            row.frames,
            row.height,
            row.width,
            sampling=sampling,
            augmentation=_AUGMENTATION,
            img_size=_SIZE,
            epoch=epoch,
            index=number,
        )
        pixels = _decoded(row.path, plan.frames)
        y0, x0, y1, x1 = (round(side * extent) for side, extent in zip(plan.box, (row.height, row.width) * 2))
        crop = torch.from_numpy(pixels)[:, y0:y1, x0:x1].permute(0, 3, 1, 2)
        clip = torch.nn.functional.interpolate(crop, (_SIZE, _SIZE), mode="bilinear", antialias=True)
        clip = clip.flip(-1) if plan.flip else clip
        clip.permute(0, 2, 3, 1).contiguous()[torch.from_numpy(plan.order).long()]
    torch.set_num_threads(threads)


def _decoded(path: str, frames: np.ndarray) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        step = float(1 / ((stream.average_rate or 1) * (stream.time_base or 1)))
        if frames[0] > 0:
            container.seek(int(frames[0] * step), stream=stream)
        wanted = set(frames.tolist())
        kept = []
        for frame in container.decode(stream):
            number = round((frame.pts or 0) / step)
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
            if number >= frames[-1]:
                break
    return np.stack(kept)


def _made(folder: Path, make: Callable[[Path, int], None]) -> Index:
    _write(folder, make, _FILES)
    return _indexed(folder)


def _write(folder: Path, make: Callable[[Path, int], None], files: int) -> None:
    for split, count in (("train", files), ("val", 1)):
        (folder / split / "all").mkdir(parents=True)
        for number in range(count):
            make(folder / split / "all" / f"{number:03d}", number)


def _indexed(folder: Path) -> Index:
    """The training clips as often as a round takes."""
    index = load_or_build_index("folder", folder, "train")
    return replace(index, rows=[index.rows[i % len(index)] for i in range(_CLIPS)])


def _make_vp9(file: Path, number: int) -> None:
    options = {"b": "180k", "deadline": "good", "cpu-used": "5"}  # about 90 KB a clip, as in SSv2
    _encode(file.with_suffix(".webm"), "libvpx-vp9", 427, 240, 12, 40 + number * 7 % 21, number, options)


def _make_h264(file: Path, number: int, gop: int, frames: int = 150) -> None:
    options = {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0", "preset": "fast", "crf": "25"}
    _encode(file.with_suffix(".mp4"), "libx264", 340, 256, 30, frames, number, options)


def _encode(file: Path, codec: str, width: int, height: int, rate: int, frames: int, seed: int, options: dict) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in _scene(width, height, frames, np.random.default_rng(seed)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _scene(width: int, height: int, frames: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """A hand-held view of a textured room with three things moving across it, and sensor noise."""
    room = torch.zeros(1, 3, height + 64, width + 64)
    for grain in (4, 12, 40, 120):
        coarse = torch.from_numpy(random.normal(0, 1, (1, 3, grain, grain)).astype(np.float32))
        room += torch.nn.functional.interpolate(coarse, room.shape[-2:], mode="bicubic") * (60 / grain**0.4)
    view = room[0].permute(1, 2, 0).numpy() + 120
    noise = random.normal(0, 2.5, (4, height, width, 1)).astype(np.float32)
    shake = np.cumsum(random.normal(0, 0.8, (frames, 2)), axis=0).clip(-31, 31).round().astype(int) + 32
    things = random.uniform(0, 1, (3, 8)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for i in range(frames):
        top, left = shake[i]
        image = view[top : top + height, left : left + width].copy()
        for a in things:
            cy = height * (a[0] + 0.3 * np.sin(i / 20 + 6 * a[2]))
            cx = width * ((a[1] + (a[3] - 0.5) * i / 25) % 1.2)
            inside = ((y - cy) / (18 + 30 * a[4])) ** 2 + ((x - cx) / (18 + 40 * a[5])) ** 2 < 1
            image[inside] = 0.4 * image[inside] + 0.6 * 255 * a[5:8]
        yield (image + noise[i % 4]).clip(0, 255).astype(np.uint8)
