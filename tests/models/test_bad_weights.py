"""Weights that ``load_weights`` refuses, each in one line, and tags that cannot be fetched."""

import json
import random

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights
from tests.models.small_clips import assert_same_features, make_clip, small, write

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.mark.parametrize("source", [None, ""])
def test_no_weights_is_an_error_that_names_the_options(source):
    with pytest.raises(WeightsError, match=r"OpenAI CLIP .* open_clip tag .* safetensors .* AIM checkpoint, .* random"):
        load_weights(small(), source)


@pytest.mark.parametrize(
    ("vision", "looks"),
    [
        ({"width": 64}, "width 64, depth 2, patch 8, 32 px; the model is width 32, depth 2, patch 8, 32 px"),
        ({"layers": 3}, "width 32, depth 3, patch 8"),
        ({"patch_size": 16}, "width 32, depth 2, patch 16"),
    ],
)
def test_another_architecture_is_named_beside_the_asked_one(vision, looks, tmp_path):
    with pytest.raises(WeightsError, match=looks):
        load_weights(small(), write("state_dict", make_clip(**vision), tmp_path))


def test_every_missing_trunk_tensor_is_named_and_nothing_is_loaded(clip, tmp_path):
    gone = ["visual.ln_pre.weight", "visual.transformer.resblocks.1.mlp.c_fc.bias"]
    torch.save({n: t for n, t in clip.state_dict().items() if n not in gone}, tmp_path / "holes.pt")
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"missing ln_pre.weight, transformer.resblocks.1.mlp.c_fc.bias$"):
        load_weights(model, tmp_path / "holes.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_towers_with_other_parts_are_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match="has LayerScale, which AIM on a CLIP ViT has not"):
        load_weights(small(), write("state_dict", make_clip(ls_init_value=0.1), tmp_path))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["visual.layer1.0.conv1.weight", "visual.conv1.weight"], "looks like a ResNet"),
        (["vision_model.encoder.layers.0.mlp.fc1.weight"], "Hugging Face"),
        (["visual.trunk.blocks.0.attn.qkv.weight"], "names are those of timm"),
        (["transformer.resblocks.0.S_Adapter.D_fc1.weight", "fc_cls.bias"], "adapters without their trunk"),
        (["transformer.resblocks.0.adapter_pre_mlp.conv.weight", "fc_cls.bias"], "ST-Adapter's bottlenecks without"),
        (["transformer.resblocks.0.lora.q_down", "fc_cls.bias"], "LoRA's changes without their trunk"),
        (["side.cls_token", "fc_cls.bias"], "a network beside a trunk without that"),
        (["fc_cls.bias"], "a classifier without its trunk"),
        (["a", "b"], "first names are a, b"),
    ],
)
def test_files_without_a_clip_vit_say_what_they_hold(names, hint, tmp_path):
    torch.save({name: torch.zeros(2, 2) for name in names}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=hint):
        load_weights(small(), tmp_path / "other.pt")


class _Exploit:
    def __reduce__(self):
        return print, ("a weights file ran code",)


def _bad_file(kind, clip, folder):
    path = folder / "bad.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no weights file\n")
    elif kind == "json":
        path.write_text(json.dumps({"state": {"weights": [1, 2, 3]}}))
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "code":
        torch.save({"state_dict": {"conv1.weight": _Exploit()}}, path)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "numbers":
        torch.save({"a": 1, "b": [2.0]}, path)
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    elif kind != "missing":
        whole = write(kind.removeprefix("truncated_"), clip, folder).read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "is not a weights file"),
        ("json", "is not a weights file"),
        ("lfs", "Git LFS pointer"),
        ("code", r"holds Python objects \(print\)"),
        ("module", r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
        ("numbers", "holds no state dict"),
        ("list", "holds no state dict"),
        ("truncated_state_dict", "truncated"),
        ("truncated_legacy_pickle", "truncated"),
        ("truncated_safetensors", "truncated"),
        ("truncated_scripted", "truncated"),
    ],
)
def test_bad_files_are_one_line_and_run_no_code(kind, message, clip, tmp_path, capsys):
    path = _bad_file(kind, clip, tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(small(), path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["state_dict", "legacy_pickle", "safetensors", "scripted"])
def test_bytes_that_changed_anywhere_are_one_line_or_the_weights(kind, clip, tmp_path):
    """Whatever exception zip, pickle and torch have for it; what a file says of itself lies at its ends."""
    whole, draw, refusals = write(kind, clip, tmp_path).read_bytes(), random.Random(0), []
    path, model = tmp_path / "changed", small()
    for _ in range(80):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 2, 4))):
            place = draw.choice((draw.randrange(2, 4096), draw.randrange(2, len(whole)), -draw.randrange(1, 4096)))
            changed[place] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            load_weights(model, path)
        except WeightsError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert not [message for message in refusals if "\n" in message]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open_clip:ViT-B16/openai", "no pretrained model 'ViT-B16'.*did you mean 'ViT-B-16', '.*' or '.*'"),
        ("open_clip:vit-h14/x", "did you mean 'ViT-H-14'"),
        ("open_clip:RN50x3/openai", "did you mean 'ViT|known: (?!.*RN50)"),
        ("open_clip:ViT-B-16/opnai", "no tag 'opnai': did you mean 'openai'"),
        ("open_clip:ViT-B-16", "no tag ''"),
        ("https://example.org/ViT-B-16.pt", "does not exist: download it and give the file"),
    ],
)
def test_unknown_tags_name_the_nearest(source, message):
    with pytest.raises(WeightsError, match=message):
        load_weights(small(), source)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline Hugging Face cache; call it to put a CLIP in the place of a repository's file."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repository, clip):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True)
        save_file(clip.state_dict(), folder / "snapshots" / "abc" / "open_clip_model.safetensors")

    return put


@pytest.mark.parametrize(
    ("tag", "repository", "activation"),
    [
        ("openai", "timm/vit_base_patch16_clip_224.openai", "quick_gelu"),
        ("laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "gelu"),
    ],
)
def test_tag_in_the_cache_is_loaded_with_its_activation(tag, repository, activation, hub):
    clip = make_clip(quick_gelu=activation == "quick_gelu")
    hub(repository, clip)
    model = small()
    report = load_weights(model, f"open_clip:ViT-B-16/{tag}")
    assert report.kind == "clip"
    assert model.activation == activation
    assert not any("does not say" in line for line in report.lines)
    assert_same_features(model, clip)


@pytest.mark.usefixtures("hub")
def test_tag_offline_says_how_to_pass_a_file():
    with pytest.raises(
        WeightsError, match=r"timm/vit_base_patch16_clip_224.openai elsewhere and pass the file"
    ) as caught:
        load_weights(small(), "open_clip:ViT-B-16/openai")
    assert "\n" not in str(caught.value)
