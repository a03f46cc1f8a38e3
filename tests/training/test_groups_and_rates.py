"""What a recipe says of rates and weight decay by groups of parameters: parts, patterns, schedules, SGD."""

import math

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.models.registry import create_model
from aim_fast.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from aim_fast.training.recipe_file import load_recipe


def groups(fields, model="aim_vit_demo", **options):
    """Of every trained parameter its weight decay and its factor on the learning rate."""
    made = create_model(model, num_classes=3, **options)
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    optimizer = build_optimizer(made, load_recipe("demo", {"weight_decay": 0.05, **fields}))
    found = {names[id(p)]: (group["weight_decay"], group["lr_factor"]) for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    assert found.keys() == {name for name, _ in made.trainable_parameters()}
    return found


def test_factors_are_by_part_and_by_pattern_and_the_first_that_fits_is_taken():
    found = groups(
        {"lr_factors": "*resblocks.0.S_*=3,head=10,method=2,trunk=0.5", "backbone_lr_factor": 0.1},
        method="aim",
        tune="all",
    )
    assert found["transformer.resblocks.0.S_Adapter.D_fc1.weight"][1] == 3
    assert found["transformer.resblocks.1.S_Adapter.D_fc1.weight"][1] == found["temporal_embedding"][1] == 2
    assert found["fc_cls.weight"][1] == found["fc_cls.bias"][1] == 10
    assert found["conv1.weight"][1] == found["ln_post.bias"][1] == 0.5


def test_what_no_factor_names_keeps_the_recipes_own():
    found = groups({"lr_factors": "ln_*=4", "backbone_lr_factor": 0.1})
    assert {name.split(".")[0] for name, (_, factor) in found.items() if factor == 4} == {"ln_post"}
    assert found["fc_cls.weight"][1] == 1.0
    assert found["transformer.resblocks.0.S_Adapter.D_fc1.weight"][1] == 0.1


def test_a_head_is_a_part_whatever_it_is_made_of():
    found = groups({"lr_factors": "head=7"}, head="attentive")
    assert {name for name, (_, factor) in found.items() if factor == 7} == {
        name for name in found if name.startswith(("fc_cls.", "attentive_"))
    }


@pytest.mark.parametrize(
    ("words", "free"),
    [
        ("none", lambda name, p: False),
        ("biases", lambda name, p: name.endswith("bias")),
        ("norms", lambda name, p: ".ln_" in name or name.startswith("ln_")),
        ("vectors", lambda name, p: p.ndim <= 1),
        ("embeddings", lambda name, p: "embed" in name),
        ("vectors,*positional_embedding", lambda name, p: p.ndim <= 1 or name == "positional_embedding"),
        ("norms,embeddings,biases", lambda name, p: ".ln_" in name or "ln_" in name[:3] or "embed" in name
         or name.endswith("bias")),
    ],
)  # fmt: skip
def test_no_decay_is_said_in_words_or_patterns(words, free):
    found = groups({"no_decay": words}, method="aim", tune="all")
    shapes = dict(create_model("aim_vit_demo", num_classes=3).named_parameters())
    assert {name for name, (decay, _) in found.items() if decay == 0} == {n for n in found if free(n, shapes[n])}


@pytest.mark.parametrize(
    ("field", "value"), [("lr_factors", "mesage_*=10"), ("no_decay", "mesage_*"), ("lr_factors", "norms=3")]
)
def test_a_pattern_that_is_no_parameters_name_is_refused(field, value):
    word = value.partition("=")[0].rstrip("*")
    with pytest.raises(UsageError, match=f"{field}: no parameter that trains is named {word}") as caught:
        groups({field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr_factors": "head"}, "NAME=FACTOR each"),
        ({"lr_factors": "head=-1"}, "NAME=FACTOR each"),
        ({"lr_drops": "3,5"}, "given with schedule drops"),
        ({"lr_drops": "5,3", "schedule": "drops"}, "epochs from 1, ascending"),
        ({"min_lr": "1"}, "at most lr"),
        ({"optimizer": "adam"}, "one of adamw, sgd"),
    ],
)
def test_what_cannot_be_is_one_line(fields, says):
    with pytest.raises(UsageError, match=says) as caught:
        load_recipe("demo", fields)
    assert "\n" not in str(caught.value)


def test_the_cosine_ends_at_the_floor_whose_warm_up_begins_below_it():
    recipe = load_recipe("k400_st_adapter", {"epochs": 10, "lr": 8e-6, "min_lr": 8e-8, "warmup_epochs": 5})
    found = [learning_rate(recipe, step, 4) for step in range(40)]
    for step, rate in enumerate(found):
        cosine = 8e-8 + (8e-6 - 8e-8) * 0.5 * (1 + math.cos(math.pi * max(step - 20, 0) / 20))
        assert rate == pytest.approx(min(step / 20, 1) * cosine)
    assert min(found[20:]) >= 8e-8


def test_rates_may_fall_to_a_tenth_at_named_epochs():
    recipe = load_recipe("demo", {"schedule": "drops", "lr_drops": "11,14", "epochs": 15, "lr": 5e-3,
                                  "warmup_epochs": 0})  # fmt: skip
    found = [learning_rate(recipe, 3 * epoch + 1, 3) for epoch in range(15)]
    assert found == pytest.approx([5e-3] * 11 + [5e-4] * 3 + [5e-5])


def test_sgd_steps_as_its_formula_says_with_each_groups_factor():
    model = create_model("aim_vit_demo", num_classes=3)
    recipe = load_recipe("demo", {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1, "lr_factors": "head=2"})
    optimizer = build_optimizer(model, recipe)
    weight = model.fc_cls.weight
    value, moving = weight.detach().double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for number in range(3):
        set_learning_rate(optimizer, 0.1 / (1 + number))
        weight.grad = torch.full_like(weight, 0.5 - number)
        optimizer.step()
        moving = 0.8 * moving + 0.5 - number + 0.1 * value
        value = value - 2 * 0.1 / (1 + number) * moving
    torch.testing.assert_close(weight.detach().double(), value, rtol=1e-5, atol=1e-6)
