"""Recipes: the published values, files of a user's own, and every way they can be wrong."""

import pytest

from aim_fast.errors import UsageError
from aim_fast.training.recipe import FIELDS, Recipe, recipe_differences
from aim_fast.training.recipe_file import default_recipe, load_recipe, shipped_recipes
from aim_fast.training.recipe_groups import parse_views
from aim_fast.training.steps import Steps


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads(name):
    assert isinstance(load_recipe(name, {}), Recipe)


def test_ssv2_recipe_holds_the_published_values():
    recipe = load_recipe("ssv2_b16_8f", {})
    assert (recipe.data.frames, recipe.data.interval, recipe.aim.num_tadapter, recipe.aim.adapter_scale) == (
        8,
        0,
        2,
        1.0,
    )
    assert (
        recipe.optimisation.epochs,
        recipe.optimisation.lr,
        recipe.optimisation.weight_decay,
        recipe.optimisation.warmup_epochs,
    ) == (50, 3e-4, 0.05, 2.5)
    assert (
        recipe.augmentation.flip,
        recipe.augmentation.randaugment,
        recipe.augmentation.random_erasing,
        recipe.augmentation.label_smoothing,
    ) == (0.0, (4, 7), 0.25, 0.1)
    assert (recipe.optimisation.total_batch_size, recipe.model.drop_path, recipe.evaluation.views) == (64, 0.2, "1x3")


@pytest.mark.parametrize(("frames", "interval"), [(8, 16), (16, 8), (32, 4)])
def test_kinetics_recipes_cover_128_frames(frames, interval):
    for trunk in ("b16", "l14"):
        recipe = load_recipe(f"k400_{trunk}_{frames}f", {})
        assert (recipe.data.frames, recipe.data.interval, recipe.evaluation.views, recipe.optimisation.epochs) == (
            frames,
            interval,
            "3x1",
            30,
        )
        assert recipe.optimisation.backbone_lr_factor == (0.1 if trunk == "l14" else 1.0)


@pytest.mark.parametrize(
    ("name", "frames", "interval", "epochs", "views"),
    [
        ("k700_{}_8f", 8, 16, 30, "3x3"),
        ("k700_{}_32f", 32, 4, 30, "3x3"),
        ("diving48_{}_32f", 32, 0, 50, "1x1"),
    ],
)
@pytest.mark.parametrize("trunk", ["b16", "l14"])
def test_kinetics700_and_diving48_recipes_hold_the_published_values(name, frames, interval, epochs, views, trunk):
    recipe = load_recipe(name.format(trunk), {})
    assert (recipe.data.frames, recipe.data.interval, recipe.optimisation.epochs, recipe.evaluation.views) == (
        frames,
        interval,
        epochs,
        views,
    )
    assert (recipe.model.drop_path, recipe.aim.adapter_scale, recipe.aim.num_tadapter) == (0.2, 0.5, 1)
    assert (
        recipe.augmentation.flip,
        recipe.augmentation.color_jitter,
        recipe.augmentation.randaugment,
        recipe.augmentation.random_erasing,
    ) == (0.5, 0.0, (), 0.0)
    assert (
        recipe.optimisation.lr,
        recipe.optimisation.weight_decay,
        recipe.optimisation.warmup_epochs,
        recipe.optimisation.total_batch_size,
    ) == (3e-4, 0.05, 2.5, 64)
    assert (recipe.optimisation.backbone_lr_factor, recipe.augmentation.label_smoothing) == (1.0, 0.0)
    assert recipe.model.model == f"aim_vit_{trunk}_clip"
    assert recipe.data.dataset == ("kinetics700" if name.startswith("k700") else "diving48")


def test_swin_recipes_hold_the_published_values():
    k400, ssv2 = (load_recipe(f"{data}_swin_b", {}) for data in ("k400", "ssv2"))
    assert (
        k400.data.frames,
        k400.data.interval,
        k400.optimisation.epochs,
        k400.evaluation.views,
        k400.model.drop_path,
    ) == (32, 2, 30, "4x3", 0.2)
    assert (
        ssv2.data.frames,
        ssv2.data.interval,
        ssv2.optimisation.epochs,
        ssv2.evaluation.views,
        ssv2.model.drop_path,
    ) == (32, 0, 60, "1x3", 0.4)
    assert (k400.optimisation.lr, ssv2.optimisation.lr, k400.augmentation.flip, ssv2.augmentation.flip) == (
        1e-3,
        3e-4,
        0.5,
        0.0,
    )
    assert (ssv2.augmentation.randaugment, ssv2.augmentation.random_erasing, ssv2.augmentation.label_smoothing) == (
        (4, 7),
        0.25,
        0.1,
    )
    for recipe, accumulation in ((k400, 2), (ssv2, 4)):
        assert (recipe.model.model, recipe.optimisation.backbone_lr_factor, recipe.aim.adapter_scale) == (
            "aim_swin_b",
            0.1,
            0.5,
        )
        assert Steps.of(recipe, 1000, world=8).accumulate == accumulation


def test_recipes_of_imagenet_trunks_are_the_published_ones():
    k400, ssv2 = (load_recipe(f"{data}_in21k_b16_8f", {}) for data in ("k400", "ssv2"))
    assert (
        k400.data.frames,
        k400.data.interval,
        k400.optimisation.epochs,
        k400.evaluation.views,
        k400.model.drop_path,
    ) == (8, 16, 30, "3x1", 0.2)
    assert (
        ssv2.data.frames,
        ssv2.data.interval,
        ssv2.optimisation.epochs,
        ssv2.evaluation.views,
        ssv2.model.drop_path,
    ) == (8, 0, 50, "1x3", 0.2)
    assert (k400.aim.adapter_scale, k400.aim.num_tadapter, ssv2.aim.adapter_scale, ssv2.aim.num_tadapter) == (
        0.5,
        1,
        1.0,
        2,
    )
    assert {k400.model.drop_path_mode, ssv2.model.drop_path_mode} == {"frame"}
    assert {k400.model.model, ssv2.model.model} == {"aim_vit_b16_in21k"}


