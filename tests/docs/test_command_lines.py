"""Every command line that a page shows is run, in the page's order, in one folder a page.

What stands in for what a reader has: miniatures of the data sets; random values for weights; models of two blocks and
small pictures; two frames, one epoch. ``…`` is what the page said before. What a page takes from elsewhere is made
before by the commands in ``BEFORE``.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from aim_fast.demo.moving_objects import write_demo_set
from aim_fast.models import registry
from tests.data.conftest import LAYOUTS, own_cache, videos
from tests.docs.test_pages import PAGES, ROOT, blocks

__all__ = ["own_cache", "videos"]
# with [--option] a line says what can be said, and is none
COMMAND = re.compile(r"(?:torchrun .* -m aim_fast|aim-fast) (?!.*\[--)")
LINES = {
    str(page.relative_to(ROOT)): lines
    for page in PAGES
    if (lines := [line for line in blocks(page) if COMMAND.match(line)])
}
BEFORE = {
    "docs/convert.md": [
        "aim-fast train --dataset kinetics400 --data-root DIR --output runs/mine",
        "aim-fast convert runs/mine vit_b_clip_32frame_k400.pth",
        "aim-fast train --dataset ssv2 --data-root DIR --output runs/scaled",
        "aim-fast convert runs/scaled vit_b_clip_8frame_ssv2.pth",
    ],
    "docs/embed.md": ["aim-fast train … --output runs/mine"],
    "docs/export.md": [
        "aim-fast train … --output runs/ssv2",
        "aim-fast export runs/ssv2 --format onnx",
        "aim-fast export runs/ssv2 --format onnx --output model.onnx",
    ],
    "docs/methods.md": ["aim-fast train … --method zeroi2v --output runs/zeroi2v"],
    "docs/networks.md": [
        "aim-fast train --dataset kinetics400 --data-root DIR --model torchvision:mvit_v2_s --output runs/mvit",
        "aim-fast convert runs/mvit mvit_v2_s.pth",
    ],
    "docs/training.md": ["aim-fast train --dataset ssv2 --data-root DIR --output runs/large"],
    "docs/promptclip.md": [
        "aim-fast train --dataset hmdb51 --data-root DIR --model promptclip_b16 --output runs/prompted",
        "aim-fast convert runs/prompted model.pth.tar",
    ],
}
ELSEWHERE = {
    "aim-fast tune": "without a GPU there is none to tune for",
    "aim-fast ablate": "tests/cli/test_ablate.py",
    "aim-fast demo": "make demo",
    "--demo": "tests/cli/test_compare_train.py",
    "--train aim": "tests/cli/test_compare_train.py",
    "SigLIP2 --head text": "its tokenizer is downloaded",
    "predict runs/mine 0": "there is no camera",
    "://": "tests/data/test_remote_shards.py and tests/cli/test_watching.py, at servers of their own",
    "me/aim-ssv2": "tests/cli/test_push_and_pull.py, at a stand-in of the hub",
    "runs/theirs": "tests/cli/test_push_and_pull.py",
    "--classes unseen": "tests/cli/test_promptclip.py, with more classes than two",
}
SMALL = {"--frames": "2", "--epochs": "1", "--batch-size": "2", "--workers": "1", "--warmup-epochs": "0"}
MINIATURE = {
    r"--classes \d+": "--classes 2",
    r"--shots \d+": "--shots 1",
    r"--img-size \d+": "--img-size 112",
    r"--weights-key \S+": "",
    r"frames=\d+": "frames=2",
    r"-\d+f\b": "-2f",
    r"--model mtv_b": "--model mtv_b --frames 8",
}
OF_A_RUN = ("train", "find-lr", "features")
SAID = ("--dataset", "--data-root", "--model", "--trunk")


def words_of(line: str) -> list[str]:
    """The words behind ``aim-fast``, without what the page says of the line, its numbers those of the miniatures."""
    line = re.split(r" {2,}(?![- ])", COMMAND.sub("", line))[0]
    for pattern, here in MINIATURE.items():
        line = re.sub(pattern, here, line)
    return shlex.split(line, comments=True)


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def put(words: list[str], option: str, new: str) -> None:
    if option in words:
        words[words.index(option) + 1] = new
    else:
        words += [option, new]


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory, videos):
    """A miniature of the data set of a name, the same folder each time."""
    made = {}

    def make(name: str) -> Path:
        name = re.sub(r"-split\d", "", name)
        if name in made:
            return made[name]
        made[name] = root = tmp_path_factory.mktemp("sets") / name
        if name == "ssv2":
            write_demo_set(root, train=8, validation=8)
        elif name == "folder":
            for split, file in (("train", "vp9"), ("train", "h264"), ("val", "vp8")):
                for label in ("Pouring", "Stirring"):
                    (root / split / label).mkdir(parents=True, exist_ok=True)
                    shutil.copy2(videos[file], root / split / label)
        elif name == "list":
            shutil.copytree(make("folder"), root)
            for split in ("train", "val"):
                lines = (f"{file} {file.parent.name}\n" for file in sorted((root / split).glob("*/*")))
                (root / f"{split}.txt").write_text("".join(lines))
        else:
            root.mkdir()
            LAYOUTS[name.rstrip("0123456789")](root, videos)
        return root

    return make


@pytest.fixture
def shallow(monkeypatch):
    """Models by the names that they have, two blocks deep."""
    whole = registry._find_entry

    def find(name, head, method):
        entry = whole(name, head, method)
        known = registry.arguments_of(entry)
        short = dict.fromkeys({"depth", "text_depth", "temporal_layers"} & known.keys(), 2) | entry.arguments
        short |= {"depth": 2} if "depth" in known else {}
        short |= {"depths": (2,) * len(known["depths"])} if "depths" in known else {}
        short |= {"doubled": (1,)} if "doubled" in known else {}
        short |= {"crossings": (1,)} if "crossings" in known else {}
        short |= {"learner_at": 1} if "learner_at" in known else {}
        short |= {"img_size": 112} if "patch_size" in known and "depth" in known and "window_size" not in known else {}
        return entry._replace(arguments=short)

    monkeypatch.setattr(registry, "_find_entry", find)


@pytest.mark.slow
@pytest.mark.parametrize("page", LINES)
def test_every_line_is_run(page, aim_fast, data_sets, shallow, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "long.mp4"):
        shutil.copy2(videos["h264"], name)
    Path("names.txt").write_text("brush_hair\nwave\n")
    Path("k400_classes.txt").write_text("air drumming\nplaying guitar\n")
    clips = ("brush_hair/#20_(best)_brush_hair_u_nm_np1_ba_goo_1;x.avi", "wave/#20_(best)_wave_u_nm_np1_ba_goo_1;x.avi")
    Path("train.txt").write_text("\n".join(clips))
    Path("recordings").mkdir()
    shutil.copy2(videos["vp9"], "recordings")
    said = {"--dataset": "ssv2", "--data-root": "DIR"}
    for line in [*BEFORE.get(page, ()), *LINES[page]]:
        if any(word in line for word in ELSEWHERE):
            continue
        command, *words = words_of(line)
        if "…" in words:
            words.remove("…")
            words += [word for option, its in said.items() if option not in words for word in (option, its)]
        said |= {option: its for option in SAID if command == "train" and (its := value(words, option))}
        if (root := value(words, "--data-root")) and not Path(root).exists():
            put(words, "--data-root", str(data_sets(value(words, "--dataset") or "ssv2")))
        if command in OF_A_RUN:
            put(words, "--weights", "random")
            for option, small in SMALL.items():
                said_so = option == "--frames" and re.search(r"frames=|mtv", line)
                if not said_so and (command != "features" or option == "--frames"):
                    put(words, option, small)
        if command == "find-lr":
            put(words, "--steps", "20")
        if command == "train" and "--resume" not in words:  # two ways of one step, or the next of some
            output = value(words, "--output")
            for folder in [Path(output)] if output else Path("runs").glob("*-2f"):
                shutil.rmtree(folder, ignore_errors=True)
        status, _, err = aim_fast(command, *words)
        assert status == 0, f"{line}: {err.splitlines()[-1]}"
