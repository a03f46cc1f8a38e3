"""What the engine asks of every model, asked of every model: one case for each class of the table of names."""

import copy
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aim_fast import load_checkpoint
from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.libraries import is_library
from aim_fast.models.library_model import LibraryModel
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import MODELS, create_model, find_entry
from aim_fast.models.video_model import VideoModel
from aim_kernels import formed_together, shared_norms

pytestmark = pytest.mark.stack

SMALL = {"img_size": 32, "depth": 2, "num_frames": 4}
ADAPTERS = r"temporal_embedding|ln_post\..*|fc_cls\..*|.*_Adapter(_in)?\.D_fc[12]\..*"


@dataclass(frozen=True)
class Case:
    """A model of the table made small. ``trains``: what the names of all that trains match, and of nothing else."""

    model: str
    overrides: Mapping[str, Any]
    trains: str
    frames: tuple[int, ...] = (1, 2, 5)  # other numbers of frames that it takes
    probe: Mapping[str, Any] | None = None  # overrides with which its frozen features can be stored; None: they cannot
    shallow: Mapping[str, Any] | None = None  # overrides with which it is as shallow as it can be
    in_minutes: bool = False  # whether inductor takes minutes for it at the depth of a B/16

    @property
    def name(self) -> str:
        return f"{self.model}-{self.overrides['method']}" if "method" in self.overrides else self.model

    def make(self, **overrides: Any) -> Any:
        """The model, without anything random in training, its adapters doing something."""
        torch.manual_seed(0)
        arguments = {**self.overrides, **overrides}
        model = create_model(self.model, **arguments)
        if model.takes_class_names:  # as a run begins
            model.set_classes(model.class_names)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "rate"):
                module.rate = 0.0
        for name, parameter in model.named_parameters():
            own = any(part in name for part in ("Adapter", "adapter_", "lora")) or name == "temporal_embedding"
            if own or (name == "fc_cls.weight" and not parameter.any()):
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    def clips(self, num_frames: int = 4) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (2, num_frames, 32, 32, 3), dtype=torch.uint8, generator=generator)


