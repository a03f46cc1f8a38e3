"""How many of timm's and open_clip's pretrained names are taken, and by what structure the others are refused."""

import collections
import re
from pathlib import Path

import open_clip
import pytest
import timm

from aim_fast.errors import UsageError
from aim_fast.models.registry import find_entry

PAGE = (Path(__file__).parents[2] / "docs" / "trunks.md").read_text()
# Of timm's modules, those that have Transformers of pre-norm blocks in a row.
MODULES = ("vision_transformer", "eva", "beit", "vision_transformer_relpos", "deit", "vision_transformer_hybrid")


def why_not(name):
    """The structure for which a name is refused, or None."""
    try:
        find_entry(name)
    except UsageError as error:
        return re.search(r"(?:it|its image tower) has (.+), on which no method is built", str(error))[1]
    return None


@pytest.mark.slow
def test_names_of_timm_that_are_taken():
    known = {name for module in MODULES for name in timm.list_models(module=module)}
    names = collections.Counter(tag.partition(".")[0] for tag in timm.list_pretrained())
    refused = {name: why for name in names.keys() & known if (why := why_not(f"timm:{name}"))}
    taken = sum(count for name, count in names.items() if name in known and name not in refused)
    assert taken >= 441, f"{taken} of {sum(names.values())} names, refused: {collections.Counter(refused.values())}"
    assert all("\n" not in why for why in refused.values())


@pytest.mark.slow
def test_names_of_open_clip_that_are_taken():
    refused = {name: why for name in open_clip.list_models() if (why := why_not(f"open_clip:{name}"))}
    taken = [model for model, _ in open_clip.list_pretrained() if model not in refused]
    assert len(open_clip.list_models()) - len(refused) >= 96, collections.Counter(refused.values())
    assert len(taken) >= 141, f"{len(taken)} tags; refused: {collections.Counter(refused.values())}"


@pytest.mark.slow
def test_names_of_open_clip_that_have_a_text_head():
    page = (Path(__file__).parents[2] / "docs" / "zero_shot.md").read_text()
    taken = 0
    for name in open_clip.list_models():
        try:
            taken += find_entry(f"open_clip:{name}", head="text").head == "text"
        except UsageError:
            continue
    assert f" {taken} names of open_clip" in " ".join(page.split())


def test_the_page_has_a_row_for_each_structure_that_is_refused():
    for words in ("windows and stages", "norms after attention and MLP", "attention and MLP in parallel", "NaFlex"):
        assert words in PAGE
