"""Weights of other libraries' video networks: what a user names, and what of it fits a model.

    torchvision:MViT_V2_S_Weights.KINETICS400_V1            an entry of torchvision's, fetched or cached
    transformers:facebook/timesformer-base-finetuned-k400   a repository of the hub, fetched or cached
    mvit_v2_s.pth, FOLDER                                   a state dict; a folder of transformers with its config.json

Tables of positions of another size are resized, and a classifier of other classes is left at its initialisation, which
lines say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from aim_fast.errors import WeightsError, abridged, nearest
from aim_fast.models.weights.files import WeightsFile, read_weights
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.folders import Settings, read_settings, weights_in
from aim_fast.models.weights.names import unwrap

OWN = "network."
_LIBRARY = re.compile(r"(torchvision|transformers):(.+)")


def read_network(model: Any, source: str, key: str | None) -> WeightsFile:
    """The tensors that ``source`` stands for, in its own names, with the pixels that they were trained on.

    Raises WeightsError for an unknown name, a file that cannot be had or read, and a configuration of another network.
    """
    if model.of.unread:
        raise WeightsError(f"{source} is not read: the network {model.of.unread}")
    if match := _LIBRARY.fullmatch(source):
        library, name = match.groups()
        if library != model.of.library:
            raise WeightsError(f"{source} is of {library}, and the model is {model.of.library}'s: name weights of it")
        if library == "torchvision":
            return _torchvision(source, name, key)
        path = _fetched(source, name)
    else:
        path = Path(source)
    folder = path if path.is_dir() else path.parent
    if model.of.library != "transformers" or key or not (folder / "config.json").is_file():
        return read_weights(path, key)
    return _transformers(model, folder, source)


def _transformers(model: Any, folder: Path, source: str) -> WeightsFile:
    """A folder with its configuration, read by transformers, which brings the names of older versions to its own."""
    from transformers.utils import logging

    try:
        model.of.check_configuration(json.loads((folder / "config.json").read_text()), source)
    except (ValueError, TypeError, AttributeError):
        raise WeightsError(f"{folder / 'config.json'} is damaged: download it again, or give the file alone") from None
    weights_in(folder)
    said, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        theirs, told = type(model.network).from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # of any kind: of its files, its configuration, and the formats of both
        raise WeightsError(f"{source} is not read by transformers: {' '.join(str(error).split())[:200]}") from error
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()
    tensors = {name: tensor for name, tensor in theirs.state_dict().items() if name not in told["missing_keys"]}
    settings = read_settings(folder)
    beside = sorted(told["unexpected_keys"])
    lines = (f"left out of {source}, beside its network: {abridged(beside, 3)}",) if beside else ()
    return WeightsFile(tensors, settings=Settings(mean=settings.mean, std=settings.std), lines=lines)


def _torchvision(source: str, name: str, key: str | None) -> WeightsFile:
    """An entry of torchvision's, of any of its video networks by its whole name."""
    import torch
    from torchvision.models import get_model_weights, list_models, video

    known = {str(one): one for builder in list_models(video) for one in get_model_weights(builder)}
    if name not in known:
        raise WeightsError(f"torchvision has no weights {name!r}: {nearest(name, known)}")
    entry = known[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), digest and digest[1], progress=False)
        except Exception as error:  # of urllib, of the file system, and torch's own for a wrong digest
            raise WeightsError(
                f"{source} is not in the cache and cannot be fetched ({type(error).__name__}; offline?): download "
                f"{entry.url} elsewhere and pass the file instead"
            ) from error
    transforms: Any = entry.transforms()
    levels = [tuple(255.0 * value for value in values) for values in (transforms.mean, transforms.std)]
    return read_weights(path, key)._replace(settings=Settings(mean=levels[0], std=levels[1]))


def _fetched(source: str, repository: str) -> Path:
    """The folder of a repository of the hub, with its configuration and weights."""
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=[*wanted[:2], "pytorch_model*"]))
    except Exception as error:  # whatever the hub client raises, there is no file
        raise WeightsError(
            f"{source} is not in the cache and cannot be fetched ({type(error).__name__}; offline?): download the "
            "repository elsewhere and pass its folder instead"
        ) from error
    return folder


def fit_network(model: Any, file: WeightsFile, source: str) -> Fit:
    """What a file gives ``model``: of a checkpoint of ours the head too, of a library's own the network alone.

    Raises WeightsError for a file of another network, naming what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    constant = own.keys() - dict(model.named_parameters()).keys()  # buffers that follow from the sizes
    heads = tuple(model.reader.own) if model.reader else ()
    tensors = {name: t for name, t in _named(file.tensors, own).items() if name not in constant}
    beside = tuple(OWN + begin for begin in model.of.beside)
    dropped = [name for name in tensors if name not in own and name.startswith((*beside, *model.of.beside))]
    tensors = {name: t for name, t in tensors.items() if name not in dropped}
    lines = [f"left out of {source}, beside its network: {abridged(dropped, 3)}"] if dropped else []
    resized = []
    for name in [name for name in tensors if name in own and tensors[name].shape != own[name].shape]:
        shape = list(own[name].shape)
        if (table := model.of.resized(name.removeprefix(OWN), tensors[name], shape)) is not None:
            resized.append(f"{name.removeprefix(OWN)} from {list(tensors[name].shape)} to {shape}")
            tensors[name] = table
    if resized:
        lines.append(f"positions resized: {abridged(resized, 2)}")
    left, said = _heads(model, tensors, own, heads, source)
    if lacked := {name for name in own if name.removeprefix(OWN).startswith(model.of.lacked) and name not in tensors}:
        said.append(f"{source} has no {abridged(sorted(lacked))}: left at their initialisation")
    left |= lacked
    return Fit({name: t for name, t in tensors.items() if name not in left}, left | constant, "library", lines + said)


def _heads(
    model: Any, tensors: dict[str, Tensor], own: dict[str, Tensor], heads: tuple[str, ...], source: str
) -> tuple[set[str], list[str]]:
    """The names of the head where it stays at its initialisation, and a line that says so."""
    of_head = heads or (f"{OWN}{model.of.classifier}.",)
    names = {name for name in own if name.startswith(of_head)}
    if all(name in tensors and tensors[name].shape == own[name].shape for name in names):
        return set(), []
    last = next((t for name, t in tensors.items() if name in names and name.endswith("weight") and t.ndim == 2), None)
    what = "has no head" if last is None else f"has a head of {len(last)} classes, the model of {model.num_classes}"
    return names, [f"{source} {what}: the head is left at its initialisation"]


def _named(tensors: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The tensors in the model's names, whatever wrapped the network."""
    own = set(own)
    bare = {unwrap(name).removeprefix(OWN): tensor for name, tensor in tensors.items()}
    return {name if name in own else OWN + name: tensor for name, tensor in bare.items()}
