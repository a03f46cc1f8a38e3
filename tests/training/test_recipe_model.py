"""A recipe's fields of a model have the names, choices and defaults that the model's own records have."""

import typing

import pytest

from aim_fast.models.heads import HEADS
from aim_fast.models.methods import METHODS
from aim_fast.models.record import Clips
from aim_fast.training.recipe import FIELDS

RECORDS = (*METHODS.values(), *HEADS.values(), Clips)


def choices(kind):
    """The words that a type takes."""
    kinds = typing.get_args(kind)
    return set(kinds) if typing.get_origin(kind) is typing.Literal else set().union(*map(choices, kinds))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_field_of_a_recipe_is_that_of_the_record(record):
    kinds = typing.get_type_hints(record)
    for name, default in record.defaults().items():
        if name not in FIELDS or name == "head":  # whose field chooses the record
            continue
        field = FIELDS[name]
        assert field.default is None or field.default in (default, (default,)), name
        assert not choices(kinds[name]) or choices(kinds[name]) == choices(field.annotation), name
