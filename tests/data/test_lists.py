"""Lists as other tools and editors write them: what is taken, with its labels, and what is refused by its line."""

from __future__ import annotations

import codecs
import csv
import re

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.errors import DataError

CLIPS = [(f"day {n % 2}/take_{n:02d}.mp4", n % 3) for n in range(9)]
NAMES = ("drink", "pour water", "wave")


def listed(root, split="train"):
    """(path below the root, class) of every clip."""
    listing = read_dataset("list", root, split)
    return [(clip.path.removeprefix(f"{root}/"), listing.classes[clip.label]) for clip in listing.clips]


def write(root, line, *, head="", ends="\n", name="train.txt", encoding="utf-8", mark=b""):
    text = head + "".join(line(path, n, i) + "\n" for i, (path, n) in enumerate(CLIPS))
    (root / name).write_bytes(mark + text.replace("\n", ends).encode(encoding))
    return root


EXPECTED = [(path, str(n)) for path, n in CLIPS]

WRITTEN = {
    "tabs": lambda p, n, i: f"{p}\t{n}",
    "semicolons": lambda p, n, i: f"{p};{n}",
    "bars": lambda p, n, i: f"{p}|{n}",
    "comma and blank": lambda p, n, i: f"{p}, {n}",
    "quoted path": lambda p, n, i: f'"{p}" {n}',
    "both quoted": lambda p, n, i: f'"{p}","{n}"',
    "single quotes": lambda p, n, i: f"'{p}' '{n}'",
    "trailing blanks": lambda p, n, i: f"  {p} {n} \t ",
    "trailing comma": lambda p, n, i: f"{p},{n},",
    "blank lines": lambda p, n, i: f"\n{p} {n}\n",
    "floats": lambda p, n, i: f"{p},{n}.0",
    "zeros": lambda p, n, i: f"{p} {n:03d}",
    "frames in a table": lambda p, n, i: f"{p},{40 + 7 * i},{n}",
    "frames behind blanks": lambda p, n, i: f"{p} {40 + 7 * i} {n}",
    "numbers of rows": lambda p, n, i: f"{i},{p},{n}",
    "numbers of rows behind blanks": lambda p, n, i: f"{i + 1} {p} {n}",
    "numbers of rows in quotes": lambda p, n, i: f'"{i + 1}" "{p}" {n}',
    "comments behind": lambda p, n, i: f"{p} {n}" + "  # checked" * (i == 4),
    "label first": lambda p, n, i: f"{n},{p}",
    "label first behind tabs": lambda p, n, i: f"{n}\t{p}",
    "of Windows": lambda p, n, i: f"{p} {n}\r",
}


@pytest.mark.parametrize("form", WRITTEN)
def test_lists_of_any_separators_quotes_and_columns(tmp_path, form):
    assert listed(write(tmp_path, WRITTEN[form])) == [(path, re.sub("^0+(?=.)", "", label)) for path, label in EXPECTED]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
def test_lists_of_any_encoding_and_line_ends(tmp_path, encoding, mark, ends):
    write(tmp_path, WRITTEN["semicolons"], encoding=encoding, mark=mark, ends=ends, head="file;label\n")
    assert listed(tmp_path) == EXPECTED


