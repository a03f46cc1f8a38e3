"""Image weights into a model: what ``--weights`` takes, and the hash that ties adapters to their trunk.

Sources: an OpenAI CLIP ``.pt`` (TorchScript archive or state dict), an open_clip tag (``open_clip:ViT-B-16/openai``) or
file, a timm tag (``timm:vit_base_patch16_224.augreg_in21k``) or file, a safetensors or state-dict file of a visual
tower, a published AIM checkpoint, or the word ``random``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save

from aim_fast.errors import WeightsError
from aim_fast.files import write_whole
from aim_fast.models.open_clip_tags import TAG_PREFIX, fetch_tag, tag_normalisation
from aim_fast.models.state_dict import load_strictly
from aim_fast.models.timm_tags import TIMM_PREFIX, fetch_timm_tag, timm_normalisation
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weight_files import WeightsFile, read_weights

OPTIONS = (
    "an OpenAI CLIP .pt file, an open_clip tag (open_clip:ViT-B-16/openai) or file, a timm tag "
    "(timm:vit_base_patch16_224.augreg_in21k) or file, a safetensors or state-dict file of an image trunk, a published "
    "AIM checkpoint, or the word random"
)


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded.

    ``source`` as given; ``kind`` "clip", "timm", "aim", "run" (a checkpoint that holds its trunk) or "random";
    ``sha256`` of the frozen trunk, see :func:`trunk_sha256`; ``lines`` for a reader, one sentence each: what was
    interpolated, left at its initialisation, or is not known.
    """

    source: str
    kind: str
    sha256: str
    lines: list[str] = field(default_factory=list)


def load_weights(model: VideoModel, source: str | Path | None, *, seed: int = 0) -> WeightsReport:
    """Fill the model's trunk from ``source`` (see the module), and adapters and head too from an AIM checkpoint.

    Positional and temporal embeddings of another size are interpolated; the model's activation is set to the one that
    the source was trained with, where the source tells. ``"random"`` initialises the WHOLE model from ``seed``,
    whatever the state of torch's generators, which it leaves alone. Raises WeightsError when there is no source, and
    for a file that cannot be read or is of another architecture; the model is then left as it was.
    """
    source = "" if source is None else str(source)
    if not source:
        raise WeightsError(f"no weights given, and a frozen random trunk learns little: pass {OPTIONS}")
    if source == "random":
        _initialise(model, seed)
        line = f"the trunk is RANDOM (seed {seed}), as asked: features mean nothing before it is trained"
        return WeightsReport(source, "random", trunk_sha256(model), [line])
    fit = model.fit_weights(_open(source), source)
    load_strictly(model, fit.tensors, source, among=model.state_dict().keys() - fit.left)
    if fit.activation:
        model.activation = fit.activation
    lines = fit.lines + (_set_normalisation(model, source) if source.startswith((TAG_PREFIX, TIMM_PREFIX)) else [])
    return WeightsReport(source, fit.kind, trunk_sha256(model), lines)


def trunk_names(model: VideoModel) -> set[str]:
    """Names of the image Transformer's tensors: all that are not adaptation."""
    return {name for name in model.state_dict() if not model.is_adaptation(name)}


def trunk_sha256(model: VideoModel) -> str:
    """SHA-256 (hex) over the model's frozen parameters in name order: names, shapes and fp32 values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name}{list(parameter.shape)}".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_trunk(model: VideoModel, path: str | Path) -> None:
    """Write the image Transformer alone as safetensors, in the names that :func:`load_weights` reads."""
    state = model.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(trunk_names(model))}
    write_whole(Path(path), save(tensors, {"activation": model.activation}))


def _set_normalisation(model: VideoModel, tag: str) -> list[str]:
    """Gives the model the mean and std of a tag where they are not those it has, and says so."""
    theirs = timm_normalisation(tag) if tag.startswith(TIMM_PREFIX) else tag_normalisation(tag)
    ours = (model.mean, model.std)
    if all(abs(a - b) < 0.1 for pair in zip(theirs, ours) for a, b in zip(*pair)):
        return []  # the published recipes have CLIP's own, rounded
    model.mean, model.std = theirs
    mean, std = ([round(value, 3) for value in values] for values in theirs)
    return [f"pixels are normalised with mean {mean} and std {std}, as those that {tag} was trained on"]


def _initialise(model: VideoModel, seed: int) -> None:
    # Drawn on the CPU whatever the model's device, so that one seed is one model everywhere.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(**model.config)
    load_strictly(model, fresh.state_dict(), "random")


def _open(source: str) -> WeightsFile:
    if source.startswith(TIMM_PREFIX):
        return read_weights(fetch_timm_tag(source))
    if not source.startswith(TAG_PREFIX):
        return read_weights(source)
    path, activation = fetch_tag(source)
    return WeightsFile(read_weights(path).tensors, activation)