PROMPT = {"embed_dim": 64, "output_dim": 32, "text_width": 64, "text_depth": 1, "temporal_heads": 4, "num_heads": 1}
CASES = [
    Case("aim_vit_demo", {**SMALL, "num_tadapter": 2}, ADAPTERS, probe={"adapter_layers": "top"}),
    Case(
        "aim_vit_h14_clipa",
        {**SMALL, "embed_dim": 64, "num_heads": 2, "patch_size": 8},
        ADAPTERS,
        probe={"adapters": ()},
    ),
    Case("aim_vit_imagenet_demo", {**SMALL, "num_tadapter": 2}, ADAPTERS, probe={"adapter_layers": "top"}),
    Case(
        "aim_swin_demo",
        {"img_size": 32, "patch_size": (2, 4, 4), "window_size": 4, "num_frames": 4},
        r"fc_cls\..*|.*Adapter2?\.D_fc[12]\..*|.*temporal_position_bias_table",
        (2, 6),
    ),
    Case("timesformer_demo", SMALL, ".*"),
    Case(
        "promptclip_demo",
        {**SMALL, **PROMPT, "class_names": ("left", "right", "up")},
        r"embedding\.weight|temporalEmbedding\.weight|temporalModelling\..*",
        probe={},
    ),
]
NAMED = {"class_names": ("left", "right", "up"), "text_depth": 1}
# Networks of other libraries; without transformers its own are left out
STILL = {"img_size": 32, "num_frames": 4, "num_classes": 5, "head_dropout": 0.0}
MVIT = {**STILL, "depth": 4, "embed_dim": 8, "doubled": (1, 3), "drop_path": 0.0}
LESS = {"depth": 2, "doubled": (1,)}
SWIN3D = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": (2, 4, 4), "drop_path": 0.0}
VIT = {**STILL, "embed_dim": 48, "depth": 2, "num_heads": 2}
NETWORKS_MADE_SMALL = [
    Case("torchvision:mvit_v1_b", MVIT, ".*", (2, 6), shallow=LESS),
    Case("torchvision:mvit_v2_s", MVIT, ".*", (2, 6), shallow=LESS),
    Case("torchvision:swin3d_t", {**STILL, **SWIN3D}, ".*", (2, 6)),
    Case("transformers:timesformer", VIT, ".*"),
    Case("transformers:vivit", VIT, ".*", (2, 6)),
    Case("transformers:videomae", VIT, ".*", (2, 6)),
    Case("transformers:vjepa2_l", VIT, r"attentive_.*|fc_cls\..*", (2, 6), probe={}),
]
TAIL = r"temporal_embedding|ln_post\..*|fc_cls\..*"
CASES += [  # the other methods, on one trunk
    Case(
        "aim_vit_demo",
        {**SMALL, "method": "st_adapter", "adapter_before": ("attention", "mlp"), "adapter_width": 16},
        r"fc_cls\..*|.*\.adapter_pre_(attn|mlp)\.(fc1|conv|fc2)\.(weight|bias)",
        probe={"adapter_layers": "top"},
    ),
    Case(
        "aim_vit_demo",
        {**SMALL, "method": "zeroi2v", "shift_reach": 2},
        rf"{TAIL}|.*\.(T_Adapter_in|S_Adapter|MLP_Adapter|MLP_Adapter_out)\.D_fc[12]\..*",
    ),
    Case("aim_vit_demo", {**SMALL, "method": "lora"}, rf"{TAIL}|.*\.lora\.[qv]_(up|down)"),
    Case(
        "aim_vit_demo",
        {**SMALL, "method": "bitfit", "attention_over_time": True},
        rf"{TAIL}|.*bias|.*\.T_Adapter\.D_fc[12]\..*",
    ),
    Case("aim_vit_demo", {**SMALL, **NAMED, "method": "x_clip"}, r"(?!text\.).*"),
    Case("aim_vit_demo", {**SMALL, **NAMED, "method": "actionclip", "fusion_layers": 2}, r".*"),
]
BESIDE = r"side\..*|fc_cls\..*"
CASES += [  # and those that are a network beside it
    Case("aim_vit_demo", {**SMALL, "method": "evl"}, BESIDE, probe={"decoder_layers": 1}),
    Case("aim_vit_demo", {**SMALL, "method": "side4video", "side_width": 64}, BESIDE, probe={}),
    Case(
        "aim_vit_demo",
        {**SMALL, "method": "dist", "dist_width": 64, "dist_temporal": 8, "dist_pooling": 1},
        BESIDE,
        frames=(2, 6),
        probe={},
        in_minutes=True,
    ),
]
TINY = {"img_size": 32, "num_frames": 4}
CASES += [  # trained whole
    Case(
        "uniformer_demo",
        TINY,
        ".*",
        shallow={"depths": (1, 1, 1, 1)},
        in_minutes=True,
    ),
    Case("vivit_fe_demo", {**SMALL, "temporal_layers": 1}, ".*", (2, 6), in_minutes=True),
    Case("mtv_demo", TINY, ".*", (8,), shallow={"depths": (1, 2)}, in_minutes=True),
    Case("tokenlearner_demo", {**SMALL, "learner_at": 1}, ".*", (2, 6), shallow={"depth": 2}, in_minutes=True),
]
CASES += [case for case in NETWORKS_MADE_SMALL if importlib.util.find_spec(case.model.partition(":")[0])]
DEEP = [case for case in CASES if not (is_library(case.model) or case.in_minutes)]
every_model = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def loss_of(model, case, forward):
    """Of a training step, with the loss that the method brings."""
    labels = torch.tensor([0, 1])
    logits = forward(case.clips(), *model.step_inputs(labels, torch.tensor([3, 5])))
    return model.losses(logits, labels, torch.ones(2), 0.0).mean()


def test_every_class_of_the_table_has_a_case():
    there = {entry.model for entry in MODELS.values()} | {LibraryModel}
    assert there == {find_entry(case.model).model for case in CASES}


@every_model
def test_what_trains_is_what_the_method_says_and_all_of_it_gets_a_gradient(case):
    model = case.make()
    trainable = dict(model.trainable_parameters())
    assert set(trainable) == {name for name, _ in model.named_parameters() if re.fullmatch(case.trains, name)}
    loss_of(model, case, model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trainable)
    assert all(torch.isfinite(parameter.grad).all() for parameter in trainable.values())


@every_model
def test_its_configuration_makes_it_again_and_its_state_fills_it(case, tmp_path):
    model = case.make().eval()
    truth = model(case.clips())
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin = create_model(case.model, **json.loads(json.dumps(model.config))).eval()
    assert not torch.equal(twin(case.clips()), truth)
    load_checkpoint(twin, tmp_path / "m.safetensors")
    assert torch.equal(twin(case.clips()), truth)
    assert [n for n, _ in twin.trainable_parameters()] == [n for n, _ in model.trainable_parameters()]
    assert twin.config == model.config


@every_model
def test_uint8_frames_and_normalised_floats_agree(case):
    model = case.make(mean=(100, 110, 120), std=(50, 60, 70)).double().eval()
    frames = case.clips()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (model.mean, model.std))
    floats = ((frames.double() - mean) / std).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(model(frames), model(floats), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.normalize(frames), floats.float())


@every_model
def test_any_number_of_frames_that_it_takes(case):
    for num_frames in case.frames:
        model = case.make(num_frames=num_frames)
        logits = model(case.clips(num_frames))
        logits.sum().backward()
        assert logits.shape == (2, model.num_classes)
        assert torch.isfinite(logits).all()
        with pytest.raises(ValueError, match="expected a clip batch"):
            model(case.clips(num_frames + 2))


