"""What the engine asks of every model, asked of every family of trunks under every method and head."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aim_fast.models.counting.flops import multiply_adds
from aim_fast.models.counting.saved_bytes import saved_bytes
from aim_fast.models.heads import HEADS, OF_METHODS
from aim_fast.models.loading import load_weights, save_trunk
from aim_fast.models.methods import METHODS
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import DESCRIPTION
from tests.models.small_families import EVERY_FAMILY, family_frames, family_model, side, small

pytestmark = pytest.mark.stack

LABELS = torch.tensor([0, 1])
METHODS_OF_ANY = [name for name in METHODS if name not in OF_METHODS]
HEADS_OF_ANY = [name for name, head in HEADS.items() if not head.takes_class_names]
PARTS = [
    (method, head)
    for method in METHODS_OF_ANY
    for head in HEADS_OF_ANY
    if not (METHODS[method].beside and HEADS[head].reads_tokens)  # which are refused
]
every_combination = pytest.mark.parametrize(
    ("family", "method", "head"),
    [(family, *parts) for family in EVERY_FAMILY for parts in PARTS],
)


def loss_of(model, family):
    return F.cross_entropy(model(family_frames(family)), LABELS)


def gradients(model, family):
    """Of all that trains, after one loss; and what the loss keeps for backward, bytes."""
    kept = saved_bytes(model, lambda: loss_of(model, family))
    model.zero_grad()
    loss_of(model, family).backward()
    return {name: parameter.grad for name, parameter in model.trainable_parameters()}, kept


def assert_same_gradients(found, wanted, within):
    for name, gradient in wanted.items():
        error, size = (found[name] - gradient).norm().item(), gradient.norm().item()
        assert error <= within * size + 1e-6, f"{name}: off by {error:.3g} of {size:.3g}"


@every_combination
def test_all_that_trains_gets_a_gradient_whatever_the_blocks_keep_for_it(family, method, head):
    """Each word of memory keeps less than the one before, or has nothing to leave out; no gradient changes."""
    kept, found = {}, {}
    for memory in ("fast", "balanced", "lean"):
        found[memory], kept[memory] = gradients(family_model(family, method, head, memory=memory), family)
    model = family_model(family, method, head)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert None not in found["fast"].values()
    assert not frozen & set(found["fast"])
    assert (frozen == set()) is (method in ("full", "timesformer") and not unread(model, head))
    for memory in ("balanced", "lean"):
        assert_same_gradients(found[memory], found["fast"], 1e-4)
    assert kept["lean"] <= kept["balanced"] <= kept["fast"]
    if method != "probe":
        assert kept["lean"] < (0.5 if method == "aim" else 0.9) * kept["fast"], kept


def unread(model, head):
    """Whether the trunk pools by parameters that a head of all tokens does not read."""
    return head == "attentive" and any(name.startswith(model.pooling) for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_its_products_are_counted_as_timms_are(family):
    """A probe's: the trunk frame by frame, and a classifier."""
    model = family_model(family, "probe")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        small(family).float().requires_grad_(False)(torch.zeros(4, 3, side(family), side(family)))
    with torch.device("meta"):
        weightless = create_model(f"timm:{family}", **model.config)
    assert multiply_adds(weightless) == multiply_adds(model) == counter.get_total_flops() // 2 + 5 * model.feature_dim


@every_combination
def test_its_configuration_and_its_state_make_it_again(family, method, head):
    model = family_model(family, method, head).eval()
    twin = create_model(f"timm:{family}", **json.loads(json.dumps(model.config))).eval()
    assert not torch.equal(twin(family_frames(family)), model(family_frames(family)))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(family_frames(family)), model(family_frames(family)))
    assert twin.config == model.config
    assert [name for name, _ in twin.trainable_parameters()] == [name for name, _ in model.trainable_parameters()]
    free = model.no_weight_decay()
    assert free <= {name for name, _ in model.named_parameters()}
    decayed = {"temporal_embedding"} if method != "zeroi2v" else set()  # as each method's authors have it
    assert not [name for name in free if "_Adapter" in name or name in decayed]


