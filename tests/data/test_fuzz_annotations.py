"""500 annotation files mutated by kind: each is read whole, what is left out is named, or it is refused in one line.

The mutations are made by Python's csv, json and tarfile, so that how many rows went in is known without our reader.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.errors import DataError

NAMES = ("brew coffee", "catch, then throw", "dig", "Übung")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
ENDS = ("\n", "\r\n", "\r")


def outcome(dataset: str, root: Path) -> tuple[int, int, dict[str, str]] | str:
    """(rows used, rows named, class by clip), or the refusal."""
    try:
        listing = read_dataset(dataset, root, "train")
    except DataError as error:
        said = str(error)
        return said if str(root) in said and "\n" not in said else ""
    named = sum(int(count) for note in listing.notes for count in re.findall(r"counted once: (\d+) of", note))
    return len(listing.clips), named, {clip.id: listing.classes[clip.label] for clip in listing.clips}


def rows_of(draw: random.Random, names: bool) -> list[tuple[str, str]]:
    """(path, label) of 24 clips in an order of their own."""
    label = (lambda n: NAMES[n % 4]) if names else (lambda n: str(n % 4))
    rows = [(f"set {n % 3}/take {n:02d}.{draw.choice(('mp4', 'avi', 'webm'))}", label(n)) for n in range(24)]
    draw.shuffle(rows)
    return rows


def table(draw: random.Random, rows: list[list[str]], delimiter: str, comments: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=delimiter, quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), lineterminator="\n"
    )
    for row in rows:
        if comments and draw.random() < 0.1:
            text.write(draw.choice(("# checked", "// by hand, twice", "", "   ")) + "\n")
        writer.writerow(row)
    return text.getvalue().replace("\n", draw.choice(ENDS)).encode(draw.choice(ENCODINGS))


@pytest.mark.parametrize("seed", range(250))
def test_lists(tmp_path, seed):
    draw = random.Random(seed)
    kind = ("whole", "twice", "contrary", "cut", "cell lost", "labels joined", "label lost")[seed % 7]
    rows = rows_of(draw, names=draw.random() < 0.5)
    whole, count = dict(rows), len(rows)
    if kind == "twice":
        rows += [(draw.choice(("", "./")) + path, label) for path, label in draw.sample(rows, draw.randint(1, 5))]
    elif kind == "contrary":
        path, label = draw.choice(rows)
        rows.append((path, next(other for other in whole.values() if other != label)))
    extra = draw.choice(("none", "index", "frames", "heading only"))
    heads = {
        "none": [],
        "index": ["", "Film", "Art"],
        "frames": ["path", "frames", "label"],
        "heading only": draw.choice([["Film", "Art"], ["video_path", "class"], ["FILE", "Category"]]),
    }
    cells = [
        {"index": [str(n), *row], "frames": [row[0], str(30 + n), row[1]]}.get(extra, list(row))
        for n, row in enumerate(rows)
    ]
    at = draw.randrange(len(cells))
    if kind == "cell lost":
        del cells[at][-1]
    elif kind == "labels joined":
        cells[at][-1] = ";".join(list(dict.fromkeys(whole.values()))[:2])
    elif kind == "label lost":
        cells[at][-1] = ""
    delimiter = draw.choice("\t|" if kind == "labels joined" else ",;\t|")
    data = table(draw, [*([heads[extra]] if heads[extra] else []), *cells], delimiter, draw.random() < 0.5)
    if kind == "cut":
        data = data[: draw.randrange(2, len(data))]
    (tmp_path / "train.csv").write_bytes(data)
    found = outcome("list", tmp_path)
    if kind in ("contrary", "cell lost", "labels joined", "label lost"):
        assert isinstance(found, str), found
        assert "train.csv" in found
    elif kind == "cut":
        assert found != ""
        if not isinstance(found, str):
            used, named, classes = found
            lost = [path for path in classes if classes[path] != whole.get(path)]
            assert len(lost) <= 1, lost  # the last, whose label or name is cut
            assert named == 0
            assert used == rows_in(data) - bool(heads[extra])
    else:
        assert not isinstance(found, str), found
        used, named, classes = found
        assert (used, named) == (count, len(rows) - count)
        assert classes == whole


def rows_in(data: bytes) -> int:
    """Lines of a list that are rows."""
    for encoding in ("utf-16" if data[:2] == b"\xff\xfe" else "utf-8-sig",):
        lines = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return sum(bool(line.strip()) and not line.startswith(("#", "//")) for line in lines)


def touched(root: Path, names: list[str]) -> None:
    for name in names:
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).touch()


@pytest.mark.parametrize("seed", range(100))
def test_csv_of_kinetics(tmp_path, seed):
    draw = random.Random(seed)
    kind = ("whole", "twice", "contrary", "cut", "cell more", "quote open")[seed % 6]
    rows = [[NAMES[n % 4], f"id_{n:08d}", str(n), f"{n + 10}", "train"] for n in range(16)]
    touched(tmp_path, [f"id_{n:08d}_{n:06d}_{n + 10:06d}.mp4" for n in range(16)])
    whole = {f"id_{n:08d}_{n:06d}_{n + 10:06d}": NAMES[n % 4] for n in range(16)}
    head = ["label", "youtube_id", "time_start", "time_end", "split"]
    again = [list(row) for row in draw.sample(rows, 3)] if kind in ("twice", "contrary") else []
    if kind == "contrary":
        again[0][0] = next(name for name in NAMES if name != again[0][0])
    rows += again
    if kind == "cell more":
        draw.choice(rows).append("more")
    if draw.random() < 0.3:
        head, rows = ["", *head], [[str(n), *row] for n, row in enumerate(rows)]
    data = table(draw, [head, *rows], draw.choice(",;\t|"), draw.random() < 0.5)
    if kind == "cut":
        data = data[: draw.randrange(2, len(data))]
    elif kind == "quote open":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *rows])
        lines = text.getvalue().split("\n")
        at = draw.randrange(1, len(rows))
        lines[at] = '"' + lines[at].replace('"', "")
        data = "\n".join(lines).encode()
    (tmp_path / "train.csv").write_bytes(data)
    found = outcome("kinetics400", tmp_path)
    if kind in ("contrary", "cell more", "quote open"):
        assert isinstance(found, str), found
        assert "train.csv" in found
    elif kind == "cut":
        assert found != ""
        if not isinstance(found, str):
            assert found[0] == rows_in(data) - 1
            assert sum(whole.get(name) != label for name, label in found[2].items()) <= 1
    else:
        assert not isinstance(found, str), found
        assert found == (16, len(again), whole)


@pytest.mark.parametrize("seed", range(100))
def test_json_of_ssv2_and_diving48(tmp_path, seed):
    draw = random.Random(seed)
    kind = ("whole", "twice", "contrary", "cut", "value lost", "value of another kind")[seed % 6]
    ssv2 = seed % 2 == 0
    names = [f"{1000 + n}" for n in range(16)]
    touched(tmp_path, [f"{name}.mp4" for name in names])
    key, field = ("id", "template") if ssv2 else ("vid_name", "label")
    values: list[Any] = [NAMES[n % 4] if ssv2 else n % 4 for n in range(16)]
    entries = [{key: name, field: value, "more": [1]} for name, value in zip(names, values)]
    draw.shuffle(entries)
    whole = {entry[key]: entry[field] if ssv2 else NAMES[entry[field]] for entry in entries}
    again = [dict(entry) for entry in draw.sample(entries, 4)] if kind in ("twice", "contrary") else []
    if kind == "contrary":
        again[0][field] = next(value for value in values if value != again[0][field])
    elif kind == "value lost":
        del draw.choice(entries)[draw.choice((key, field))]
    elif kind == "value of another kind":
        draw.choice(entries)[draw.choice((key, field))] = draw.choice((None, True, [1, 2], {"a": 1}, 0.5))
    elif kind == "whole" and not ssv2:
        for entry in entries:
            entry[field] = draw.choice((entry[field], float(entry[field]), str(entry[field])))
    text = json.dumps(entries + again, indent=draw.choice((None, 2)), ensure_ascii=draw.random() < 0.5)
    data = text.replace("\n", draw.choice(ENDS)).encode(draw.choice(ENCODINGS))
    if kind == "cut":
        data = data[: draw.randrange(2, len(data) - 2)]
    folder = tmp_path if ssv2 else tmp_path / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_bytes(data)
    if ssv2:
        (folder / "labels.json").write_text(json.dumps({name: str(n) for n, name in enumerate(NAMES)}))
    else:
        (folder / "vocab.json").write_text(json.dumps(NAMES))
    found = outcome("ssv2" if ssv2 else "diving48", tmp_path)
    if kind in ("whole", "twice"):
        assert found == (16, len(again), whole)
    else:
        assert isinstance(found, str), found
        assert "train.json" in found


@pytest.mark.parametrize("seed", range(50))
def test_tars(tmp_path, seed):
    draw = random.Random(seed)
    kind = ("whole", "twice", "contrary", "cut", "label lost", "several labels")[seed % 6]
    as_json, numbers = draw.random() < 0.5, draw.random() < 0.5
    labels = {f"clip{n:04d}": str(n % 4) if numbers else NAMES[n % 4] for n in range(16)}
    again = draw.sample(sorted(labels), 3) if kind in ("twice", "contrary") else []
    members: list[list[tuple[str, bytes]]] = [[], []]

    def add(shard: int, key: str, label: Any) -> None:
        members[shard].append((f"{key}.mp4", f"the video of {key}".encode()))
        if label is not None:
            text = json.dumps({"label": label}) if as_json else str(label)
            data = (text + draw.choice(("", "\n", "\r\n"))).encode(draw.choice(ENCODINGS))
            members[shard].append((f"{key}.{'json' if as_json else 'cls'}", data))

    odd = draw.choice(sorted(labels))
    for key, label in labels.items():
        wrong = {"label lost": None, "several labels": [0, 1] if as_json else "0\n1"}
        add(0, key, wrong[kind] if key == odd and kind in wrong else label)
    for key in again:
        other = next(label for label in labels.values() if label != labels[key])
        add(1, key, other if kind == "contrary" and key == again[0] else labels[key])
    for number, files in enumerate(members):
        if files:
            with tarfile.open(tmp_path / f"train-{number:06d}.tar", "w") as archive:
                for name, data in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    if kind == "cut":
        file = tmp_path / "train-000000.tar"
        end = 512 * (2 * len(members[0]))  # a header and a block of content each
        file.write_bytes(file.read_bytes()[: draw.randrange(1, end)])
    found = outcome("webdataset", tmp_path)
    if kind in ("whole", "twice"):
        assert found == (16, len(again), labels)
    else:
        assert isinstance(found, str), found
        assert "train" in found
