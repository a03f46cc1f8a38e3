"""Exports of labelling tools: rows in are rows used and rows named; several labels and hostile files are one line.

Files in ``labelling_tools`` were written by the tools' own libraries: label_studio_sdk 2.1.2 (JSON-MIN, CSV and TSV, of
a project in the JSON that its server exports), datumaro 1.13.12 (CVAT for images) and voxel51-eta 0.17.0 (FiftyOne's
manifest and labels).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from aim_fast.data.formats import read_dataset
from aim_fast.data.index.indexing import load_or_build_index
from aim_fast.data.index.splits import same_classes
from aim_fast.errors import DataError

SAMPLES = Path(__file__).parent / "labelling_tools"
ANIMALS = ("opossum_snow", "fox_rain", "hare_field", "owl_night", "deer_road", "heron_lake")
LABELS = dict(zip(ANIMALS, ("Blurry", "Sharp", "Blurry", "Sharp", "Sharp", "Blurry")))


def laid_out(root: Path, names, *files: str) -> Path:
    """``root`` with an empty video a name, and samples."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for file in files:
        shutil.copy(SAMPLES / file, root)
    return root


def outcome(dataset: str, root: Path) -> tuple[dict[str, str], str]:
    """Class by the stem of each video of both splits, and what is said beside them."""
    found: dict[str, str] = {}
    said = ""
    for split in ("train", "validation"):
        listing = read_dataset(dataset, root, split)
        assert all(Path(clip.path).exists() for clip in listing.clips)
        stems = {Path(clip.path).stem: listing.classes[clip.label] for clip in listing.clips}
        assert len(stems) == len(listing.clips)
        assert not stems.keys() & found.keys()
        found |= stems
        if split == "train":
            said = "; ".join((*listing.notes, *listing.gaps().lines))
    assert same_classes(dataset, root) == sorted(set(found.values()))
    return found, said


@pytest.mark.parametrize("file", ["labelstudio.json", "labelstudio_min.json", "labelstudio.csv", "labelstudio.tsv"])
@pytest.mark.parametrize("uploaded", [False, True], ids=["own names", "as uploaded"])
def test_each_export_of_label_studio_is_read_whole(tmp_path, file, uploaded):
    names = [f"0a1b2c3{n}-{name}.mp4" if uploaded else f"clips/{name}.mp4" for n, name in enumerate(ANIMALS)]
    root = laid_out(tmp_path / "data", names, file)
    found, said = outcome("labelstudio", root)
    assert {stem.partition("-")[2] or stem: name for stem, name in found.items()} == LABELS
    skipped = "passed over: videos without a label: 1, /data/upload/83/0a1b2c39-skunk.mp4 (labelstudio.json task 7)"
    assert (skipped in said) == (file == "labelstudio.json")  # the others leave out what was skipped
    assert outcome("labelstudio", root / file)[0] == found  # the file itself is a root


@pytest.mark.parametrize("file", ["labelstudio_several_min.json", "labelstudio_several.csv"])
def test_several_choices_are_refused(tmp_path, file):
    root = laid_out(tmp_path, [f"{name}.mp4" for name in ANIMALS], file)
    with pytest.raises(DataError, match=r"1 video has several labels, .*: 'Blurry' and 'Sharp'; leave one a video"):
        read_dataset("labelstudio", root, "train")


def task(number: int, address: str, *choices: str, **data: str) -> dict:
    result = [{"from_name": "choice", "to_name": "video", "type": "choices", "value": {"choices": list(choices)}}]
    return {"id": number, "data": {"video": address, **data}, "annotations": [{"result": result}]}


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/01234567-a clip.mp4",
        "/data/local-files/?d=set%201/a%20clip.mp4",
        "s3://bucket/set 1/a clip.mp4",
        "https://bucket.example/set%201/a%20clip.mp4?X-Amz-Signature=0f&X-Amz-Date=2026",
        "/tasks/1/resolve/?fileuri=czM6Ly9idWNrZXQvc2V0IDEvYSBjbGlwLm1wNA==",
        "<video src='https://bucket.example/a%20clip.mp4' width='100%'></video>",
        "C:\\recordings\\set 1\\a clip.mp4",
        "/recordings/set 1/a clip.avi",
    ],
)
def test_a_video_is_found_by_the_end_of_any_address(tmp_path, address):
    root = laid_out(tmp_path, ["set 1/a clip.mp4", "other.mp4"])
    tasks = [task(1, address, "a", split="train"), task(2, "other.mp4", "b", split="val")]
    (root / "project.json").write_text(json.dumps(tasks))
    assert [clip.path for clip in read_dataset("labelstudio", root, "train").clips] == [str(root / "set 1/a clip.mp4")]
    assert [clip.label for clip in read_dataset("labelstudio", root, "validation").clips] == [1]