@pytest.mark.parametrize(
    ("dataset", "model", "frames", "name"),
    [
        ("ssv1", None, 16, "ssv2_b16_16f"),
        ("kinetics400", None, 16, "k400_b16_16f"),
        ("kinetics600", "aim_vit_l14_clip", None, "k400_l14_8f"),
        ("kinetics700", None, 32, "k700_b16_32f"),
        ("kinetics700", "aim_vit_l14_clip", 16, "k700_l14_8f"),
        ("diving48", None, None, "diving48_b16_32f"),
        ("ucf101", None, None, "finetune_b16"),
        ("ssv2", None, None, "ssv2_b16_8f"),
        ("ssv2", "aim_vit_l14_clip", 32, "ssv2_l14_32f"),
        ("folder", "aim_vit_l14_clip", 8, "finetune_l14"),
        ("ssv2", "aim_vit_demo", 8, "demo"),
        ("ssv2", "aim_vit_b16_in21k", 16, "ssv2_in21k_b16_8f"),
        ("kinetics400", "aim_vit_l16_in21k", 32, "k400_in21k_b16_32f"),
        ("kinetics400", "timm:vit_small_patch14_reg4_dinov2", None, "k400_in21k_b16_8f"),
        ("ucf101", "timm:vit_large_patch14_dinov2.lvd142m", 8, "finetune_in21k_b16"),
        ("ssv2", "aim_swin_b", 8, "ssv2_swin_b"),
        ("kinetics400", "aim_swin_t", None, "k400_swin_b"),
        ("ucf101", "aim_swin_s", None, "finetune_swin_b"),
        ("ssv2", "aim_swin_demo", 8, "demo_swin"),
    ],
)
def test_the_recipe_is_chosen_by_data_set_model_and_frames(dataset, model, frames, name):
    assert default_recipe(dataset, model, frames) == name


@pytest.mark.parametrize("model", ["vit_b16_clip", "open_clip:ViT-B-32-quickgelu", None])
def test_a_trunk_under_promptclip_takes_the_recipe_of_the_name_that_is_short_for_it(model):
    named, asked = {"dataset": "ssv2", "method": "promptclip"}, {} if model is None else {"model": model}
    recipe, short = load_recipe(None, named | asked), load_recipe(None, {"dataset": "ssv2", "model": "promptclip_b16"})
    kept = {name: value for name, value in short.fields().items() if name not in ("model", "method")}
    assert {name: recipe.fields()[name] for name in kept} == kept
    assert recipe.model.model == (model or short.model.model)


def test_typed_options_win_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: ssv2_b16_8f\nlr: 1e-3\nepochs: 7\n")
    recipe = load_recipe(path, {"epochs": "9", "randaugment": "", "adapters": "spatial,joint"})
    assert (recipe.optimisation.lr, recipe.optimisation.epochs, recipe.augmentation.randaugment) == (1e-3, 9, ())
    assert recipe.aim.adapters == ("spatial", "joint")
    assert recipe.augmentation.label_smoothing == 0.1


def test_a_saved_recipe_reads_back_equal(tmp_path):
    recipe = load_recipe("k400_l14_16f", {"adapters": "none", "weights": "random", "img_size": 64})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path, {}) == recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("modle: x\n", "did you mean 'model'?"),
        ("frames: eight\n", "frames is 'eight', not a whole number"),
        ("frames: 0\n", "must be at least 1"),
        ("flip: 1.5\n", "must be from 0 to 1"),
        ("adapters: [spatail]\n", "did you mean 'spatial'?"),
        ("a: b: c\n", "not valid YAML at line 1"),
        ("- 1\n", "holds no fields"),
        ("precision: fp4\n", "one of auto, bf16, fp16, fp32, fp8"),
        ("compile: perhaps\n", "not yes or no"),
        ("extends: ssv2_b16_9f\n", "did you mean"),
        ("epochs: 3\n\n# rates\nlr: high\n", "mine.yaml, line 4: lr is 'high'"),
        ("epochs: 3\nlr 1e-3\nseed: 1\n", "not valid YAML at line 2"),
        ("epochs: 3\n  lr: 1e-3\nseed: 1\n", "not valid YAML at line 2"),
        ("epochs: 3\nbetas: [0.9, 0.98\nseed: 1\n", "not valid YAML at line 2"),
        ("epochs: 3\nmodel: 'aim\nseed: 1\n", "not valid YAML at line 2"),
        ("epochs: 3\n\tlr: 1e-3\n", "not valid YAML at line 2"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "epochs is given at line 1 and at line 3"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, content, says):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_recipe(path, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_recipe(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("text", ["3", "3x", "x3", "0x1", "1x2", "axb", "1x3x1", "-1x3"])
def test_views_that_are_not_clips_by_crops_are_refused(text):
    with pytest.raises(UsageError, match="CLIPSxCROPS"):
        parse_views(text)


def test_views_are_read():
    assert parse_views("3x1") == (3, 1)
    assert parse_views(" 2X3 ") == (2, 3)


def test_differences_name_what_changes_the_result_and_nothing_else():
    saved = load_recipe("ssv2_b16_8f", {})
    asked = saved.replace(lr=1e-3, workers=4, output="elsewhere", log_every=1)
    assert recipe_differences(saved, asked) == ["lr: 0.0003 -> 0.001"]


def test_every_field_says_what_it_is():
    assert all(field.description for field in FIELDS.values())
