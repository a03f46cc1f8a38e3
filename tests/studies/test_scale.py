"""The arithmetic of many GPUs, and that the page about it says what the measured parts give."""

import json
import re
from pathlib import Path

import pytest

from aim_fast.studies.scale import Needs, Parts, needs

ROOT = Path(__file__).parents[2]
DECODING = json.loads((ROOT / "bench/results/cpu-2-cores-decode.json").read_text())
CLIP_BYTES = 8 * 224 * 224 * 3
# of the page: trained parameters, processor-milliseconds to decode, bytes of a file
SETTINGS = {
    "AIM B/16, SSv2": (14_343_342, DECODING["cpu_ms_vp9"], 19.4e9 / 220_847),
    "AIM B/16, K400": (10_966_672, DECODING["cpu_ms_h264"], 1_352_828.0),
    "full fine-tuning, SSv2": (121_393_326, DECODING["cpu_ms_vp9"], 19.4e9 / 220_847),
}


def of_page(setting: str, gpus: int, batch: int) -> Needs:
    trained, milliseconds, size = SETTINGS[setting]
    return needs(gpus, Parts(100, batch, milliseconds / 1000, size, CLIP_BYTES, trained))


def test_of_a_step_every_gpu_sends_the_parts_of_a_ring():
    """Four GPUs hold a quarter each of the sum: three quarters go round to be added, and three to be told."""
    found = needs(4, Parts(rate=20, batch=5, cpu_seconds=0.01, file_bytes=1000, clip_bytes=30, trained=100))
    assert found.step_bytes_each == 6 * 25 * 4
    assert found.exchanged_bytes_each == 4 * found.step_bytes_each  # 20 clips/s, 5 a step
    assert (found.clips, found.cores, found.read_bytes) == (80, pytest.approx(0.8), 80_000)
    assert found.copied_bytes_each == 600
    assert needs(1, Parts(20, 5, 0, 1000, 30, 100)).exchanged_bytes_each == 0


def test_the_page_says_what_the_measured_parts_give():
    page = (ROOT / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| (AIM B/16, SSv2|AIM B/16, K400|full fine-tuning, SSv2) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for setting, cells in rows:
        gpus, batch, *written = cells.split(" | ")
        found = of_page(setting, int(gpus), int(batch))
        assert written == [
            f"{found.clips:,.0f}",
            f"{found.cores:,.0f}",
            f"{found.read_bytes / 1e6:,.0f}",
            f"{found.copied_bytes_each / 1e6:,.0f}",
            f"{found.step_bytes_each / 1e6:,.0f}",
            f"{found.exchanged_bytes_each / 1e6:,.0f}",
        ]