HEADS = {
    "path,label": (lambda p, n, i: f"{p},{n}", False),
    "Dateiname,Klasse": (lambda p, n, i: f"{p},{n}", True),
    "which video;what happens": (lambda p, n, i: f"{p};{n}", True),
    "clip category": (lambda p, n, i: f"{p} {n}", False),
    "fichier classe": (lambda p, n, i: f"{p} {n}", True),
    ",video,action": (lambda p, n, i: f"{i},{p},{n}", False),
    "Unnamed: 0,Pfad,Art": (lambda p, n, i: f"{i + 100},{p},{n}", True),
    "label,path": (lambda p, n, i: f"{n},{p}", False),
    "Datei,Bilder,Klasse": (lambda p, n, i: f"{p},{30 + i},{n}", True),
    "file_name\tnum_frames\tclass_id": (lambda p, n, i: f"{p}\t{3 + i % 2}\t{n}", False),
    "path,start,end,fps,label": (lambda p, n, i: f"{p},{i},{i + 4.5},25.0,{n}", False),
    "id,label,split,path": (lambda p, n, i: f"{77 * i},{n},train,{p}", False),
    "# made by hand\n// and again\n\npath,label": (lambda p, n, i: f"{p},{n}", False),
    "sep=;\npath;label": (lambda p, n, i: f"{p};{n}", False),
    "# take label": (lambda p, n, i: f"{p} {n}", False),
    "//path label": (lambda p, n, i: f"{p} {n}", False),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_heading_or_comment_is_no_clip_and_no_class(tmp_path, head):
    line, said = HEADS[head]
    write(tmp_path, line, head=head + "\n")
    assert listed(tmp_path) == EXPECTED
    notes = [note for note in read_dataset("list", tmp_path, "train").notes if "heading" in note]
    assert bool(notes) == said
    if head == "Datei,Bilder,Klasse":  # of words the columns are not sure
        return
    names = tmp_path / "names"
    names.mkdir()
    write(names, lambda p, n, i: line(p, f'"{NAMES[n]}"', i), head=head + "\n")
    assert listed(names) == [(path, NAMES[n]) for path, n in CLIPS]


def test_headings_of_lists_that_were_put_together_are_passed_over(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p},{n}" + "\nPfad,Art" * (i == 5), head="Pfad,Art\n")
    assert listed(tmp_path) == EXPECTED


def test_columns_of_validation_are_told_by_those_of_training(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p} {50 + i} {n}")
    (tmp_path / "val.txt").write_text("other/a.mp4 61 1\nother/b.mp4 63 1\n")
    assert listed(tmp_path, "validation") == [("other/a.mp4", "1"), ("other/b.mp4", "1")]


def test_frames_below_the_number_of_classes_are_told_by_the_folders_that_labels_follow(tmp_path):
    lines = [f"class{n}/v{i}.mp4 {20 + 7 * i} {n}\n" for n in range(60) for i in range(2)]
    (tmp_path / "train.txt").write_text("".join(lines))
    assert [label for _, label in listed(tmp_path)] == [str(n) for n in range(60) for _ in range(2)]


def test_frames_and_names_of_classes(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p} {31 + i} {NAMES[n]}")
    assert listed(tmp_path) == [(path, NAMES[n]) for path, n in CLIPS]
    write(tmp_path, lambda p, n, i: f"{p} {(100, 200, 400)[n]} m sprint")
    assert listed(tmp_path) == [(path, f"{(100, 200, 400)[n]} m sprint") for path, n in CLIPS]


def test_one_file_with_a_column_of_splits_serves_each(tmp_path):
    with (tmp_path / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "split", "class"])
        table.writerows([path, "val" if i > 5 else "train", NAMES[n]] for i, (path, n) in enumerate(CLIPS))
    counts = [len(read_dataset("list", tmp_path / "all.csv", split).clips) for split in ("train", "validation")]
    assert counts == [6, 3]


def test_paths_of_hash_marks_slashes_and_backslashes_that_are_there(tmp_path):
    for name in ("#1 take.mp4", "sub/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train.txt").write_text(f"#1 take.mp4 0\n/{tmp_path}/sub/b.mp4 1\n#2 take.mp4 2\nsub\\b.mp4 1\n")
    listing = read_dataset("list", tmp_path, "train")
    assert [clip.label for clip in listing.clips] == [0, 1]
    assert "1 of 3 entries" in listing.notes[-1]


def test_a_segment_of_a_video_is_said_to_be_the_whole(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p},{i},{i + 2},{n}", head="path,start_time,end_time,label\n")
    (note,) = read_dataset("list", tmp_path, "train").notes
    assert "starttime and endtime are not used: clips are whole videos" in note


def test_clips_that_are_commented_out_are_counted(tmp_path):
    write(tmp_path, lambda p, n, i: "# " * (i == 4) + f"{p} {n}")
    listing = read_dataset("list", tmp_path, "train")
    assert (len(listing.clips), listing.notes) == (8, ("train.txt: 1 clips are commented out",))