@every_model
def test_trains_as_on_a_gpu_where_blocks_are_formed_together(case, monkeypatch):
    found = []
    for on_a_gpu in (False, True):
        monkeypatch.setattr(formed_together, "_gains", lambda x, on_a_gpu=on_a_gpu: on_a_gpu)
        monkeypatch.setattr(shared_norms, "gains", lambda x, on_a_gpu=on_a_gpu: on_a_gpu)
        model = case.make().double()
        loss = loss_of(model, case, model)
        loss.backward()
        found.append([loss, *(parameter.grad for _, parameter in model.trainable_parameters())])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


@every_model
def test_trains_compiled_without_graph_breaks_as_eagerly(case):
    shallow = {"depth": 1} if "depth" in case.overrides else {"depths": (2,), "num_heads": (2,)}  # one shifted window
    train_compiled_and_eagerly(case, case.shallow or shallow, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", DEEP, ids=lambda case: case.name)
def test_trains_compiled_by_default_as_deep_as_b16(case, no_graph_cache):
    """What a compiler does for one block must not grow with the blocks before it. Three steps, one graph each way.

    A trunk has all of B/16's blocks under AIM and a third of them under each other method: inductor takes minutes.
    """
    depth = 4 if "method" in case.overrides else 12
    deep = {name: depth for name in ("depth", "text_depth") if name in case.overrides}
    deep = deep or {"depths": (6, 6), "num_heads": (2, 4)}
    counters = torch._dynamo.utils.counters
    counters.clear()
    train_compiled_and_eagerly(case, deep, "inductor", steps=3)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def train_compiled_and_eagerly(case, overrides, backend, steps=1):
    """Loss and gradients of both agree; no step after the first is compiled again."""
    torch.compiler.reset()
    model = case.make(**overrides)
    truth, compiled = copy.deepcopy(model), torch.compile(model, fullgraph=True, backend=backend)
    for step in range(steps):
        losses = []
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            for side, forward in ((truth, truth), (model, compiled)):
                side.zero_grad()
                losses.append(loss_of(side, case, forward))
                losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-6)
    for (name, found), (_, wanted) in zip(model.trainable_parameters(), truth.trainable_parameters(), strict=True):
        error, size = (found.grad - wanted.grad).norm().item(), wanted.grad.norm().item()
        assert error <= 1e-3 * size + 1e-6, f"{name}: off by {error:.3g} of {size:.3g}"


@every_model
def test_stored_features_give_the_logits_of_their_clips_or_are_refused(case):
    model = case.make(**(case.probe or {})).eval()
    if case.probe is None:
        with pytest.raises(UsageError):
            model.frozen_features(case.clips())
        return
    features = model.frozen_features(case.clips())
    assert not features.requires_grad
    assert torch.equal(model(features), model(case.clips()))


@every_model
def test_weights_called_random_are_the_same_whatever_was_drawn_before(case):
    def value(model):  # of features too, as some classifiers start at zero
        return (model(case.clips()).sum() + model.forward_features(case.clips()).sum()).item()

    hashes = []
    for draws in (0, 7):
        model = case.make()
        torch.manual_seed(draws)
        before = torch.get_rng_state()
        report = load_weights(model, "random", seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        hashes.append((report.sha256, value(model)))
    assert hashes[0] == hashes[1]
    other = case.make()
    load_weights(other, "random", seed=4)
    assert value(other) != hashes[0][1]


@every_model
def test_what_takes_no_weight_decay_is_there_and_no_adapter(case):
    model = case.make()
    free = model.no_weight_decay()
    assert free <= {name for name, _ in model.named_parameters()}
    decayed = {"temporal_embedding"} if case.overrides.get("method") != "zeroi2v" else set()  # as its authors have it
    assert not [name for name in free if "_Adapter" in name or name in decayed]


@pytest.mark.parametrize("part", ["freeze", "reset_parameters", "fit_weights", "forward_features", "forward_head"])
def test_a_model_that_lacks_a_part_of_the_contract_is_not_made(part):
    own = {name: lambda self, *_: None for name in VideoModel.__abstractmethods__ - {part}}
    with pytest.raises(TypeError, match=part):
        type("Model", (VideoModel,), own)()


@pytest.mark.parametrize(
    ("model", "classes", "num_tadapter", "tunable"),
    [
        ("aim_vit_b16_clip", 400, 1, 10_966_672),
        ("aim_vit_b16_clip", 174, 2, 14_343_342),
        ("aim_vit_b16_in21k", 400, 1, 10_966_672),
        ("aim_vit_b16_in21k", 174, 2, 14_343_342),
    ],
)
def test_tunable_counts_are_the_published_ones(model, classes, num_tadapter, tunable):
    assert count_costs(model, {"num_classes": classes, "num_tadapter": num_tadapter})[1] == tunable
