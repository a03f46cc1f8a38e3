"""ViViT, MTV and TokenLearner: the published numbers, and checkpoints by the names of flax."""

import pytest
from safetensors.torch import save_file

from aim_fast.models.identification import identify
from aim_fast.models.loading import load_weights
from aim_fast.models.registry import create_model
from aim_fast.models.weights.files import read_weights
from tests.models.golden_cases import assert_relative, flax_case, gradients_of

MODELS = {
    "vivit_fe": "vivit_fe_b16x2",
    "mtv": "mtv_b",
    "tokenlearner": "tokenlearner_l10",
    "tokenlearner_v11": "tokenlearner_l10",
}
NAMES = {
    "hidden_size": "embed_dim",
    "num_layers": "depth",
    "fusion_layers": "crossings",
    "global_mlp": "global_hidden",
    "tokenlearner_loc": "learner_at",
}
OF_VIEWS = {"embed_dims": "hidden_size", "num_heads": "num_heads", "hidden_dims": "mlp_dim", "depths": "num_layers"}
UNTOLD = {"num_heads", "global_heads", "learner_at"}  # what leaves no trace in tensors
ZERO = "token_learner.fc2.bias"  # adds the same to the scores of all places, which softmax takes away


def in_our_words(config):
    """A case's configuration as create_model takes it."""
    config = {NAMES.get(name, name): value for name, value in config.items()}
    if views := config.pop("views", None):
        config |= {ours: tuple(view[theirs] for view in views) for ours, theirs in OF_VIEWS.items()}
        config["tubelets"] = tuple(view["patches"]["size"][2] for view in views)
        config |= {"patch_size": views[0]["patches"]["size"][0], "crossings": tuple(config["crossings"])}
    else:
        config["patch_size"], _, config["tubelet"] = config.pop("patch")
    if "use_v11" in config:
        config["learner"] = "v1.1" if config.pop("use_v11") else "v1"
    return config


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    """(Name, configuration, case) of a model."""
    case = flax_case(request.param)
    return MODELS[request.param], in_our_words(case.config), case


@pytest.mark.parametrize(
    ("backend", "memory"), [("fused", "fast"), ("fused", "balanced"), ("fused", "lean"), ("reference", "fast")]
)
def test_golden_outputs_and_every_gradient(golden, backend, memory):
    name, config, case = golden
    model = create_model(name, **config, backend=backend, memory=memory).double().eval()
    model.load_state_dict(case.state)
    found = gradients_of(model, case.truth)
    assert_relative(found.features, case.truth["features"])
    assert len(found.parameters) == len(case.state)
    if ZERO in found.parameters:
        assert found.parameters[ZERO].grad.abs().max() < 1e-12
        found.truth = case.truth | {f"grad/{ZERO}": found.parameters[ZERO].grad}
    found.assert_golden()


def test_a_checkpoint_by_flax_names_is_known_and_loaded(golden, tmp_path):
    _, config, case = golden
    save_file(case.published, tmp_path / "published.safetensors")
    found = identify(read_weights(tmp_path / "published.safetensors"), "published")
    told = found.options.keys() & config.keys() - UNTOLD
    assert {name: found.options[name] for name in told} == {name: config[name] for name in told}
    model = create_model(found.model, **found.options | config).double().eval()
    assert load_weights(model, tmp_path / "published.safetensors").kind == "aim"
    assert_relative(model(case.truth["input"].double()), case.truth["logits"])
