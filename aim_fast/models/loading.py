"""Image weights into a model: what ``--weights`` takes, and the hash that ties adapters to their trunk.

Sources: an OpenAI CLIP ``.pt`` (TorchScript archive or state dict), an open_clip tag (``open_clip:ViT-B-16/openai``) or
file, a timm tag (``timm:vit_base_patch16_224.augreg_in21k``) or file, a safetensors or state-dict file of a visual
tower, a folder of Hugging Face (CLIP, SigLIP, DINOv2, DINOv3, AIMv2, ViT), a published AIM checkpoint, or the word
``random``. Those of another library's video networks: :mod:`aim_fast.models.weights.library`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save
from torch import Tensor

from aim_fast.errors import WeightsError
from aim_fast.files import write_whole
from aim_fast.models.library_model import LibraryModel
from aim_fast.models.method import Method
from aim_fast.models.methods import METHODS
from aim_fast.models.methods.beside import Beside
from aim_fast.models.trunks.open_clip_models import fitting
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.adaptation import adapted_by
from aim_fast.models.weights.files import WeightsFile, read_weights, with_settings
from aim_fast.models.weights.folders import Settings, read_settings
from aim_fast.models.weights.hugging_face import has_hugging_face_names
from aim_fast.models.weights.library import read_network
from aim_fast.models.weights.names import trunk_roots
from aim_fast.models.weights.open_clip_tags import TAG_PREFIX, fetch_tag, tag_normalisation
from aim_fast.models.weights.state_dict import load_strictly, split_trunk, strip_prefixes
from aim_fast.models.weights.timm_tags import TIMM_PREFIX, fetch_timm_tag, timm_normalisation
from aim_kernels.choices import Activation

OPTIONS = (
    "an OpenAI CLIP .pt file, an open_clip tag (open_clip:ViT-B-16/openai) or file, a timm tag "
    "(timm:vit_base_patch16_224.augreg_in21k) or file, a safetensors or state-dict file of an image trunk, a folder of "
    "Hugging Face's CLIP, SigLIP, DINOv2, DINOv3, AIMv2 or ViT, a published AIM checkpoint, or the word random"
)
NETWORK_OPTIONS = (
    "a state dict of the library's, a folder of transformers, torchvision:NAME of its weights "
    "(torchvision:MViT_V2_S_Weights.KINETICS400_V1), transformers:REPOSITORY of the hub, or the word random"
)
_CLIP_EPS = 1e-5  # of the norms of models that take no other


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded.

    ``source`` as given; ``kind`` "clip", "timm", "aim", "library", "run" (a checkpoint that holds its trunk) or
    "random"; ``sha256`` of the frozen trunk, see :func:`trunk_sha256`; ``lines`` for a reader, one sentence each: what
    was interpolated, left at its initialisation, or is not known.
    """

    source: str
    kind: str
    sha256: str
    lines: list[str] = field(default_factory=list)


def load_weights(
    model: VideoModel,
    source: str | Path | None,
    *,
    seed: int = 0,
    key: str | None = None,
    trunk: str | Path | None = None,
) -> WeightsReport:
    """Fill the model's trunk from ``source`` (see the module), and adapters and head too from an AIM checkpoint.

    Positional and temporal embeddings of another size are interpolated; the model's activation is set to the one that
    the source was trained with, where the source tells, and so are mean and std and the norms' epsilon. ``key`` names
    the entry of a checkpoint that holds several (``model_ema``); ``trunk`` a source for the trunk of one that holds a
    network beside a trunk alone. ``"random"`` initialises the WHOLE model from
    ``seed``, whatever the state of torch's generators, which it leaves alone. Raises WeightsError when there is no
    source, and for a file that cannot be read or is of another architecture; the model is then left as it was.
    """
    source = "" if source is None else str(source)
    if not source:
        if isinstance(model, LibraryModel):
            raise WeightsError(f"no weights given, and none are taken unasked: pass {NETWORK_OPTIONS}")
        raise WeightsError(f"no weights given, and a frozen random trunk learns little: pass {OPTIONS}")
    if source == "random":
        if key:
            raise WeightsError(f"random weights have no entry {key!r}: leave --weights-key out, or name a file")
        _initialise(model, seed)
        what = "the network" if isinstance(model, LibraryModel) else "the trunk"
        line = f"{what} is RANDOM (seed {seed}), as asked: features mean nothing before it is trained"
        return WeightsReport(source, "random", trunk_sha256(model), [line])
    if isinstance(model, LibraryModel):
        file = read_network(model, source, key)
    else:
        file = with_trunk(_open(source, key), source, trunk)
    fit = model.fit_weights(file, source)
    said = _check_settings(model, file.settings, source)
    load_strictly(model, fit.tensors, source, among=model.state_dict().keys() - fit.left)
    if fit.activation:
        model.activation = fit.activation
    model.tokenizer = fit.tokenizer
    own = [] if fit.kind == "aim" else model.trunk_loaded()
    lines = [*file.lines, *fit.lines, *said, *own, *_set_pixels_and_norms(model, file.settings, source)]
    return WeightsReport(source, fit.kind, trunk_sha256(model), lines)


