"""`--head text` from end to end: trained on one data set, scored on another, interpolated with the frozen weights."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from aim_fast.training.run import load_run
from tests.models.small_trunks import local_tokenizer

TRAIN = ("--model", "aim_vit_demo", "--head", "text", "--frames", 4, "--batch-size", 8, "--quiet")


@pytest.fixture(scope="session")
def other_set(tmp_path_factory, motion_set):
    """Six of the clips as class folders, under names that no training has seen."""
    root = tmp_path_factory.mktemp("other")
    videos = sorted((motion_set / "20bn-something-something-v2").glob("*.webm"))[:12]
    for number, video in enumerate(videos):
        name = ("swimming", "RidingABike", "eating soup")[number % 3]
        folder = root / ("train" if number < 6 else "val") / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, motion_set, towers):
    from aim_fast.cli import main

    folder = tmp_path_factory.mktemp("text") / "run"
    options = ("train", "--dataset", "ssv2", "--data-root", motion_set, "--weights", towers, *TRAIN)
    with pytest.raises(SystemExit) as caught:
        main(
            [
                str(option)
                for option in (*options, "--lr", 0.01, "--epochs", 1, "--warmup-epochs", 0, "--output", folder)
            ]
        )
    assert not caught.value.code
    return folder


def scores(aim_fast, run, *options):
    status, out, err = aim_fast("eval", run, *options, "--json", "-")
    assert status == 0, err
    return json.loads(out)


def test_a_run_keeps_adapters_alone_and_opens_again(run, motion_set, aim_fast):
    with safe_open(run / "checkpoints" / "best" / "adapters.safetensors", "pt") as file:
        names = set(file.keys())
        options = json.loads(file.metadata()["options"])
    assert not any(name.startswith(("text.", "proj", "fc_cls")) for name in names)
    assert options["head"] == "text"
    assert options["templates"][0] == "a video of a person {}."
    assert scores(aim_fast, run)["videos"] == 16


def test_other_classes_are_scored_and_predicted(run, other_set, aim_fast):
    status, out, err = aim_fast("eval", run, "--dataset", "folder", "--data-root", other_set, "--json", "-")
    assert status == 0, err
    assert "zero-shot: 3 of 3 classes were not trained on" in err
    report = json.loads(out)
    assert [row["class"] for row in report["classes"]] == ["RidingABike", "eating soup", "swimming"]
    assert report["videos"] == 6


def test_interpolation_goes_from_frozen_clip_to_the_trained_weights(
    run, motion_set, other_set, towers, aim_fast, tmp_path
):
    """Share 0 is CLIP as it was before any training, share 1 the run itself; between them every branch is scaled."""
    where = ("--dataset", "folder", "--data-root", other_set)
    options = ("train", "--dataset", "ssv2", "--data-root", motion_set, "--weights", towers, *TRAIN)
    assert aim_fast(*options, "--epochs", 0, "--seed", 7, "--output", tmp_path / "frozen")[0] == 0
    frozen, trained = (scores(aim_fast, folder, *where) for folder in (tmp_path / "frozen", run))
    ends = [scores(aim_fast, run, *where, "--wise-ft", share) for share in (0, 1)]
    assert "weights 0 adapted + 1 frozen" in ends[0]["protocol"]
    assert ends[0]["loss"] == pytest.approx(frozen["loss"], rel=1e-6)
    assert ends[1]["loss"] == trained["loss"] != pytest.approx(frozen["loss"], rel=1e-3)
    half, whole = (dict(load_run(run, "cpu", wise_ft=share).model.named_parameters()) for share in (0.5, 1.0))
    for name in ("temporal_embedding", "transformer.resblocks.0.T_Adapter.D_fc2.weight"):
        torch.testing.assert_close(half[name], whole[name] / 2)
    hidden = "transformer.resblocks.0.S_Adapter.D_fc1.weight"
    assert torch.equal(half[hidden], whole[hidden])
    torch.testing.assert_close(half["ln_post.weight"], (1 + whole["ln_post.weight"]) / 2)


def test_a_text_head_passes_through_a_single_file(run, other_set, aim_fast, tmp_path):
    where = ("--dataset", "folder", "--data-root", other_set)
    assert aim_fast("convert", run, tmp_path / "one.safetensors")[0] == 0
    assert aim_fast("convert", tmp_path / "one.safetensors", tmp_path / "again")[0] == 0
    losses = [
        scores(aim_fast, model, *where)["loss"] for model in (run, tmp_path / "one.safetensors", tmp_path / "again")
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


@pytest.fixture
def bad(motion_set, towers, tmp_path, other_set):
    """Options of a training run, and of what is wrong with it by name."""
    tower = {name: tensor for name, tensor in torch.load(towers).items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "tower.pt")
    (tmp_path / "long.txt").write_text("a {} " + "far " * 90)
    numbered = tmp_path / "numbered"
    numbered.mkdir()
    for number, video in enumerate(sorted((motion_set / "20bn-something-something-v2").glob("*.webm"))[:4]):
        with (numbered / ("train.csv" if number < 2 else "val.csv")).open("a") as file:
            file.write(f"{video} {number % 2}\n")
    return {
        "numbers": ("--dataset", "list", "--data-root", numbered),
        "tower": ("--weights", tmp_path / "tower.pt"),
        "long": ("--templates", tmp_path / "long.txt"),
        "model": ("--model", "aim_vit_imagenet_demo"),
        "linear": ("--head", "linear", "--templates", tmp_path / "long.txt"),
        "head": ("--head", "txt"),
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("numbers", "a text head reads the names of classes, and 2 of 2 have none: 0, 1"),
        ("tower", "holds no CLIP text tower"),
        ("long", "is too long"),
        ("model", "has no text head, for its trunk has no CLIP text tower: take --head linear"),
        ("linear", "takes no --templates"),
        ("head", "'txt' must be one of linear, text"),
    ],
)
def test_what_a_text_head_cannot_do_is_one_line(kind, message, bad, motion_set, towers, aim_fast, tmp_path):
    options = ("train", "--dataset", "ssv2", "--data-root", motion_set, "--weights", towers, *TRAIN)
    status, _, err = aim_fast(*options, *bad[kind], "--output", tmp_path / "run")
    assert status == 2
    assert message in err
    assert err.count("error:") == 1
    assert not (tmp_path / "run").exists()


def test_wise_ft_is_refused_without_frozen_weights(run, trained, aim_fast, tmp_path):
    for arguments, message in (
        ((trained, "--wise-ft", 0.5), "--wise-ft needs a text head"),
        ((run, "--wise-ft", 1.5), "--wise-ft 1.5 must be from 0"),
    ):
        status, _, err = aim_fast("eval", *arguments)
        assert status == 2
        assert message in err
    status, _, err = aim_fast("convert", run, tmp_path / "text.pth")
    assert status == 2
    assert "the published names know no text head" in err


@pytest.fixture(scope="module", params=["clips", "hubs"])
def sigmoid_model(request, tmp_path_factory):
    """A name of open_clip's for a small SigLIP-like model with a trunk of timm's, and a file of its weights.

    It reads texts by CLIP's tokenizer, or by one as the hub has it, which lies beside the weights.
    """
    import open_clip

    folder = tmp_path_factory.mktemp("sigmoid")
    vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    text = {"width": 64, "heads": 2, "layers": 1, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    if request.param == "hubs":
        local_tokenizer(folder)
        text |= {"hf_tokenizer_name": "nowhere/of-that-name", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    name = f"test-sigmoid-{request.param}"
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(name).state_dict(), folder / "clip.pt")
    return f"open_clip:{name}", folder / "clip.pt"


def test_a_sigmoid_model_with_a_trunk_of_timms_is_trained_evaluated_and_predicted_with(
    sigmoid_model, motion_set, other_set, aim_fast, tmp_path
):
    trunk, weights = sigmoid_model
    options = ("--trunk", trunk, "--weights", weights, "--head", "text", "--img-size", 48, "--epochs", 1, "--quiet")
    options += ("--frames", 2, "--batch-size", 8, "--warmup-epochs", 0, "--output", tmp_path / "run")
    status, _, err = aim_fast("train", "--dataset", "ssv2", "--data-root", motion_set, *options)
    assert status == 0, err
    with safe_open(tmp_path / "run" / "checkpoints" / "best" / "adapters.safetensors", "pt") as file:
        assert not any(name.startswith(("text.", "proj", "fc_cls")) for name in file.keys())  # noqa: SIM118
        assert json.loads(file.metadata()["options"])["text_model"] == trunk.removeprefix("open_clip:")
    assert scores(aim_fast, tmp_path / "run")["videos"] == 16
    model = load_run(tmp_path / "run").model
    assert model.text.logit_bias.item() == -10
    first, last = (scores(aim_fast, tmp_path / "run", "--wise-ft", share)["loss"] for share in (0, 1))
    assert first != last == scores(aim_fast, tmp_path / "run")["loss"]
    names = tmp_path / "names.txt"
    names.write_text("swimming\nRidingABike\n")
    video = next(other_set.glob("val/*/*.webm"))
    status, out, err = aim_fast("predict", tmp_path / "run", video, "--class-names", names, "--json")
    assert status == 0, err
    assert {row["label"] for row in json.loads(out)[0]["predictions"]} == {"swimming", "RidingABike"}
    for source, target in (("run", "whole.safetensors"), ("whole.safetensors", "again")):
        status, out, err = aim_fast("convert", tmp_path / source, tmp_path / target)
        assert status == 0, err
    assert ("hubs" in trunk) == (tmp_path / "again" / "tokenizer.json").is_file()
    first, *others = (
        json.loads(aim_fast("predict", source, video, "--class-names", names, "--json")[1])
        for source in (tmp_path / "run", tmp_path / "whole.safetensors", tmp_path / "again")
    )
    assert others == [first, first]
    if "hubs" in trunk:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "tokenizer.json").write_text("{}")
        status, _, err = aim_fast("convert", tmp_path / "run", tmp_path / "other" / "whole.safetensors")
        assert status == 2
        assert "tokenizer.json is another" in err
        assert not (tmp_path / "other" / "whole.safetensors").exists()


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP2", "EVA02-B-16", "ViT-L-14-CLIPA"])
def test_a_model_with_a_text_head_has_all_of_open_clips_parameters_beside_what_trains(name, aim_fast):
    import open_clip

    options = ("--head", "text", "--frames", 8, "--dataset", "kinetics400", "--json")
    status, out, err = aim_fast("models", f"open_clip:{name}", *options)
    assert status == 0, err
    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        theirs = sum(parameter.numel() for parameter in kind(**config).parameters())
    width = config["vision_cfg"].get("width", 768)
    row = json.loads(out)[0]
    assert row["params"] == theirs + row["trainable"] - 2 * width  # the last norm is among both
