"""The cells of each study, and the published figures beside them."""

import pytest

from aim_fast.studies.cells import cells_of
from aim_fast.training.recipe_file import load_recipe


@pytest.mark.parametrize(
    ("study", "recipe", "published"),
    [
        ("rungs", "ssv2_b16_8f", [15.1, 36.2, 36.7, 61.2, 62.0, 59.5]),
        ("positions", "k400_b16_8f", [80.7, 83.3, 83.2, 83.9]),
        ("ratios", "k400_b16_8f", [83.3, 83.4, 83.9, 83.8]),
        ("data", "k400_b16_8f", [55.4, 73.0, 81.8, 83.9]),
        ("data", "ssv2_timesformer_b16_8f", [46.5, 69.8, 79.1, 82.0]),
    ],
)
def test_the_published_tables_stand_beside_the_cells(study, recipe, published):
    assert [cell.published for cell in cells_of(study, load_recipe(recipe, {}), 0.1)] == published


def test_rungs_change_what_trains_and_nothing_else():
    recipe = load_recipe("ssv2_b16_8f", {})
    rungs = {cell.key: recipe.replace(**cell.changes) for cell in cells_of("rungs", recipe, 0.1)}
    assert rungs["joint"] == recipe
    assert (rungs["frozen"].aim.adapters, rungs["frozen"].model.tune) == ((), None)
    assert (rungs["finetuned"].aim.adapters, rungs["finetuned"].model.tune) == ((), "all")
    assert rungs["spatial"].aim.temporal_place == "frozen"
    assert rungs["timesformer"].model.model == "timesformer_b16_clip"
    assert {rung.optimisation.epochs for rung in rungs.values()} == {recipe.optimisation.epochs}