def with_trunk(file: WeightsFile, source: str, trunk: str | Path | None) -> WeightsFile:
    """The file; of a network beside a trunk, without that, joined with the one of ``trunk``, a source as any.

    Raises WeightsError, saying which it stands beside, where none or another is given.
    """
    networks = [method for method in METHODS.values() if issubclass(method, Beside)]
    method = next((method for method in networks if method.recognises(file.tensors)), None)
    tensors = strip_prefixes(file.tensors, source) if method else {}
    if method is None or method.reads not in tensors or trunk_roots(tensors):
        return file
    width = tensors[method.reads].shape[-1]
    what = f"{source} holds the network of method {method.name} alone, without its trunk of width {width}"
    if not trunk:
        raise WeightsError(f"{what}: give that too, `eval`, `predict` and `convert` take --weights for it")
    whole = _open(str(trunk), None)
    found = dict(whole.tensors)
    if "side.proj" not in tensors:  # which class names are scored with, and so the text tower
        towers = ("visual.trunk.", "visual.") if any(name.startswith("visual.") for name in found) else ("",)
        inside = next(tower for tower in towers if any(name.startswith(tower) for name in found))
        found = {name.removeprefix(inside): one for name, one in found.items() if name.startswith(inside)}
    widths = [t.shape[-1] for name, t in found.items() if name.endswith(("class_embedding", "pos_embed"))]
    if width not in widths:
        raise WeightsError(f"{what}, and {trunk} is another" + (f", of width {widths[0]}" if widths else ""))
    said = f"{source} holds no trunk: that of {trunk} is taken"
    return whole._replace(tensors=found | tensors, description=None, lines=(*file.lines, *whole.lines, said))


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


def _check_settings(model: VideoModel, told: Settings, source: str) -> list[str]:
    """Raises WeightsError for a trunk that its tensors do not tell from the model's, but its configuration does."""
    lines, known = [], getattr(model, "hidden_activation", None)  # of a trunk whose MLPs have the one they came with
    if told.activation not in (None, *(get_args(Activation) if known is None else (known,))):
        forms = {"gelu": "exact form", "gelu_tanh": "tanh form"}
        if {told.activation, known} != set(forms):
            right = f"the model's {known}" if known else f"which is none of {', '.join(get_args(Activation))}"
            raise WeightsError(f"{source}: its MLPs have the activation {told.activation}, {right}")
        lines = [
            f"{source} has the {forms[str(told.activation)]} of GELU in its MLPs, the model the {forms[str(known)]}, "
            "as timm has it for these weights: features differ by about a thousandth"
        ]
    named = (("num_heads", "heads"), ("eps", "epsilon of norms"), ("rope_theta", "base of rotations"))
    for name, what in named:
        usual = _CLIP_EPS if name == "eps" else None
        theirs, ours = getattr(told, name), getattr(model, name, usual)
        settable = name == "eps" and name in model.config
        if theirs is not None and ours is not None and theirs != ours and not settable:
            raise WeightsError(f"{source} is of another architecture: its {what} {theirs}, the model's {ours}")
    return lines


def _set_pixels_and_norms(model: VideoModel, told: Settings, source: str) -> list[str]:
    """Gives the model the mean, std and epsilon of the weights where they are not those it has, and says so."""
    lines = []
    if told.eps is not None and told.eps != getattr(model, "eps", told.eps):
        lines = [f"norms have the epsilon {told.eps:g} of {source}, not {model.eps:g}"]
        for module in model.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = told.eps  # type: ignore[assignment]
    if told.mean is None or told.std is None:
        return lines
    if all(abs(a - b) < 0.1 for pair in ((told.mean, model.mean), (told.std, model.std)) for a, b in zip(*pair)):
        return lines  # the published recipes have CLIP's own, rounded
    model.mean, model.std = told.mean, told.std
    mean, std = ([round(value, 3) for value in values] for values in (told.mean, told.std))
    return [*lines, f"pixels are normalised with mean {mean} and std {std}, as those that {source} was trained on"]


def _initialise(model: VideoModel, seed: int) -> None:
    # Drawn on the CPU whatever the model's device, so that one seed is one model everywhere.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = model.fresh()
    load_strictly(model, fresh.state_dict(), "random")


def _open(source: str, key: str | None) -> WeightsFile:
    """The file of a source, its tensors in bare names, with what is known of it beside them."""
    if source.startswith(TIMM_PREFIX):
        file = read_weights(fetch_timm_tag(source), key)
        mean, std = timm_normalisation(source)
        file = file._replace(settings=Settings(mean=mean, std=std))
    elif source.startswith(TAG_PREFIX):
        path, activation = fetch_tag(source, fitting)
        mean, std = tag_normalisation(source)
        file = read_weights(path, key)._replace(activation=activation, settings=Settings(mean=mean, std=std))
    else:
        file = read_weights(source, key)
        if has_hugging_face_names(file.tensors) and file.settings == Settings():
            file = with_settings(file, read_settings(Path(source).parent))  # of a folder with its configuration
    tensors, beside = split_trunk(file.tensors, source)
    if file.settings.mean is None and (pixels := _pixels_of(file, tensors)):
        file = file._replace(settings=file.settings._replace(mean=tuple(pixels[0]), std=tuple(pixels[1])))
    if not beside:
        return file._replace(tensors=tensors)
    parts = Counter(name.partition(".")[0] for name in beside)
    said = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items())[:8])
    return file._replace(tensors=tensors, lines=(*file.lines, f"left out of {source}, beside its trunk: {said}"))


def _pixels_of(file: WeightsFile, tensors: Mapping[str, Tensor]) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std of the pixels of a trained model's file: those that its export says, or its method's authors'."""
    if file.description:
        told = file.description["options"]
        return (told["mean"], told["std"]) if told.get("mean") and told.get("std") else None
    return METHODS.get(adapted_by(tensors) or "", Method).pixels
