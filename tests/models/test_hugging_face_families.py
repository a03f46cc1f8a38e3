"""DINOv3, SigLIP, SigLIP 2, AIMv2 and DINOv2 giant as transformers writes them, on timm's trunks."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from aim_fast.errors import WeightsError
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.folders import read_settings
from aim_fast.models.weights.hugging_face import from_hugging_face
from tests.models.small_trunks import drawn, frames

pytestmark = pytest.mark.stack

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_frames": 2}
# timm's trunk, transformers' model of that structure, and what its configuration says beside sizes.
FAMILIES = {
    "vit_small_patch16_dinov3": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "vit_small_patch16_dinov3_qkvb": ("DINOv3ViTModel", {"num_register_tokens": 4}),
    "vit_small_plus_patch16_dinov3_qkvb": (
        "DINOv3ViTModel",
        {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "vit_base_patch16_siglip_224": ("SiglipVisionModel", {"hidden_act": "gelu"}),
    "vit_base_patch32_siglip_256": ("SiglipVisionModel", {}),
    "aimv2_large_patch14_224": ("Aimv2VisionModel", {}),
    "vit_giant_patch14_dinov2": ("Dinov2Model", {"use_swiglu_ffn": True}),
    "vit_giant_patch14_reg4_dinov2": ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}),
}
# Names and shapes of one block as `save_pretrained` of transformers 5.23 writes them; D: width, H: hidden, P: patches.
LAYER = {"attention.k_proj.weight": "DD", "attention.q_proj.weight": "DD", "attention.v_proj.weight": "DD"}
DINOV3 = {
    "embeddings.cls_token": "11D", "embeddings.mask_token": "11D", "embeddings.register_tokens": "14D",
    "embeddings.patch_embeddings.weight": "D388", "embeddings.patch_embeddings.bias": "D",
    **{f"layer.0.{name}": shape for name, shape in {
        **LAYER, "attention.o_proj.bias": "D", "attention.o_proj.weight": "DD", "attention.q_proj.bias": "D",
        "attention.v_proj.bias": "D", "layer_scale1.lambda1": "D", "layer_scale2.lambda1": "D",
        "mlp.down_proj.bias": "D", "mlp.down_proj.weight": "DH", "mlp.up_proj.bias": "H", "mlp.up_proj.weight": "HD",
        "norm1.bias": "D", "norm1.weight": "D", "norm2.bias": "D", "norm2.weight": "D",
    }.items()},
    "norm.bias": "D", "norm.weight": "D",
}  # fmt: skip
SIGLIP = {
    "embeddings.patch_embedding.bias": "D", "embeddings.patch_embedding.weight": "D388",
    "embeddings.position_embedding.weight": "PD",
    **{f"encoder.layers.0.{name}": shape for name, shape in {
        "layer_norm1.bias": "D", "layer_norm1.weight": "D", "layer_norm2.bias": "D", "layer_norm2.weight": "D",
        "mlp.fc1.bias": "H", "mlp.fc1.weight": "HD", "mlp.fc2.bias": "D", "mlp.fc2.weight": "DH",
        **{f"self_attn.{part}.{kind}": "DD"[: 1 + (kind == "weight")]
           for part in ("k_proj", "out_proj", "q_proj", "v_proj") for kind in ("bias", "weight")},
    }.items()},
    "head.attention.in_proj_bias": "Q", "head.attention.in_proj_weight": "QD", "head.attention.out_proj.bias": "D",
    "head.attention.out_proj.weight": "DD", "head.layernorm.bias": "D", "head.layernorm.weight": "D",
    "head.mlp.fc1.bias": "H", "head.mlp.fc1.weight": "HD", "head.mlp.fc2.bias": "D", "head.mlp.fc2.weight": "DH",
    "head.probe": "11D", "post_layernorm.bias": "D", "post_layernorm.weight": "D",
}  # fmt: skip
AIMV2 = {
    "embeddings.patch_embed.bias": "D", "embeddings.patch_embed.weight": "D388",
    "embeddings.position_embedding.weight": "PD", "embeddings.rms_norm.weight": "D",
    **{f"encoder.layers.0.{name}": shape for name, shape in {
        **LAYER, "attention.out_proj.weight": "DD", "ffn.down_proj.weight": "DH", "ffn.gate_proj.weight": "HD",
        "ffn.up_proj.weight": "HD", "rms_norm1.weight": "D", "rms_norm2.weight": "D",
    }.items()},
    "head.cls_token": "11D", "head.k_proj.weight": "DD", "head.output_proj.bias": "D", "head.output_proj.weight": "DD",
    "head.v_proj.weight": "DD", "rms_norm.weight": "D",
}  # fmt: skip
WRITTEN = {
    "vit_small_patch16_dinov3_qkvb": DINOV3,
    "vit_base_patch16_siglip_224": SIGLIP,
    "aimv2_large_patch14_224": AIMV2,
}


def model_of(name, **overrides):
    width = {"embed_dim": 48} if "giant" in name else {}  # of which both make one hidden width
    return create_model(f"timm:{name}", **{**SIZES, "num_classes": 3, **width, **overrides}).eval()


def hidden(model):
    mlp = model.row[0].mlp
    return getattr(mlp, "fc1_g", mlp.fc1 if hasattr(mlp, "fc1") else None).out_features


@pytest.mark.parametrize("name", WRITTEN)
def test_the_names_that_transformers_writes_are_those_of_timms_trunk(name, tmp_path):
    model = model_of(name, depth=1)
    sizes = {"D": 32, "H": hidden(model), "P": 16, "Q": 96}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn([sizes.get(mark) or int(mark) for mark in shape], generator=generator)
        for key, shape in WRITTEN[name].items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_weights(model, tmp_path).kind == "timm"
    own = {key for key in model.trunk.state_dict() if "_Adapter" not in key}
    assert from_hugging_face(tensors, "").keys() == own
    block = model.row[0]
    stem = next(key for key in tensors if key.endswith(("patch_embed.weight", "patch_embedding.weight", "gs.weight")))
    assert torch.equal(model.trunk.patch_embed.proj.weight, tensors[stem])
    for place, letter in enumerate("qkv"):
        part = next(value for key, value in tensors.items() if key.endswith(f".{letter}_proj.weight") and "0." in key)
        assert torch.equal(block.attn.qkv.weight.chunk(3)[place], part)
    if name.startswith("aimv2"):
        assert torch.equal(block.mlp.fc1_g.weight, tensors["encoder.layers.0.ffn.gate_proj.weight"])


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def made(transformers, name, **overrides):
    """transformers' model in the sizes of timm's trunk, every tensor drawn at random."""
    kind, options = FAMILIES[name]
    width = hidden(model_of(name))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes |= {"hidden_size": 48} if kind.startswith("Dinov2") else {"intermediate_size": width}
    model = getattr(transformers, kind)
    theirs = drawn(model(model.config_class(**{**sizes, **options, **overrides})))
    if name.endswith("dinov3"):
        for key, parameter in theirs.named_parameters():
            if key.endswith(("q_proj.bias", "v_proj.bias")):
                torch.nn.init.zeros_(parameter)
    return theirs


def pooled(theirs):
    """As timm pools: DINOv3 and AIMv2 to the mean of their patches."""
    with torch.no_grad():
        out = theirs(pixel_values=frames())
    kind = type(theirs).__name__
    if kind.startswith("Siglip"):
        return out.pooler_output
    if kind.startswith("Dinov2"):
        return out.last_hidden_state[:, 0]
    return out.last_hidden_state[:, 5 if kind.startswith("DINOv3") else 0 :].mean(1)


def features(model):
    with torch.no_grad():
        clips = frames().unflatten(0, (2, 2)).transpose(1, 2)
        return model.forward_features(clips).flatten(0, 1)


@pytest.mark.parametrize("form", ["folder", "parts", "state_dict"])
@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_transformers(name, form, transformers, tmp_path):
    theirs = made(transformers, name)
    theirs.save_pretrained(tmp_path, max_shard_size="50KB" if form == "parts" else "5GB")
    source = tmp_path
    if form == "state_dict":
        source = tmp_path / "state.pt"
        torch.save(theirs.state_dict(), source)
    model = model_of(name)
    report = load_weights(model, source)
    truth = pooled(theirs)
    assert truth.std() > 0.01
    torch.testing.assert_close(features(model), truth, rtol=1e-4, atol=1e-5)
    assert report.kind == "timm"
    assert not [line for line in report.lines if "GELU" in line]


@pytest.mark.parametrize("method", ["probe", "aim"])
def test_a_folder_at_another_image_size_is_timms_resampling(method, transformers, tmp_path):
    theirs = made(transformers, "vit_base_patch16_siglip_224", image_size=48)
    theirs.save_pretrained(tmp_path)
    model = model_of("vit_base_patch16_siglip_224", method=method)
    assert any("pos_embed resampled from [1, 36, 32]" in line for line in load_weights(model, tmp_path).lines)


def test_the_form_of_gelu_is_said(transformers, tmp_path):
    theirs = made(transformers, "vit_base_patch16_siglip_224", hidden_act="gelu_pytorch_tanh")
    theirs.save_pretrained(tmp_path)
    model = model_of("vit_base_patch16_siglip_224")
    assert any("has the tanh form of GELU" in line for line in load_weights(model, tmp_path).lines)
    assert (features(model) - pooled(theirs)).abs().max() < 2e-2


@pytest.mark.parametrize("trunk", ["open_clip:ViT-B-16-SigLIP", "open_clip:ViT-B-16-SigLIP2"])
def test_a_whole_siglip_gives_both_towers(trunk, transformers, tmp_path):
    act = "gelu_pytorch_tanh" if trunk.endswith("2") else "gelu"
    both = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 128}
    text = both | {"hidden_act": act, "num_attention_heads": 1, "vocab_size": 60, "max_position_embeddings": 9}
    text |= {"projection_size": 32, "bos_token_id": 2, "eos_token_id": 1}
    vision = both | {"hidden_act": "gelu", "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    theirs = drawn(transformers.SiglipModel(config))
    theirs.logit_scale.data.fill_(2.0)
    theirs.save_pretrained(tmp_path)
    sizes = {"text_width": 32, "text_depth": 2, "vocab_size": 60, "context_length": 9, "output_dim": 32}
    model = create_model(trunk, **SIZES, **sizes, head="text", class_names=["a", "b", "c"]).eval()
    load_weights(model, tmp_path)
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = theirs(pixel_values=frames()[:1], input_ids=ids)
        found = F.normalize(model.text.encode_tokens(ids), dim=-1)
        torch.testing.assert_close(found, out.text_embeds, rtol=1e-4, atol=1e-5)
        model.class_embeddings, model.stale = found, False
        clip = frames()[:1].expand(2, -1, -1, -1).transpose(0, 1)[None]
        torch.testing.assert_close(model(clip), out.logits_per_image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("vit_small_patch16_dinov3", {"rope_theta": 10.0}, "its base of rotations 10.0, the model's 100.0"),
        ("vit_small_patch16_dinov3", {"layer_norm_eps": 1e-6}, "its epsilon of norms 1e-06, the model's 1e-05"),
        ("vit_small_patch16_dinov3", {"hidden_act": "relu"}, "the activation relu, the model's gelu"),
        ("vit_small_patch16_dinov3", {"num_attention_heads": 1}, "its heads 1, the model's 2"),
        ("vit_small_patch16_dinov3", {"num_register_tokens": 2}, "of another shape reg_token"),
        ("vit_small_patch16_dinov3", {"key_bias": True}, r"unexpected blocks\.0\.attn\.k_bias|qkv\.bias"),
        ("vit_base_patch16_siglip_224", {"vision_use_head": False}, r"missing attn_pool"),
        ("vit_base_patch16_siglip_224", {"num_hidden_layers": 3}, r"unexpected blocks\.2\."),
        ("aimv2_large_patch14_224", {"qkv_bias": True}, r"unexpected blocks\.0\.attn"),
    ],
)
def test_what_does_not_fit_is_refused_by_what_it_is(name, overrides, said, transformers, tmp_path):
    theirs = made(transformers, name, **overrides)
    if "bias" in "".join(overrides):
        drawn(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(model_of(name), tmp_path)
    assert "\n" not in str(caught.value)


def test_biases_that_a_trunk_has_no_place_for_are_refused(transformers, tmp_path):
    drawn(made(transformers, "vit_small_patch16_dinov3")).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected blocks\.0\.attn\.q_bias"):
        load_weights(model_of("vit_small_patch16_dinov3"), tmp_path)


def test_a_file_without_a_part_of_a_gated_mlp_is_refused(transformers, tmp_path):
    state = made(transformers, "vit_giant_patch14_dinov2").state_dict()
    del state[next(name for name in state if name.endswith(("up_proj.weight", "weights_in.weight")))]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(WeightsError, match=r"missing blocks\.0\.mlp\.fc1\.weight"):
        load_weights(model_of("vit_giant_patch14_dinov2"), tmp_path / "state.pt")


@pytest.mark.parametrize("kind", ["dinov3_vit", "aimv2", "siglip2", "clip", "dinov2", "vit"])
def test_what_a_configuration_leaves_out_is_the_librarys_default(kind, transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    config, settings = transformers.AutoConfig.for_model(kind), read_settings(tmp_path)
    config = getattr(config, "vision_config", config)
    assert settings.num_heads == config.num_attention_heads
    assert settings.activation == {"gelu_pytorch_tanh": "gelu_tanh"}.get(config.hidden_act, config.hidden_act)


def test_a_siglip_2_of_pictures_of_any_shape_is_refused(transformers, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    theirs = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes, intermediate_size=128))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="of pictures of any shape"):
        load_weights(model_of("vit_base_patch16_siglip_224"), tmp_path)


def test_a_configuration_that_leaves_its_defaults_out_is_read(transformers, tmp_path):
    theirs = made(transformers, "vit_base_patch32_siglip_256")
    theirs.save_pretrained(tmp_path)
    told = {"num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": told}))
    model = model_of("vit_base_patch32_siglip_256")
    load_weights(model, tmp_path)
    torch.testing.assert_close(features(model), pooled(theirs), rtol=1e-4, atol=1e-5)
