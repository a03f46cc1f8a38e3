"""The rungs and baselines as recipes: what each trains, what its checkpoint holds, and that it is read back."""

import pytest
from safetensors import safe_open

from aim_fast.models.registry import create_model
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.recipe_model import model_options


def tensor_names(run):
    with safe_open(run / "checkpoints" / "last" / "adapters.safetensors", "pt") as file:
        return set(file.keys())


def test_full_fine_tuning_saves_everything_and_needs_no_trunk_to_be_read_back(aim_fast, tiny, trunk, tmp_path):
    import shutil

    weights, run = tmp_path / "trunk.safetensors", tmp_path / "run"
    shutil.copy(trunk, weights)
    options = (*tiny, "--weights", weights, "--adapters", "none", "--tune", "all", "--epochs", 1, "--lr", 1e-3)
    extra = ("--ema", 0.5, "--precision", "bf16", "--memory", "balanced", "--output", run, "--quiet")
    assert aim_fast("train", *options, *extra)[0] == 0
    names = {name for name, _ in create_model("aim_vit_demo").named_parameters() if "_Adapter" not in name}
    assert tensor_names(run) == names - {"temporal_embedding"}
    weights.unlink()
    status, out, err = aim_fast("eval", run)
    assert status == 0, err
    assert "top-1" in out


def test_timesformer_trains_and_resumes(aim_fast, tiny, tmp_path):
    run = tmp_path / "run"
    options = (*tiny, "--model", "timesformer_demo", "--output", run, "--quiet")
    assert aim_fast("train", *options, "--epochs", 1)[0] == 0
    assert any(".t_attn." in name for name in tensor_names(run))
    status, _, err = aim_fast("train", *options, "--epochs", 1, "--resume")
    assert status == 0, err


def test_adapters_in_the_top_half(aim_fast, tiny, tmp_path):
    run = tmp_path / "run"
    options = (*tiny, "--adapter-layers", "top", "--epochs", 1, "--output", run, "--quiet")
    assert aim_fast("train", *options)[0] == 0
    blocks = {name.split(".")[2] for name in tensor_names(run) if "_Adapter" in name}
    assert blocks == {"2", "3"}
    assert aim_fast("eval", run)[0] == 0


def test_options_that_a_model_has_nothing_to_do_with_are_refused(aim_fast, tiny, tmp_path):
    options = (*tiny, "--model", "timesformer_demo", "--adapter-ratio", 0.5, "--output", tmp_path / "run")
    status, _, err = aim_fast("train", *options)
    assert status == 2
    assert "model timesformer_demo takes no --adapter-ratio" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("ssv2_b16_frozen", 0.134e6),
        ("ssv2_b16_finetuned", 85.93e6),
        ("ssv2_b16_spatial", 3.7e6),
        ("ssv2_b16_temporal", 10.8e6),
        ("ssv2_b16_8f", 14.343342e6),
        ("ssv2_timesformer_b16_8f", 121.4e6),
        ("k400_b16_bottom", 5.65e6),
        ("k400_b16_top", 5.65e6),
        ("k400_b16_alternate", 5.65e6),
    ],
)
def test_each_recipe_trains_what_was_published(recipe, trained):
    import torch

    recipe = load_recipe(recipe, {})
    classes = 174 if recipe.data.dataset == "ssv2" else 400
    with torch.device("meta"):
        model = create_model(recipe.model.model, **model_options(recipe, classes))
    assert sum(p.numel() for _, p in model.trainable_parameters()) == pytest.approx(trained, rel=0.006)
