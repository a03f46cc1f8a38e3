"""AIM on Swin: the published numbers, what trains, inputs, and both backends at every word of memory."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import multiply_adds
from aim_fast.models.registry import create_model
from aim_kernels import hold_trunk

GOLDEN = Path(__file__).parents[1] / "golden" / "aim_swin2d.safetensors"
TINY = {"img_size": 32, "window_size": 4, "embed_dim": 16, "num_heads": (1, 2), "num_frames": 4, "num_classes": 5}


def tiny(**overrides):
    """A small model with shifted windows in its first stage, whose adapters do something."""
    torch.manual_seed(0)
    model = create_model("aim_swin_demo", **{**TINY, **overrides})
    for name, parameter in model.named_parameters():
        if "D_fc2" in name or "bias_table" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def bare(name):
    return name.removeprefix("backbone.").removeprefix("cls_head.")


def assert_relative(got, truth, tolerance=1e-8):
    assert got.shape == truth.shape
    assert (got.double() - truth).norm() <= tolerance * truth.norm()


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    state = {bare(name.removeprefix("state/")): t for name, t in tensors.items() if name.startswith("state/")}
    return metadata["config"], metadata["trainable"], state, tensors


@pytest.mark.parametrize(
    ("tune", "options"),
    [
        ("all", {"backend": "reference"}),
        ("all", {}),
        ("adapters", {}),
        ("adapters", {"memory": "lean"}),
        ("adapters", {"attention_backend": "sdpa"}),
    ],
    ids=str,
)
def test_golden_outputs_and_every_gradient(golden, tune, options):
    config, _, state, truth = golden
    model = create_model("aim_swin_b", **config, **options, tune=tune).double().eval()
    assert model.state_dict().keys() == state.keys()
    for name, buffer in model.named_buffers():
        if name in state:  # masks and indices are the published ones, before they are loaded
            assert torch.equal(buffer.to(state[name].dtype), state[name])
    model.load_state_dict(state)
    logits = model(truth["input_int8"].double() / 64)
    loss = F.cross_entropy(logits, truth["label"])
    loss.backward()
    assert_relative(logits, truth["logits"])
    assert_relative(loss.reshape(1), truth["loss"])
    gradients = {bare(name.removeprefix("grad/")): t for name, t in truth.items() if name.startswith("grad/")}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert_relative(parameter.grad, gradients[name])


def test_published_trainable_set_and_ours(golden):
    config, published, _, _ = golden
    trainable = {name for name, _ in create_model("aim_swin_b", **config, published_freeze=True).trainable_parameters()}
    assert trainable == {bare(name) for name in published}
    ours = {name for name, _ in create_model("aim_swin_b", **config).trainable_parameters()}
    tables = {f"layers.{stage}.blocks.0.attn.temporal_position_bias_table" for stage in (0, 1)}
    assert ours == trainable | tables


@pytest.mark.parametrize(
    ("name", "width", "depths", "heads"),
    [
        ("aim_swin_t", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        ("aim_swin_s", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        ("aim_swin_b", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    ],
)
def test_tunable_counts(name, width, depths, heads):
    with torch.device("meta"):
        model, published = (create_model(name, num_frames=32, published_freeze=rule) for rule in (False, True))
    # an adapter of width D: D/4 hidden units, two of them a block and a third in every even one; the head; the tables
    adapters = sum(int(2.5 * depth) * (2 * d * (d // 4) + d // 4 + d) for d, depth in widths(width, depths))
    head, tables = (8 * width + 1) * 400, sum(depth // 2 * 31 * h for depth, h in zip(depths, heads))
    assert sum(p.numel() for _, p in published.trainable_parameters()) == adapters + head
    assert sum(p.numel() for _, p in model.trainable_parameters()) == adapters + head + tables


def widths(width, depths):
    return [(width * 2**stage, depth) for stage, depth in enumerate(depths)]


@pytest.mark.parametrize("name", ["aim_swin_t", "aim_swin_b"])
def test_trunk_has_timms_parameters_and_products(name):
    """Our count of one image trunk run on T steps equals timm's parameters and textbook products, times T."""
    import timm

    timms = {"aim_swin_t": "swin_tiny_patch4_window7_224", "aim_swin_b": "swin_base_patch4_window7_224"}[name]
    with torch.device("meta"):
        model = create_model(name, num_frames=8, adapters=(), num_classes=1000)
        image = timm.create_model(timms)
    inflation = model.patch_embed.proj.weight.numel() // 2
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in image.parameters()) + inflation
    products = 4 * (4 * 56**2 * model.embed_dim * 48 // 2)  # 4 steps of a stem over two frames
    for stage, (d, depth) in enumerate(widths(model.embed_dim, model.depths)):
        n = (56 // 2**stage) ** 2
        products += 4 * depth * n * (12 * d * d + 2 * 49 * d) + (4 * n // 4 * 8 * d * d if stage < 3 else 0)
    assert multiply_adds(model) == products + model.fc_cls.weight.numel()


@pytest.mark.parametrize("memory", ["fast", "balanced", "lean"])
def test_fused_equals_reference_with_drops(memory):
    found = []
    for backend in ("reference", "fused"):
        model = tiny(backend=backend, memory=memory, drop_path=0.6).double().train()
        torch.manual_seed(1)
        loss = F.cross_entropy(model(torch.randn(4, 3, 4, 32, 32, dtype=torch.float64)), torch.arange(4))
        loss.backward()
        found.append([loss.detach(), *(p.grad for _, p in model.trainable_parameters())])
    for got, truth in zip(found[1], found[0], strict=True):
        assert_relative(got, truth, 1e-10)


def test_lean_keeps_less_than_fast():
    kept = {}
    for memory in ("fast", "balanced", "lean"):
        model, sizes = tiny(memory=memory), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.update({t.data_ptr(): t.numel()}) or t, id):
            model(torch.randn(2, 3, 4, 32, 32))
        kept[memory] = sum(sizes.values())
    assert kept["lean"] < 0.5 * kept["fast"]
    assert kept["lean"] < kept["balanced"] < kept["fast"]


def test_time_is_seen_in_even_blocks_alone():
    model = tiny()
    over_time = [name for name, _ in model.named_parameters() if "T_Adapter.D_fc1.weight" in name]
    assert over_time == [f"layers.{stage}.blocks.0.T_Adapter.D_fc1.weight" for stage in (0, 1)]
    x = torch.randn(1, 3, 4, 32, 32)
    y = x.clone()
    y[:, :, 2:] = torch.randn(1, 3, 2, 32, 32)
    for adapters, sees in ((("temporal",), True), (("spatial", "joint"), False)):
        model = tiny(adapters=adapters).eval()
        assert torch.equal(model.forward_features(x)[:, 0], model.forward_features(y)[:, 0]) is not sees


def test_direction_of_time_needs_the_temporal_bias():
    x = torch.randn(1, 3, 4, 32, 32, dtype=torch.float64)
    x[:, :, 1::2] = x[:, :, ::2]  # the two frames of a patch alike, so that only the steps are reversed
    model = tiny().double().eval()
    assert (model(x) - model(x.flip(2))).norm() > 1e-7 * model(x).norm()
    for name, parameter in model.named_parameters():
        if "temporal_position_bias_table" in name:
            torch.nn.init.zeros_(parameter)
    assert_relative(model(x), model(x.flip(2)), 1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_uint8_frames_equal_normalised_floats(dtype, tolerance):
    model = tiny().to(dtype).eval()
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=dtype) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    assert_relative(model(frames), model(((frames.to(dtype) - mean) / std).permute(0, 4, 1, 2, 3)).double(), tolerance)


def test_autocast_bf16_trains_within_the_precision_of_bf16():
    x, gradients = torch.randn(4, 3, 4, 32, 32), []
    for enabled in (False, True):
        model = tiny(drop_path=0.0, head_dropout=0.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(x), torch.arange(4))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for _, p in model.trainable_parameters()]))
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() <= 0.05 * gradients[0].norm()