def test_videos_of_one_name_are_told_by_their_folders_or_refused(tmp_path):
    root = laid_out(tmp_path, ["x/1.mp4", "y/1.mp4"])
    tasks = [task(1, "s3://b/x/1.mp4", "a", split="train"), task(2, "s3://b/y/1.mp4", "b", split="train")]
    (root / "project.json").write_text(json.dumps(tasks))
    assert [Path(clip.path).parent.name for clip in read_dataset("labelstudio", root, "train").clips] == ["x", "y"]
    (root / "project.json").write_text(json.dumps([task(1, "1.mp4", "a")]))
    with pytest.raises(DataError, match=r"project.json task 1 names '1.mp4', which may be .*x/1.mp4 or .*y/1.mp4"):
        read_dataset("labelstudio", root, "train")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task(1, "a.mp4", "x"), task(2, "a.mp4", "y")], "1 video has two labels"),
        ([task(1, "a.mp4", "x", other="b.mp4")], "has several videos"),
        ([{"id": 1, "data": {"video": "a.mp4"}, "annotations": "none"}], "no export of Label Studio"),
        ([task(1, "a.mp4")], r"no train clips in .*, where all are videos without a label: 1, a.mp4 \("),
        ([task(1, "a.mp4", "x"), {"id": 2, "data": {"video": "b.mp4"}, "annotations": None}], "entry 1 is no task of"),
        ([task(1, "a.mp4", "x"), "b.mp4", task(3, "b.mp4", "y")], "entry 1 is no task of"),
        ([task(1, "a\0.mp4", "x")], "which no file can be named"),
    ],
)
def test_tasks_that_cannot_be_read_are_one_line(tmp_path, tasks, said):
    root = laid_out(tmp_path, ["a.mp4", "b.mp4"])
    (root / "project.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=said) as caught:
        read_dataset("labelstudio", root, "train")
    assert "\n" not in str(caught.value)


def test_a_video_of_two_labels_is_not_divided_over_two_splits(tmp_path):
    """Three videos a class, so that the one of both would be trained on as one and validated on as the other."""
    root = laid_out(tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4"])
    tasks = [task(n, f"{name}.mp4", label) for n, (name, label) in enumerate(("ax", "bx", "ay", "cy", "dy"))]
    (root / "project.json").write_text(json.dumps(tasks))
    for split in ("train", "validation"):
        with pytest.raises(
            DataError, match=r"1 video has two labels, a.mp4 \(project.json task 0 and .* 2: 'x' and 'y'"
        ):
            read_dataset("labelstudio", root, split)


def test_tasks_of_two_projects_may_have_one_number(tmp_path):
    root = laid_out(tmp_path, ["a.mp4", "b.mp4"])
    tasks = [task(1, "a.mp4", "x", split="train"), task(1, "b.mp4", "y", split="train")]
    (root / "both.json").write_text(json.dumps(tasks))
    assert [Path(clip.path).name for clip in read_dataset("labelstudio", root, "train").clips] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(("choices", "label"), [("run", "run"), (5, "5"), (["run"], "run"), (None, None)])
def test_a_choice_that_is_no_list_is_one_word(tmp_path, choices, label):
    root = laid_out(tmp_path, ["a.mp4", "b.mp4"])
    odd = task(2, "b.mp4", split="train")
    odd["annotations"] = [{"result": [{"from_name": "choice", "value": {"choices": choices}}]}, {"result": 3}]
    (root / "project.json").write_text(json.dumps([task(1, "a.mp4", "x", split="train"), odd]))
    assert read_dataset("labelstudio", root, "train").classes == sorted(filter(None, ["x", label]))


def test_names_as_in_an_address_are_the_files(tmp_path):
    names = ["a b.mp4", "c+.mp4", "100%.mp4", "v/d+1.mp4", "e%20.mp4"]
    root = laid_out(tmp_path, names)
    written = ["a%20b.mp4", "C:\\clips\\c%2B.mp4", "100%.mp4", "/data/local-files/?d=v/d+1.mp4", "e%20.mp4"]
    (root / "project.json").write_text(
        json.dumps([task(n, name, "x", split="train") for n, name in enumerate(written)])
    )
    assert [clip.path for clip in read_dataset("labelstudio", root, "train").clips] == [str(root / n) for n in names]


def test_two_controls_leave_open_which_is_the_class(tmp_path):
    root = laid_out(tmp_path, ["a.mp4"])
    both = task(1, "a.mp4", "x")
    both["annotations"][0]["result"].append({"from_name": "mood", "type": "choices", "value": {"choices": ["y"]}})
    (root / "project.json").write_text(json.dumps([both]))
    with pytest.raises(DataError, match="'choice', 'mood' each have words beside a video: which is the class"):
        read_dataset("labelstudio", root, "train")


@pytest.mark.parametrize("mark", ["/", "\\"], ids=["as CVAT writes them", "of Windows"])
def test_tags_of_cvat_on_pictures_in_folders_are_their_folders_classes(mark, tmp_path):
    pictures = [f"images/clip_{clip}/00000{frame}.jpg" for clip in (1, 2, 3, 4) for frame in (1, 2, 3)]
    root = laid_out(tmp_path, pictures, "cvat_images.xml")
    text = (root / "cvat_images.xml").read_text()
    (root / "cvat_images.xml").write_text(re.sub(r'(?<= name=")[^"]*', lambda name: name[0].replace("/", mark), text))
    found, _ = outcome("cvat", root)
    assert found == {"clip_1": "jump", "clip_2": "run", "clip_3": "jump", "clip_4": "run"}


HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'


def project(tags: str) -> str:
    """CVAT for images of a project of two videos, in the form of CVAT's dump_as_cvat_annotation."""
    tasks = "".join(
        f"<task><id>{number}</id><name>take {number}</name><size>2</size><mode>interpolation</mode><subset>{subset}"
        f"</subset><source>{name}</source></task>"
        for number, subset, name in ((7, "Train", "one.mp4"), (8, "Validation", "two.mp4"), (9, "Train", "three.mp4"))
    )
    frames = "".join(
        f'<image id="{frame}" name="frame_00000{frame}" subset="{subset}" task_id="{number}" width="8" height="8">'
        f"{tags if frame and number < 9 else ''}</image>"
        for number, subset in ((7, "Train"), (8, "Validation"), (9, "Train"))
        for frame in (0, 1)
    )
    return f"{HEAD}<meta><project><id>3</id><name>p</name><tasks>{tasks}</tasks></project></meta>{frames}</annotations>"


def test_a_project_of_cvat_has_its_videos_and_splits_by_task(tmp_path):
    root = laid_out(tmp_path, ["videos/one.mp4", "videos/two.mp4", "videos/three.mp4"])
    (root / "annotations.xml").write_text(project('<tag label="wave" source="manual"></tag>'))
    found, said = outcome("cvat", root)
    assert found == {"one": "wave", "two": "wave"}
    assert "videos without a tag (export them as CVAT for images" in said
    assert "three.mp4" in said
    (root / "annotations.xml").write_text(project('<tag label="wave"/><tag label="bow"/>'))
    with pytest.raises(DataError, match="2 videos have several labels, annotations.xml one.mp4: 'bow' and 'wave'"):
        read_dataset("cvat", root, "train")


def interpolation(source: str, *labels: str) -> str:
    """CVAT for video of one task, after the example of its documentation."""
    box = '<box frame="0" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>'
    tracks = "".join(f'<track id="{n}" label="{label}" source="manual">{box}</track>' for n, label in enumerate(labels))
    meta = f"<meta><task><id>5</id><name>t</name><mode>interpolation</mode><source>{source}</source></task></meta>"
    return f"{HEAD}{meta}{tracks}</annotations>"


def test_a_file_a_video_of_cvat_for_video_has_the_label_of_its_tracks(tmp_path):
    root = laid_out(tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4"])
    for name, label in (("a", "car"), ("b", "dog"), ("c", "car"), ("d", "dog")):
        (root / f"task_{name}.xml").write_text(interpolation(f"{name}.mp4", label, label))
    found, said = outcome("cvat", root)
    assert found == {"a": "car", "b": "dog", "c": "car", "d": "dog"}
    assert "task_a.xml has no tags: the labels of its tracks are taken" in said
    (root / "task_a.xml").write_text(interpolation("a.mp4", "car", "dog"))
    with pytest.raises(DataError, match="several labels"):
        read_dataset("cvat", root, "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotations><version>1.1</version>", "is not valid XML at line 1"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotations><version>&a;</version></annotations>', "defines entities"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotations>&a;</annotations>', "defines entities"),
        (f'{HEAD}<image id="0" name="frame_0"><tag label="a"/></image></annotations>', "does not say which video"),
        (f"{HEAD}<meta/></annotations>", "no XML of CVAT"),
        ("<svg/>", "no XML of CVAT"),
        ("<a>" * 20_000, "is not valid XML"),
    ],
)
def test_xml_that_is_no_export_is_one_line(tmp_path, text, said):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_dataset("cvat", tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_the_manifest_of_fiftyone_and_its_labels(tmp_path):
    root = tmp_path / "export"
    shutil.copytree(SAMPLES / "fiftyone_labels", root)
    laid_out(root, [f"data/{name}.mp4" for name in ("reach", "carry", "drop", "slide", "hold")])
    found, said = outcome("fiftyone", root)
    assert found == {"reach": "lift", "carry": "push", "drop": "lift", "slide": "push"}
    assert "passed over: videos without a label: 1, data/hold.mp4 (manifest.json entry 4)" in said


def sample(name: str, label: str | None, *tags: str, **fields: dict) -> dict:
    """As FiftyOneDatasetExporter writes one, by its documentation."""
    truth = label and {"_id": {"$oid": "65f0"}, "_cls": "Classification", "tags": [], "attributes": {}, "label": label}
    return {"_id": {"$oid": "65f1"}, "filepath": f"data/{name}", "tags": list(tags), "_media_type": "video",
            "ground_truth": truth, **fields}  # fmt: skip


def test_samples_of_fiftyone_have_their_splits_in_their_tags(tmp_path):
    root = laid_out(tmp_path, ["data/a.mp4", "data/b.mp4", "data/c.mp4", "data/d.mp4"])
    (root / "metadata.json").write_text("{}")
    guess = {"_cls": "Classification", "label": "wrong"}
    samples = [sample("a.mp4", "lift", "train", prediction=guess), sample("b.mp4", "push", "validation"),
               sample("c.mp4", None, "train"), sample("d.mp4", "lift")]  # fmt: skip
    (root / "samples.json").write_text(json.dumps({"samples": samples}))
    listing = read_dataset("fiftyone", root, "train")
    assert [(Path(clip.path).name, listing.classes[clip.label]) for clip in listing.clips] == [("a.mp4", "lift")]
    said = "; ".join(listing.gaps().lines)
    assert "videos without a label: 1, data/c.mp4" in said
    assert "videos of no split: 1, data/d.mp4" in said
    assert [clip.label for clip in read_dataset("fiftyone", root, "validation").clips] == [1]
    several = {"_cls": "Classifications", "classifications": [guess, {"label": "lift"}]}
    (root / "samples.json").write_text(
        json.dumps({"samples": [sample("a.mp4", None, ground_truth=None) | {"x": several}]})
    )
    with pytest.raises(DataError, match="several labels"):
        read_dataset("fiftyone", root, "train")


def test_samples_of_fiftyone_that_are_none_make_no_class_of_their_folder(tmp_path):
    root = laid_out(tmp_path, ["data/a.mp4", "data/b.mp4"])
    for samples, said in (
        ([], "no sample in the export"),
        ([sample("a.mp4", None)], "where all are videos without a label: 1, data/a.mp4"),
    ):
        (root / "samples.json").write_text(json.dumps({"samples": samples}))
        with pytest.raises(DataError, match=said):
            read_dataset("fiftyone", root, "train")


def test_a_tree_of_fiftyone_leaves_out_its_unlabelled_folder(tmp_path):
    root = laid_out(tmp_path, ["lift/a.mp4", "lift/b.mp4", "push/c.mp4", "push/d-2.mp4", "_unlabeled/e.mp4"])
    found, said = outcome("fiftyone", root)
    assert found == {"a": "lift", "b": "lift", "c": "push", "d-2": "push"}
    assert "videos without a label: 1, " in said


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"index": 3}, "holds no index of videos"),
        ({"index": [{"data": "data/a.mp4"}]}, "entry 0 names no data and labels"),
        ({"index": [{"data": "data/a.mp4", "labels": "../../x.json"}]}, "which is outside of"),
        ({"index": [{"data": "data/a.mp4", "labels": "labels/none.json"}]}, "does not exist"),
    ],
)
def test_manifests_that_cannot_be_read_are_one_line(tmp_path, manifest, said):
    laid_out(tmp_path, ["data/a.mp4", "labels/a.json"])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=said):
        read_dataset("fiftyone", tmp_path, "train")


def test_a_real_clip_goes_from_an_export_into_the_index(tmp_path, videos):
    tasks = []
    for number, path in enumerate(list(videos.values())[:4]):
        shutil.copy(path, tmp_path)
        tasks.append(task(number, f"/data/upload/1/0123456{number}-{path.name}", "ab"[number % 2], split="train"))
    (tmp_path / "project-1-at-2026-03-09.json").write_text(json.dumps(tasks))
    index = load_or_build_index("labelstudio", tmp_path, "train", workers=1)
    assert len(index.healthy) == 4
    assert index.classes == ["a", "b"]
