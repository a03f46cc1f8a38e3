"""The published optimiser groups and learning rates."""

import math

import pytest

from aim_fast.models.registry import create_model
from aim_fast.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from aim_fast.training.recipe_file import load_recipe


def rates(recipe, steps_per_epoch):
    return [
        learning_rate(recipe, step, steps_per_epoch) for step in range(recipe.optimisation.epochs * steps_per_epoch)
    ]


def test_the_cosine_is_stepped_per_epoch():
    recipe = load_recipe("k400_b16_8f", {"epochs": 10, "warmup_epochs": 0})
    for step, rate in enumerate(rates(recipe, 7)):
        assert rate == pytest.approx(0.5 * 3e-4 * (1 + math.cos(math.pi * (step // 7) / 10)))


def test_the_warm_up_is_linear_per_iteration_from_a_tenth_of_the_epochs_own_rate():
    recipe = load_recipe("k400_b16_8f", {"epochs": 10})
    plain = rates(recipe.replace(warmup_epochs=0.0), 4)
    warm = rates(recipe, 4)
    for step in range(10):  # 2.5 epochs of 4 steps
        assert warm[step] == pytest.approx(plain[step] * (0.1 + 0.9 * step / 10))
    assert warm[10:] == plain[10:]


def test_the_cosine_of_the_peers_begins_where_the_warm_up_ends():
    recipe = load_recipe("k400_st_adapter", {"epochs": 10})
    found = rates(recipe, 4)
    for step, rate in enumerate(found):  # a warm-up of 2 epochs from 0
        past = max(step - 8, 0) / 32
        wanted = 7.5e-4 * min(step / 8, 1) * 0.5 * (1 + math.cos(math.pi * past))
        assert rate == pytest.approx(wanted)


def test_groups_are_the_published_ones():
    model = create_model("aim_vit_demo", num_classes=3)
    optimizer = build_optimizer(model, load_recipe("ssv2_l14_8f", {}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["weight_decay"], group["lr_factor"])
    assert set(seen) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert seen["ln_post.weight"] == (0.0, 0.1)
    assert seen["temporal_embedding"] == (0.05, 0.1)
    assert seen["transformer.resblocks.0.S_Adapter.D_fc1.bias"] == (0.05, 0.1)
    assert seen["fc_cls.weight"] == (0.05, 1.0)
    set_learning_rate(optimizer, 2e-4)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([2e-5, 2e-4])


@pytest.mark.parametrize(
    ("model", "options"), [("aim_vit_demo", {"tune": "all", "adapters": ()}), ("timesformer_demo", {})]
)
def test_full_fine_tuning_decays_everything_but_norms_and_image_embeddings(model, options):
    model = create_model(model, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, load_recipe("demo", {"backbone_lr_factor": 0.1})).param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays.keys() == {name for name, _ in model.trainable_parameters()}
    bare = {name for name, decay in decays.items() if decay == 0}
    assert {name.split(".")[-2] for name in bare if "." in name} <= {"ln_pre", "ln_post", "ln_1", "ln_2", "t_norm"}
    assert {name for name in bare if "." not in name} == {"class_embedding", "positional_embedding"}
    assert all(f"transformer.resblocks.3.{norm}.weight" in bare for norm in ("ln_1", "ln_2"))
