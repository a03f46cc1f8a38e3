"""X-CLIP: the published numbers, closed and open sets of classes, its authors' checkpoints, transformers' model."""

import re

import pytest
import torch
import torch.nn.functional as F

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.training.optimizer import build_optimizer
from aim_fast.training.recipe_file import load_recipe
from tests.conftest import SHARED
from tests.models.golden_cases import assert_relative, peer_case

CASE = SHARED / "golden_peers" / "xclip.safetensors"
needs_case = pytest.mark.skipif(not CASE.is_file(), reason="the case of X-CLIP's authors is not here")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_frames": 4,
        "output_dim": 64, "text_width": 64, "text_depth": 1, "method": "x_clip"}  # fmt: skip
SHAPES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_frames")
NAMES = ["walking", "BrushHair", "apply_lipstick"]


@pytest.fixture(scope="module")
def golden():
    case = peer_case(CASE.stem, CASE.parent)
    return case.state, case.truth, case.trainable


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A whole CLIP of these sizes, as open_clip has it."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=8, image_size=32)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(CLIP(64, vision, CLIPTextCfg(width=64, heads=1, layers=1), quick_gelu=True).state_dict(), path)
    return path


def published(state, truth, **running):
    model = create_model("vit_b16_clip", **TINY, vocab_size=50, num_classes=4, **running).double().eval()
    model.load_state_dict({name: state[model.published_name(name)] for name in model.state_dict()})
    model.class_embeddings, model.stale = model.text(truth["tokens"]), False
    return model


@needs_case
@pytest.mark.parametrize("everything", [True, False], ids=["all trained", "as published"])
@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory, everything):
    state, truth, trainable = golden
    model = published(state, truth, backend=backend, memory=memory)
    assert {model.published_name(name) for name, _ in model.trainable_parameters()} == trainable
    assert len(state) == len(model.state_dict())
    if everything:
        model.requires_grad_(True)
        model.class_embeddings = model.text(truth["tokens"])
    clip = truth["input"].double().requires_grad_(True)
    tokens = model.forward_features(clip)
    assert_relative(model.class_embeddings, truth["text_features"])
    assert_relative(model.reader.video(model, tokens), truth["features"])
    assert_relative(model.reader.patches(model, tokens), truth["image_features"])
    prompts = model.prompts_generator(model.class_embeddings, model.reader.patches(model, tokens))
    assert_relative(prompts, truth["prompts"])
    logits = model(clip)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"].reshape(1))
    assert_relative(clip.grad, truth["grad_input"])
    zero = {name.removeprefix("grad/") for name in truth if name.startswith("grad/")}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        if parameter.requires_grad and (own := model.published_name(name)) in zero:
            assert_relative(parameter.grad, truth[f"grad/{own}"], what=name)


@needs_case
def test_a_published_checkpoint_loads_and_is_refused_by_other_methods(golden, tmp_path):
    state, _, _ = golden
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "published.pth")
    model = create_model("vit_b16_clip", **TINY, vocab_size=50, num_classes=4)
    report = load_weights(model, tmp_path / "published.pth")
    assert report.kind == "aim"
    assert not any("initialisation" in line for line in report.lines)
    assert all(torch.equal(tensor, state[model.published_name(name)]) for name, tensor in model.state_dict().items())
    other = create_model("vit_b16_clip", **{key: TINY[key] for key in SHAPES})
    with pytest.raises(WeightsError, match="is a checkpoint of method x_clip: take --method x_clip"):
        load_weights(other, tmp_path / "published.pth")


