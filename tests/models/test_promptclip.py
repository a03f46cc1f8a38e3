"""PromptCLIP: the published numbers, what trains, which names it takes, and what it costs."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.heads.tokens import TextTokens, spoken
from aim_fast.models.loading import load_weights, save_trunk, trunk_sha256
from aim_fast.models.registry import create_model

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 1,
    "num_heads": 1,
    "num_frames": 4,
    "output_dim": 32,
    "text_width": 64,
    "text_depth": 1,
    "temporal_heads": 4,
}
NAMES = ("brush_hair", "ApplyEyeMakeup", "push [something]")


def tiny(names=NAMES, **overrides):
    torch.manual_seed(0)
    return create_model("promptclip_b16", **{**TINY, "class_names": names, **overrides})


def assert_relative(got, truth, tolerance=1e-8):
    assert got.shape == truth.shape
    assert got.dtype == truth.dtype
    assert (got - truth).norm() <= tolerance * truth.norm()


@pytest.fixture(scope="module", params=["promptclip_tfm2", "promptclip_notfm"])
def golden(request):
    with safe_open(GOLDEN / f"{request.param}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    assert config["transformer_heads"] == config["transformer_width"] // 64
    model = create_model(
        "promptclip_b16",
        img_size=config["image_resolution"],
        patch_size=config["vision_patch_size"],
        embed_dim=config["vision_width"],
        depth=config["vision_layers"],
        num_heads=config["vision_width"] // 64,
        num_frames=config["num_frames"],
        num_classes=3,
        output_dim=config["embed_dim"],
        context_length=config["context_length"],
        vocab_size=config["vocab_size"],
        text_width=config["transformer_width"],
        text_depth=config["transformer_layers"],
        prompt_prefix=config["prefix"],
        prompt_postfix=config["postfix"],
        temporal_layers=config["tfm_layers"],
        temporal_heads=config["tfm_heads"],
        temperature=config["temperature"],
    ).double()
    ids = torch.stack([tensors[f"tokens/{name}"] for name in config["class_names"]])
    model.set_tokens(TextTokens(ids, ids.argmax(-1)))
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    unused = set(state) - set(model.state_dict())
    assert unused == (set() if config["tfm_layers"] else {"temporalEmbedding.weight"})
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model, tensors


def test_golden_outputs_and_every_gradient(golden):
    model, truth = golden
    model = copy.deepcopy(model)
    x = truth["input"].double().transpose(1, 2)
    features = model.forward_features(x)
    logits = model(x)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(F.normalize(model.class_features(), dim=-1), F.normalize(truth["text_features"], dim=-1))
    assert_relative(F.normalize(model.video_features(features), dim=-1), F.normalize(truth["video_features"], dim=-1))
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"])
    gradients = {name.removeprefix("grad/"): t for name, t in truth.items() if name.startswith("grad/")}
    assert gradients.keys() == dict(model.trainable_parameters()).keys()
    for name, parameter in model.trainable_parameters():
        assert_relative(parameter.grad, gradients[name])


def test_cached_frame_features_stand_for_clips(golden):
    model, truth = golden
    x = truth["input"].double().transpose(1, 2)
    assert torch.equal(model(model.frozen_features(x)), model(x))


def test_only_prompt_and_temporal_part_train():
    kinds = {name.split(".")[0] for name, _ in tiny().trainable_parameters()}
    assert kinds == {"embedding", "temporalEmbedding", "temporalModelling"}
    assert [name for name, _ in tiny(temporal_layers=0).trainable_parameters()] == ["embedding.weight"]


def test_uint8_frames_equal_normalised_floats():
    model = tiny().eval()
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(model(frames), model(model.normalize(frames)), rtol=1e-4, atol=1e-4)


def test_the_same_prompt_scores_other_classes():
    model = tiny().eval()
    x = torch.randn(2, 3, 4, 16, 16)
    before = model(x)
    model.set_classes(["diving", *NAMES])
    after = model(x)
    torch.testing.assert_close(after[:, 1:], before)
    assert model.num_classes == model.config["num_classes"] == 4


def test_the_config_makes_the_same_model():
    model = tiny().eval()
    twin = create_model("promptclip_demo", **json.loads(json.dumps(model.config))).eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(twin(x), model(x))


def test_kept_text_features_follow_the_prompt():
    model, x = tiny().eval(), torch.randn(1, 4, 32)
    with torch.no_grad():
        before = model(x)
        assert model.class_features() is model.class_features()
        model.embedding.weight.add_(1.0)
        assert not torch.equal(model(x), before)
    assert model(x).requires_grad


def test_a_step_scores_the_classes_of_its_batch_and_drawn_others():
    model = tiny([f"class number {n}" for n in range(20)], max_names=6)
    labels = torch.tensor([19, 3, 3])
    chosen = model.candidates(labels, 5)
    assert len(chosen) == 6
    assert {3, 19} <= set(chosen.tolist())
    assert torch.equal(chosen, model.candidates(labels, 5))
    assert len({tuple(model.candidates(labels, seed).tolist()) for seed in range(4)}) > 1
    features = torch.randn(3, 4, 32)
    torch.testing.assert_close(model(features, chosen), model(features)[:, chosen])
    assert tiny(max_names=3).candidates(labels % 3, 5) is None


def test_fullgraph_compiles():
    model, x = tiny(), torch.randn(2, 3, 4, 16, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    chosen = torch.tensor([0, 2])
    torch.testing.assert_close(compiled(x, chosen), model(x, chosen))


def test_names_are_read_as_words():
    assert [spoken(name) for name in NAMES] == ["brush hair", "Apply Eye Makeup", "push [something]"]


def test_a_name_without_room_and_a_model_without_names_are_refused():
    with pytest.raises(UsageError, match="'very very.*room for 43 beside 32 of the learned prompt"):
        tiny(["short", "very " * 44])
    with pytest.raises(UsageError, match="no class names"):
        tiny((), num_classes=3)(torch.randn(1, 4, 32))


def test_a_table_counts_the_video_side_alone():
    params, trainable, products = count_costs("promptclip_b16", {"num_frames": 16, "num_classes": 400})
    assert products == pytest.approx(16 * 17.56e9, rel=0.02)  # 16 frames of ViT-B/16, and 2 blocks of width 512
    assert 149e6 < params < 157e6
    temporal = 16 * 512 + 2 * (12 * 512**2 + 13 * 512)
    assert trainable == 77 * 512 + temporal


@pytest.fixture(scope="module")
def clip():
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=8, image_size=16)
    text = CLIPTextCfg(vocab_size=49408, width=64, heads=1, layers=1)
    return CLIP(32, vision, text, quick_gelu=True).eval()


def test_frame_and_text_features_equal_open_clips(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "clip.safetensors", {"activation": "quick_gelu"})
    model = tiny().eval()
    report = load_weights(model, tmp_path / "clip.safetensors")
    assert report.kind == "clip"
    x = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        truth = clip.encode_image(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(model.forward_features(x), truth, rtol=1e-4, atol=1e-5)


def test_its_own_trunk_file_is_read_back(tmp_path):
    model = tiny()
    save_trunk(model, tmp_path / "trunk.safetensors")
    torch.manual_seed(1)
    other = create_model("promptclip_demo", **model.config)
    assert load_weights(other, tmp_path / "trunk.safetensors").sha256 == trunk_sha256(model)


def test_files_that_do_not_fit_say_why(clip, tmp_path):
    def load(state, **overrides):
        save_file(state, tmp_path / "file.safetensors")
        load_weights(tiny(**overrides), tmp_path / "file.safetensors")

    state = clip.state_dict()
    with pytest.raises(WeightsError, match="no whole CLIP"):
        load(clip.visual.state_dict())
    with pytest.raises(WeightsError, match="looks like width 64, depth 1"):
        load(state, depth=2)
    with pytest.raises(WeightsError, match="text tower of another architecture: width 64, the model's 128"):
        load(state, text_width=128)
    with pytest.raises(WeightsError, match=r"missing clipmodel\.visual\.ln_post\.bias"):
        load({name: tensor for name, tensor in state.items() if name != "visual.ln_post.bias"})