QUICK = {
    ("vit_small_patch16_dinov3", "aim", "attentive"),
    ("eva02_base_patch16_clip_224", "timesformer", "linear"),
    ("vit_base_patch16_siglip_224", "full", "attentive"),
    ("vit_small_patch16_dinov3", "st_adapter", "linear"),
    ("vit_small_patch16_dinov3", "zeroi2v", "linear"),
    ("eva02_base_patch16_clip_224", "lora", "linear"),
}
HEAD_WITH = dict.fromkeys(METHODS_OF_ANY, "linear") | {"probe": "attentive", "full": "attentive"}


@pytest.mark.parametrize(
    ("family", "method", "head"),
    [
        *(pytest.param(*case, id="-".join(case)) for case in sorted(QUICK)),
        *(
            pytest.param(family, method, head, marks=pytest.mark.slow)
            for family_number, family in enumerate(EVERY_FAMILY)
            for number, (method, head) in enumerate(HEAD_WITH.items())
            if (family, method, head) not in QUICK
            and (method in ("aim", "full") or (family_number + number) % 4 == 0)  # each method on a quarter of them
        ),
    ],
)
def test_trains_compiled_without_graph_breaks_as_eagerly(family, method, head):
    torch.compiler.reset()
    model = family_model(family, method, head, depth=1)
    truth, compiled = copy.deepcopy(model), torch.compile(model, fullgraph=True, backend="aot_eager")
    losses = [loss_of(one, family) for one in (truth, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-6)
    found, wanted = ({name: p.grad for name, p in one.trainable_parameters()} for one in (model, truth))
    assert_same_gradients(found, wanted, 1e-3)


STEM_OF_BATCH_NORMS = {"embed_dim": 768, "num_heads": 12, "depth": 1}  # whose width its stem says


def test_a_stem_of_batch_norms_is_the_same_in_training():
    """A run saves what trains alone: statistics that moved would be lost with it."""
    model = family_model("vit_base_mci_224", "full", **STEM_OF_BATCH_NORMS).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    in_training = model(family_frames("vit_base_mci_224"))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(in_training, model.eval()(family_frames("vit_base_mci_224")))


@pytest.mark.parametrize("family", ["aimv2_large_patch14_224", "vit_base_mci_224", "vit_small_patch16_dinov3"])
def test_norms_of_every_kind_take_no_weight_decay(family):
    model = family_model(family, "full", **(STEM_OF_BATCH_NORMS if "mci" in family else {}))
    norms = {name for name, parameter in model.named_parameters() if "norm" in name and parameter.ndim == 1}
    assert norms
    assert norms <= model.no_weight_decay()


@pytest.mark.parametrize(("method", "head"), PARTS)
@pytest.mark.parametrize("trunk", ["vit_demo", "vit_imagenet_demo", "timm:test_vit4"])
def test_one_file_of_a_trained_model_gives_all_of_it_back(trunk, method, head, tmp_path):
    """A probe's too, which has nothing but a head beside its trunk; a trunk alone leaves the head."""
    model = create_model(trunk, method=method, head=head)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin = create_model(trunk, **model.config)
    assert load_weights(twin, tmp_path / "m.safetensors").kind == "aim"
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    save_trunk(model, tmp_path / "t.safetensors")
    fresh = create_model(trunk, **model.config)
    before = fresh.fc_cls.weight.clone()
    assert load_weights(fresh, tmp_path / "t.safetensors").kind != "aim"
    assert torch.equal(fresh.fc_cls.weight, before)
    other = create_model(trunk, **model.config | {"num_classes": 3})
    assert "head is left at its initialisation" in load_weights(other, tmp_path / "m.safetensors").lines[-1]


def test_a_file_of_a_trained_model_says_its_activation(tmp_path):
    model = create_model("vit_demo", activation="gelu")
    told = {"model": "aim_vit_demo", "options": model.config, "classes": []}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "m.safetensors", {DESCRIPTION: json.dumps(told)})
    twin = create_model("vit_demo", **model.config)
    load_weights(twin, tmp_path / "m.safetensors")
    assert twin.activation == "gelu"
