"""What many GPUs need at a given rate: clips decoded, bytes read and copied, gradients exchanged.

With r clips/s of the training step on one GPU, n GPUs, b clips a GPU and step, c processor-seconds to decode a clip, s
bytes of a file, P trained parameters, T frames of S × S pixels:

- clips: n r a second, on n r c cores, from n r s bytes a second of disk or network;
- to a GPU: 3 T S² r bytes a second, frames as uint8;
- exchange: gradients are summed once a step in fp32, 4 P bytes. A ring sends 2 (n - 1) / n times as much from each GPU
  and receives as much (Patarasuk and Yuan, Bandwidth Optimal All-reduce Algorithms, 2009), r / b times a second, while
  the backward pass is still under way.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What one GPU and one clip take.

    Attributes:
        rate: clips a second of the training step on one GPU.
        batch: clips a GPU and step.
        cpu_seconds: processor-seconds to decode one clip; 0 where the GPU decodes.
        file_bytes: mean size of a file.
        clip_bytes: of a clip as the step gets it, 3 T S².
        trained: parameters that train.
    """

    rate: float
    batch: float
    cpu_seconds: float
    file_bytes: float
    clip_bytes: float
    trained: int


@dataclass(frozen=True)
class Needs:
    """What ``gpus`` GPUs need in all, or each where it says so; bytes and clips are those of a second."""

    gpus: int
    clips: float
    cores: float
    read_bytes: float
    copied_bytes_each: float
    exchanged_bytes_each: float
    step_bytes_each: float  # of gradients sent by one GPU in one step

    @property
    def lines(self) -> dict[str, str]:
        """Name and text of each row to print."""
        sent, rate = self.step_bytes_each / 1e6, self.exchanged_bytes_each / 1e6
        return {
            f"{self.gpus} GPUs": f"{self.clips:,.0f} clips/s: {self.cores:,.0f} cores to decode them, "
            f"{self.read_bytes / 1e6:,.0f} MB/s to read",
            "each of them": f"{self.copied_bytes_each / 1e6:,.0f} MB/s of frames in, "
            f"{sent:,.1f} MB of gradients out a step, {rate:,.0f} MB/s",
        }


def needs(gpus: int, parts: Parts) -> Needs:
    """The arithmetic above for ``gpus`` GPUs, 1 or more."""
    step_bytes = 2 * (gpus - 1) / gpus * 4 * parts.trained
    clips = gpus * parts.rate
    return Needs(
        gpus=gpus,
        clips=clips,
        cores=clips * parts.cpu_seconds,
        read_bytes=clips * parts.file_bytes,
        copied_bytes_each=parts.rate * parts.clip_bytes,
        exchanged_bytes_each=step_bytes * parts.rate / parts.batch,
        step_bytes_each=step_bytes,
    )
