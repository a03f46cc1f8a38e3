"""Which model a trained checkpoint is of: its name and arguments for ``create_model``, from names and shapes alone.

Each model's class says what it recognises (``VideoModel.infer_arguments``). What leaves no trace in tensors, adapter
scale, activation, number of heads and the lengths of a prompt, is the published default, or is told by a file that this
project wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.models.composition import arguments_of
from aim_fast.models.entry import Entry
from aim_fast.models.heads import ALL_HEADS, HEADS, OF_METHODS
from aim_fast.models.identity import Identity
from aim_fast.models.libraries import is_library
from aim_fast.models.registry import MODELS, find_entry, full_name
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.architecture import what_else
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.state_dict import strip_prefixes
from aim_fast.models.words import named

# What names a tower that a model of the table would have as its own.
_SIZES = ("embed_dim", "depth", "depths", "patch_size", "window_size")


def identify(file: WeightsFile, where: str, asked: str | None = None) -> Identity:
    """The model that a trained checkpoint is of, with the classes that it names; ``asked``: a name that it has to be.

    Raises WeightsError for a file without a trained model in it, and for one of another variant than asked, saying
    which it is.
    """
    told = file.description or {}
    if is_library(asked or told.get("model", "")):
        return _of_library(file.tensors, told, where, asked)
    tensors = strip_prefixes(file.tensors, where)
    tensors.pop("proj", None)
    known = find_entry(asked) if asked else None
    bare, settings = named(asked or told.get("model", ""))
    if told and full_name(bare) == full_name(named(told["model"])[0]):  # of a probe or a full trunk nothing else tells
        for name, value in settings.items():
            check_said(where, name, told["options"].get(name, value), value)
        entry = find_entry(told["model"], *(told["options"].get(part) for part in ("head", "method")))
        _check_classifier(entry.model, entry.head, tensors, where)
        return Identity(told["model"], dict(told["options"]), told.get("classes") or [])
    variant, found = _recognise(tensors, where, known)
    method, head = found.pop("method", "aim"), found.pop("head", "linear")
    _check_classifier(variant, head, tensors, where)
    if head == "linear" and variant.takes_class_names is not True:  # of trunks a property, under a head
        found["num_classes"] = len(tensors["fc_cls.weight"])
    right, own = _name(variant, method, found)
    name, entry = asked or right, known or find_entry(right)
    other_size = _fits(MODELS[right].arguments, found, _SIZES) and not _fits(entry.arguments, found, _SIZES)
    if entry.model is not variant or entry.method not in (own, method) or other_size:
        if bare == right:  # of this name, under another method or of another size
            check_said(where, "method", method, entry.method)
            for key in _SIZES:
                check_said(where, key, found.get(key), entry.arguments.get(key, found.get(key)))
        article = "an" if right.startswith("aim") else "a"
        raise WeightsError(f"{where}: is {article} {right} checkpoint, not {name}: give --model {right}")
    taken = arguments_of(entry._replace(method=method, head=head))
    parts = ({} if own == method else {"method": method}) | (
        {"head": head} if head in HEADS and head != "linear" else {}
    )
    found = {key: value for key, value in found.items() if key in taken} | parts
    if "num_heads" in named(name)[1] or _fits(entry.arguments, found, _SIZES):
        found.pop("num_heads", None)  # the table knows
    return Identity(name, found, told.get("classes") or [])


def check_said(where: str, name: str, right: Any, said: Any) -> None:
    """Raises WeightsError where ``said`` is not what a file tells, ``right``, of a model's argument; words in a list
    have no order."""
    if isinstance(right, (list, tuple)) and isinstance(said, (list, tuple)):
        words = [set(one) if all(isinstance(word, str) for word in one) else list(one) for one in (right, said)]
    else:
        words = [right, said]
    if words[0] != words[1]:
        own, other = (
            ",".join(map(str, one)) or "none" if isinstance(one, (list, tuple)) else one for one in (right, said)
        )
        raise WeightsError(f"{where}: is of {name} {own}, not {other}: leave that out")


def _of_library(tensors: Mapping[str, Tensor], told: Mapping[str, Any], where: str, asked: str | None) -> Identity:
    """Of a network of another library: what an export says, or a state dict of the library's, whose name is asked."""
    if told and asked in (None, told["model"]):
        return Identity(told["model"], dict(told["options"]), told.get("classes") or [])
    name = str(asked)
    if told:
        raise WeightsError(f"{where}: is a {told['model']} checkpoint, not {name}: give --model {told['model']}")
    classifier = getattr(find_entry(name).record, "classifier", "")
    weight = next((t for key, t in tensors.items() if classifier and key.endswith(f"{classifier}.weight")), None)
    if weight is None:
        raise WeightsError(f"{where}: holds no classifier of {name}: no trained model; give it as --weights instead")
    return Identity(name, {"num_classes": len(weight)})


def _check_classifier(variant: type[VideoModel], head: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises WeightsError for a trained model without the classifier that it has under ``head``."""
    if variant.takes_class_names is True or "fc_cls." not in ALL_HEADS[head].own:
        return
    if "fc_cls.weight" not in tensors:
        raise WeightsError(f"{where}: holds no classifier (fc_cls): no trained model; give it as --weights instead")


def _recognise(tensors: Mapping[str, Tensor], where: str, asked: Entry | None) -> tuple[Any, dict[str, Any]]:
    for variant in _variants():
        if (found := variant.infer_arguments(tensors, where)) is not None:
            return variant, found
    if asked and asked.method in OF_METHODS and issubclass(asked.model, CLIPViT):  # of which no tensor need tell
        found = asked.model.arguments_under(asked.method, tensors, where)
        if found is not None:
            return asked.model, found
    if any("_Adapter" in name for name in tensors):
        raise WeightsError(f"{where}: holds adapters of no model known here: {what_else(tensors)}")
    if "text_projection" in tensors:
        raise WeightsError(
            f"{where}: holds a CLIP alone, as an ActionCLIP of frames' mean (meanP) does: where it is one, give "
            "--model vit_b16_clip,method=actionclip; where not, it is no trained model: give a run's folder"
        )
    raise WeightsError(f"{where}: holds no adapters: no trained model; give a run's folder")


def _variants() -> list[Any]:
    """The classes of the table, each once."""
    return list(dict.fromkeys(entry.model for entry in MODELS.values()))


def _name(variant: Any, method: str, found: Mapping[str, Any]) -> tuple[str, str]:
    """The table's name whose trunk has the sizes found, else the class's first, and the method of that name: the one
    that is asked for, or where the table has no name of it AIM."""
    own = method if any(entry.method == method for entry in MODELS.values()) else "aim"
    names = [name for name, entry in MODELS.items() if (entry.model, entry.method) == (variant, own)]
    for keys in ((*_SIZES, "img_size"), _SIZES):
        for name in names:
            if _fits({"img_size": 224, **MODELS[name].arguments}, found, keys):
                return name, own
    return names[0], own


def _fits(arguments: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...]) -> bool:
    return all(arguments[key] == found[key] for key in keys if key in arguments and key in found)
