"""A recipe's fields of a model are made of the model's own records, which no torch is needed for."""

import subprocess
import sys
import typing

import pytest

from aim_fast.models.argument_checks import item_kind
from aim_fast.models.heads import ALL_HEADS, HEADS
from aim_fast.models.methods import METHODS, method_lines
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.record import Clips
from aim_fast.models.trunks import TRUNKS
from aim_fast.training.part_groups import UNTOLD
from aim_fast.training.recipe import FIELDS

RECORDS = (*METHODS.values(), *TRUNKS, Prompting, *ALL_HEADS.values(), Clips)
every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)


def choices(kind):
    """The words that a type takes."""
    kinds = typing.get_args(kind)
    return set(kinds) if typing.get_origin(kind) is typing.Literal else set().union(*map(choices, kinds))


@every_record
def test_a_field_of_a_recipe_is_that_of_the_record(record):
    kinds, about = record.kinds(), record.about()
    for name, default in record.defaults().items():
        if name not in FIELDS:
            assert not about[name].help, name
            continue
        field = FIELDS[name]
        assert field.description == about[name].help, name
        assert field.default is None or field.default in (default, (default,)) or record.__name__ == "Swin", name
        assert not choices(kinds[name]) or choices(kinds[name]) == choices(field.annotation), name


@every_record
def test_records_say_the_same_of_an_argument_that_several_have(record):
    for other in RECORDS:
        for name in record.about().keys() & other.about().keys() - {"num_frames", "num_classes"}:
            mine, theirs = record.about()[name], other.about()[name]
            if "Head" not in (record.heading, other.heading) and mine.help:
                assert (mine.help, mine.told, mine.structure) == (theirs.help, theirs.told, theirs.structure), name


@every_record
def test_the_help_of_a_choice_names_the_words(record):
    for name, field in record.options().items():
        kind = record.kinds()[field.name]
        words = typing.get_args(item_kind(kind) or kind) if choices(kind) else ()
        assert [word for word in words if word not in record.about()[name].help] == [], name


def test_what_a_checkpoint_does_not_tell_is_what_the_records_say():
    own = ("shift_div", "shift_reach", "lora_alpha")  # of methods
    assert ("adapter_scale", *own, "activation", "prompt_prefix", "prompt_postfix") == UNTOLD
    assert {"adapters", "adapter_layers", "num_tadapter"}.isdisjoint(UNTOLD)


def test_methods_and_heads_are_those_of_the_records():
    assert choices(FIELDS["method"].annotation) == set(method_lines())
    assert choices(FIELDS["head"].annotation) == set(HEADS)
    assert all(word in FIELDS["method"].description for word in method_lines())


@pytest.mark.parametrize("command", ["train", "eval", "convert", "features", "ablate", "models", "compare", "doctor"])
def test_help_imports_no_torch(command):
    program = (
        "import sys\nfrom aim_fast.cli import main\n"
        f"try: main(['{command}', '--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: aim-fast" in done.stdout