REFUSED = {
    "JSON lines": (lambda p, n, i: f'{{"path": "{p}", "label": {n}}}', r" holds JSON"),
    "scored labels": (lambda p, n, i: f"{p} a{n} 0.5;b{n} 0.25", r"line 1 is not 'path label'"),
    "several labels on some lines": (lambda p, n, i: f"{p} {n}" + " 2" * (i == 3), r"line 4 has 2 numbers"),
    "several labels on all": (lambda p, n, i: f"{p} {n} {(n + 1) % 3}", r"line 1 has '0, 1' beside the path"),
    "several labels by commas": (lambda p, n, i: f"{p} {n}" + ",1" * (i == 6), r"line 7 has 2 numbers"),
    "several labels in a cell": (lambda p, n, i: f'{p},"{n}{";1" if i == 2 else ""}"', r"line 3 has several labels"),
    "several names": (
        lambda p, n, i: f"{p} {('run', 'jump', 'run jump')[i % 3 if i > 2 else i % 2]}",
        r"line 6 has several labels",
    ),
    "several labels by hyphens": (lambda p, n, i: f"{p} {n}" + "-1" * (i == 4), r"line 5 has several labels"),
    "several labels by hyphens on all": (lambda p, n, i: f"{p} {n}-{n + 1}", r"line 1 has several labels.*'0-1'"),
    "several names by ampersands": (
        lambda p, n, i: f"{p} {('left', 'right', 'left&right')[i % 3 if i > 2 else i % 2]}",
        r"line 6 has several labels",
    ),
    "brackets": (lambda p, n, i: f'{p},"[{n}, 1]"', r"line 1 has several labels"),
    "boxes": (lambda p, n, i: f"{p} 0.1 0.2 0.7 0.9 {n}", r"line 1 has '0.1, 0.2, 0.7, 0.9, 0' beside"),
    "start, end and label": (lambda p, n, i: f"{p},{i},{i + 3},{n}", r"line 1 has .* beside the path: which"),
    "label and frames": (lambda p, n, i: f"{p} {n} {70 + i}", r"line 1 has '0, 70' beside the path: which"),
    "frames alone": (
        lambda p, n, i: f"{p},{70 + i}" if i else f"path,frames\n{p},70",
        r"line 2 has '70' beside the path",
    ),
    "numbers of rows alone": (lambda p, n, i: f"{i},{p}", r"line 1 has '0' beside the path"),
    "no label": (lambda p, n, i: p + f" {n}" * (i != 7), r"line 8 is not 'path label'"),
    "no label in a table": (lambda p, n, i: f"{p},{n if i != 7 else ''}", r"line 8 has no label"),
    "nan": (lambda p, n, i: f"{p},{f'{n}.0' if i != 2 else 'nan'}", r"line 3 has no label: 'nan'"),
    "paths alone": (lambda p, n, i: p, r"line 1 is not 'path label'"),
    "one word": (lambda p, n, i: f"{p} {n if i != 4 else 'wave'}", r"line 5 has another kind of label.*'wave'"),
    "a fraction": (lambda p, n, i: f"{p} {n if i != 4 else 1.5}", r"line 5 has another kind of label.*'1.5'"),
    "below nought": (lambda p, n, i: f"{p} {n if i != 5 else -1}", r"line 6 has label '-1'"),
    "far below nought": (lambda p, n, i: f"{p} {n if i != 5 else -7}", r"line 6 has a negative label"),
    "a sum at the end": (lambda p, n, i: f"{p} {n}" + "\nTotal 9" * (i == 8), r"line 10 is not 'path label'"),
    "a comment or a label": (lambda p, n, i: f"{p} {NAMES[n]}" + " # ?" * (i == 1), r"line 2 .*is it a comment"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_sure_is_refused_with_its_line(tmp_path, form):
    line, said = REFUSED[form]
    write(tmp_path, line)
    with pytest.raises(DataError, match=rf"train\.txt:? {said.strip()}") as error:
        read_dataset("list", tmp_path, "train")
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value) or "quotation marks" in str(error.value) or "none of the" in str(error.value)


def test_text_of_another_encoding_is_refused_with_its_line(tmp_path):
    (tmp_path / "train.txt").write_bytes("a.mp4 0\ncafé.mp4 1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8 text \(byte 11, line 2\)"):
        read_dataset("list", tmp_path, "train")


def test_labels_below_nought_are_unlabelled_clips_of_the_test_split(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p} {n}")
    (tmp_path / "test.txt").write_text("a.mp4 -1\nb.mp4 -1\n")
    assert [clip.label for clip in read_dataset("list", tmp_path, "test").clips] == [-1, -1]


def test_quoted_names_may_hold_other_names(tmp_path):
    names = ("run", "jump", "run jump")
    write(tmp_path, lambda p, n, i: f'{p} "{names[n]}"')
    assert listed(tmp_path) == [(path, names[n]) for path, n in CLIPS]


def test_of_two_lists_at_fault_that_of_training_is_named(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p} {n}" + "-1" * (i == 4))
    (tmp_path / "val.txt").write_text("a.mp4 0-1\n")
    with pytest.raises(DataError, match=r"train\.txt: line 5 has several labels"):
        read_dataset("list", tmp_path, "validation")
    write(tmp_path, lambda p, n, i: f"{p} {('push-up', 'push', 'up')[n]}")
    assert read_dataset("list", tmp_path, "train").classes == ["push", "push-up", "up"]


def test_names_that_may_be_several_labels_are_told(tmp_path):
    def notes(*names, head="path,label"):
        write(tmp_path, lambda p, n, i: f'{p},"{names[n]}"', head=head + "\n")
        listing = read_dataset("list", tmp_path, "train")
        assert listing.classes == sorted(names)
        return listing.notes

    assert "are the labels several each?" in notes("left, right", "right, up", "up, left")[0]
    assert notes("turn, left", "turn, right", "turn, up") == ()
    assert notes("left, right", "right, up", "up") == ()
    with pytest.raises(DataError, match=r"train\.txt: line 3 has several labels, as the heading says: 'left,right'"):
        notes("up", "left,right", "down", head="path,labels")
    (tmp_path / "classes.txt").write_text("down\nleft,right\nup\n")
    assert notes("up", "left,right", "down", head="path,labels") == ()


def test_names_that_differ_in_capitals_are_told(tmp_path):
    write(tmp_path, lambda p, n, i: f"{p} {('left', 'Left', 'up')[n]}")
    assert read_dataset("list", tmp_path, "train").notes == (
        "class names that differ in capitals alone: 'Left' and 'left'",
    )


@pytest.mark.parametrize("line", [lambda p, n: f"{p} {n}\n", lambda p, n: f"{p},{n}\n"])
@pytest.mark.parametrize("head", ["", "video_id,label\n"])
def test_paths_without_extension_are_those_of_the_videos_that_are_there(tmp_path, line, head):
    (tmp_path / "videos").mkdir()
    for number, extension in enumerate(("mp4", "AVI", "webm", "mkv")):
        (tmp_path / "videos" / f"take.{number}.{extension}").touch()
    (tmp_path / "videos" / "take.0.txt").touch()
    (tmp_path / "train.txt").write_text(head + "".join(line(f"videos/take.{number}", 0) for number in range(4)))
    found = ["videos/take.0.mp4", "videos/take.1.AVI", "videos/take.2.webm", "videos/take.3.mkv"]
    assert [path for path, _ in listed(tmp_path)] == found
    (tmp_path / "videos" / "take.2.mov").touch()
    with pytest.raises(DataError, match=r"line \d has no file 'videos/take\.2', but take\.2\.mov and take\.2\.webm"):
        read_dataset("list", tmp_path, "train")
    for file in (tmp_path / "videos").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train\.txt: line \d is not .*no file 'videos/take\.0' is there"):
        read_dataset("list", tmp_path, "train")
