"""The groups of a recipe that say what is trained, made of the records of trunks, methods and heads.

An argument of a record that has a help is a field of the group of its record's heading, or, where it is ``shared``, of
``model``. So a part that is added brings its options to recipes, the command line and ``--help``. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from aim_fast.models.heads import ALL_HEADS, HEADS
from aim_fast.models.methods import METHODS, method_lines
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.record import Record
from aim_fast.models.trunk import Trunk
from aim_fast.models.trunks import TRUNKS
from aim_fast.training.recipe_group import Group, field, field_of

_OF_FRAMES = [record for record in TRUNKS if issubclass(record, Trunk)]
_RECORDS: tuple[type[Record], ...] = (*METHODS.values(), *TRUNKS, Prompting, *ALL_HEADS.values())
# Fields whose value leaves no trace in a trained model's tensors, so that whoever opens one may have to say it.
UNTOLD = tuple(dict.fromkeys(name for record in _RECORDS for name in record.options() if not record.about()[name].told))
# Fields of trunks of frames alone: with them a frozen trunk makes other features.
TRUNK_FIELDS = tuple(dict.fromkeys(name for record in _OF_FRAMES for name in record.options()))


def _fields(records: Iterable[type[Record]], shared: bool) -> dict[str, Any]:
    """The fields that the options of records are: those that several parts have, or the others."""
    found: dict[str, Any] = {}
    for record in records:
        for name in record.options():
            if record.about()[name].shared is shared and not record.about()[name].running:
                found.setdefault(name, field_of(record, name))
    return found


def or_list(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _model_fields() -> dict[str, Any]:
    """What is trained: the names of the parts, and the options that several parts have."""
    method = f"what is put on the trunk: {or_list(method_lines())}; the model's own if not given"
    head = "; ".join(f"{name}: {head.line}" for name, head in HEADS.items())
    weights = "weights of the frozen trunk: a file, a folder, an open_clip or timm tag, or the word `random`"
    key = "entry of the weights' file that is taken, where it holds several, such as model_ema"
    below = _fields((*_OF_FRAMES, *METHODS.values()), shared=True)
    above = {name: made for name, made in _fields(_RECORDS, shared=True).items() if name not in below}
    return {
        "model": (str, field("aim_vit_b16_clip", "model name, as `aim-fast models` lists them")),
        "weights": (str | None, field(None, weights)),
        "weights_key": (str | None, field(None, key)),
        **below,
        "method": (Literal[tuple(method_lines())] | None, field(None, method)),
        "head": (Literal[tuple(HEADS)], field("linear", head)),
        **above,
    }


def _groups() -> dict[str, type[Group]]:
    found = {"Model": _model_fields()}
    known = set(found["Model"])
    for record in _RECORDS:
        own = {name: made for name, made in _fields([record], shared=False).items() if name not in known}
        if own:
            found.setdefault(record.heading or record.__name__, {}).update(own)
            known |= own.keys()
    return {
        heading.lower().replace(" ", "_").replace("-", "_"): create_model(
            heading.title().replace(" ", "").replace("-", ""),
            __base__=Group,
            __cls_kwargs__={"title": heading},
            **fields,
        )
        for heading, fields in found.items()
    }


PART_GROUPS = _groups()
PART_FIELDS = frozenset(name for group in PART_GROUPS.values() for name in group.model_fields)

if TYPE_CHECKING:

    class Parts(BaseModel):
        """A recipe's groups of what is trained: ``recipe.model.weights``, ``recipe.aim.adapters``."""

        def __getattr__(self, name: str) -> Any: ...

else:
    Parts = create_model(
        "Parts",
        __config__=ConfigDict(frozen=True, extra="forbid", defer_build=True),
        **{key: (group, Field(default_factory=group)) for key, group in PART_GROUPS.items()},
    )