def test_a_whole_clip_gives_both_towers_and_the_rest_starts_as_published(clip_file):
    model = create_model("vit_b16_clip", **TINY, class_names=NAMES)
    assert load_weights(model, clip_file).kind == "clip"
    block = model.row[0]
    assert torch.equal(model.prompts_generator.alpha, torch.full((64,), 0.1))
    assert model.prompts_visual_proj.std().item() == pytest.approx(1, rel=0.1)
    assert model.mit.resblocks[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.message_fc.weight.abs().max() <= 64**-0.5
    assert not block.message_attn.out_proj.bias.any()


def test_new_class_names_are_scored_and_each_is_read_once(clip_file):
    model = create_model("vit_b16_clip", **TINY, class_names=NAMES)
    load_weights(model, clip_file)
    read = []
    model.text.register_forward_hook(lambda *_: read.append("all"))
    encode = model.text.encode
    model.text.encode = lambda *arguments: (read.append(len(arguments[0])), encode(*arguments))[1]
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    for _ in range(3):
        logits = model.train()(clips)
        logits.sum().backward()
    assert read == [3]
    model.eval().set_classes(["archery", NAMES[1]])
    open_set = model(clips)
    assert read == [3, 2]
    assert open_set.shape == (2, 2)
    torch.testing.assert_close(open_set[:, 1], model.train()(clips)[:, 1])
    torch.testing.assert_close(open_set[:, 1], logits[:, 1])
    assert not any(name.startswith("text.") for name, _ in model.trainable_parameters())


def test_messages_prompts_and_the_frame_transformer_learn_ten_times_as_fast():
    model = create_model("vit_b16_clip", **TINY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, load_recipe("k400_x_clip", {"model": "vit_b16_clip"}))
    found = {
        names[id(p)]: (group["lr_factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    fast = {name for name, (factor, _) in found.items() if factor == 10}
    assert fast == {name for name in found if ".message_" in name or name.startswith(("mit.", "prompts_"))}
    assert {factor for factor, _ in found.values()} == {1, 10}
    bare = {name for name, (_, decay) in found.items() if decay == 0}
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert bare == {name for name in found if shapes[name] <= 1 or name.endswith("positional_embedding")}


@pytest.mark.parametrize(
    ("trunk", "overrides", "said"),
    [
        ("vit_imagenet_demo", {}, "no CLIP text tower"),
        ("vit_demo", {"head": "text"}, "has a head of its own and takes no head text"),
        ("open_clip:ViT-B-16-SigLIP", {}, "sends messages from class tokens, and this trunk has none"),
        ("vit_demo", {"output_dim": 96}, "no multiple of the 64 channels"),
        ("vit_demo", {"prompt_layers": 0}, "prompt_layers must be a whole number of at least 1, not 0"),
    ],
)
def test_where_it_cannot_stand_is_said_in_one_line(trunk, overrides, said):
    with pytest.raises(UsageError, match=said) as caught:
        create_model(trunk, method="x_clip", **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "frames", "parameters", "tunable", "gflops"),
    [
        ("vit_b32_clip", 8, None, None, 38.2),
        ("vit_b32_clip", 16, None, None, 74.1),
        ("vit_b16_clip", 8, None, 131.5, 144.2),
        ("vit_b16_clip", 16, None, 131.5, 285.9),
        ("vit_l14_clip", 8, 575.674, 452.023, 7889 / 12),
    ],
)
def test_has_the_published_parameters_and_products(model, frames, parameters, tunable, gflops):
    """Patches are averaged over time before they are projected, which is linear: 0.4 % less than the published."""
    whole, trainable, products = count_costs(model, {"method": "x_clip", "num_frames": frames})
    if parameters:
        assert whole / 1e6 == pytest.approx(parameters, rel=0.0005)
    if tunable:
        assert trainable / 1e6 == pytest.approx(tunable, rel=0.0005)
    assert products / 1e9 == pytest.approx(gflops, rel=0.005)


_RENAMED = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layernorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^mit\.encoder\.layers\.", "mit.resblocks."),
    (r"^mit\.position_embedding$", "mit.positional_embedding"),
    (r"^prompts_visual_layernorm\.", "prompts_visual_ln."),
    (r"^prompts_visual_projection$", "prompts_visual_proj"),
    (r"^prompts_generator\.layernorm\.", "prompts_generator.norm."),
    (r"\.layernorm([13])\.", r".norm\1."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def as_published(theirs):
    """transformers' tensors under the authors' names."""
    found = {}
    for name, tensor in theirs.items():
        for pattern, becomes in _RENAMED:
            name = re.sub(pattern, becomes, name)
        found[name] = tensor
    for name in [name for name in found if re.search(r"(?<!cross_)attn\.q_proj\.", name)]:
        parts = [found.pop(name.replace("q_proj", f"{one}_proj")) for one in "qkv"]
        found[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    found["visual.proj"] = found.pop("visual_projection.weight").T
    found["text_projection"] = found.pop("text_projection.weight").T
    return {name: tensor for name, tensor in found.items() if not name.endswith("position_ids")}


def transformers_x_clip(words):
    """transformers' model of the demo's sizes with ``words`` in its vocabulary, the last two of them its marks."""
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1,
              "image_size": 32, "patch_size": 8, "num_frames": 4, "mit_hidden_size": 64, "mit_intermediate_size": 256,
              "mit_num_hidden_layers": 1, "mit_num_attention_heads": 1}  # fmt: skip
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1,
            "vocab_size": words, "eos_token_id": words - 1, "bos_token_id": words - 2}  # fmt: skip
    config = transformers.XCLIPConfig(
        text_config=text, vision_config=vision, projection_dim=64, prompt_num_attention_heads=1
    )
    torch.manual_seed(0)
    return transformers.XCLIPModel(config).eval()


def test_transformers_model_on_the_same_weights_gives_the_same(tmp_path):
    theirs = transformers_x_clip(50).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(as_published(theirs.state_dict()), tmp_path / "xclip.pth")
    model = create_model("vit_b16_clip", **TINY, vocab_size=50, num_classes=3).double().eval()
    load_weights(model, tmp_path / "xclip.pth")
    tokens = torch.tensor([[48, 3, 49, 0, 0], [48, 7, 9, 49, 0], [48, 1, 2, 3, 49]])
    clips = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        model.class_embeddings, model.stale = model.text(tokens), False
        wanted = theirs(input_ids=tokens, pixel_values=clips.transpose(1, 2), attention_mask=torch.ones_like(tokens))
        assert_relative(model(clips), wanted.logits_per_video, 1e-10)