@pytest.mark.parametrize("autocast", [True, False])
def test_a_trunk_held_in_bf16_trains_within_its_precision(autocast):
    x, gradients = torch.randn(4, 3, 4, 32, 32), []
    for held in (False, True):
        model = tiny(drop_path=0.0, head_dropout=0.0)
        if held:
            hold_trunk(model, torch.bfloat16)
            block = model.layers[0].blocks[0]
            assert block.attn.qkv.weight.dtype == block.mlp.fc2.weight.dtype == torch.bfloat16
            assert block.attn.relative_position_bias_table.dtype == block.norm1.weight.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=held and autocast):
            loss = F.cross_entropy(model(x), torch.arange(4))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for _, p in model.trainable_parameters()]))
    assert gradients[1].dtype == torch.float32
    assert 0 < (gradients[1] - gradients[0]).norm() <= 0.05 * gradients[0].norm()


def test_compiled_without_graph_breaks_equals_eager():
    x = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    found = []
    for compiled in (False, True):
        model = tiny(drop_path=0.0, head_dropout=0.0, depths=(2, 1))
        torch.compiler.reset()
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        F.cross_entropy(step(x), torch.tensor([0, 1])).backward()
        found.append(torch.cat([p.grad.flatten() for _, p in model.trainable_parameters()]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


def test_weight_decay_spares_norms_and_bias_tables():
    model = tiny()
    decayed = {name for name, _ in model.trainable_parameters()} - model.no_weight_decay()
    assert all("Adapter" in name or name.startswith("fc_cls") for name in decayed)
    assert "layers.0.blocks.0.T_Adapter.D_fc1.bias" in decayed


def test_round_trips_of_config_and_state():
    model = tiny(published_freeze=True, mean=(1, 2, 3)).eval()
    twin = create_model("aim_swin_demo", **json.loads(json.dumps(model.config))).eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(twin(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert [n for n, _ in twin.trainable_parameters()] == [n for n, _ in model.trainable_parameters()]


def test_droppath_rates_grow_over_all_stages():
    model = create_model("aim_swin_demo", depths=(2, 3), drop_path=0.4)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.4, 5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_frames": 5}, "num_frames 5 is no multiple of the 2 frames of a patch"),
        ({"img_size": 40}, "stage 1 of img_size 40 has 10 × 10 tokens.*take img_size 32"),
        ({"img_size": 36}, "img_size 36 is no multiple of 8"),
        ({"depths": (2, 2, 2)}, "one number a stage"),
        ({"num_heads": (3, 2)}, "num_heads 3 does not divide dim 16"),
        ({"adapters": ("temporl",)}, "temporl"),
        ({"num_tadapter": 2}, "no argument 'num_tadapter'"),
        ({"tune": "some"}, "tune 'some'"),
        ({"patch_size": (2, 4, 8)}, "not square"),
    ],
)
def test_wrong_values_are_usage_errors(overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        tiny(**overrides)
    assert "\n" not in str(caught.value)
