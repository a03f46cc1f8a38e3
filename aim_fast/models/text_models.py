"""The text head of a model by name: which models can have one, and the sizes of the text tower that comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_fast.errors import UsageError
from aim_fast.models.entry import Entry
from aim_fast.models.heads.open_clip_text import model_config, projection
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.promptclip import PromptCLIP
from aim_fast.models.trunks.clip import CLIPAViT, CLIPViT
from aim_fast.models.trunks.open_clip_models import OPEN_CLIP, fitting
from aim_fast.models.weights.timm_tags import TIMM_PREFIX

# Of CLIP's text towers (width, depth, output), by the width of the image tower. Heads have 64 channels in all of them.
_SIZES = {
    64: (64, 2, 64),  # of the demo
    768: (512, 12, 512),
    1024: (768, 12, 768),
    1280: (1024, 24, 1024),
    1408: (1024, 24, 1024),
    1664: (1280, 32, 1280),
}
_PLAIN = {"context_length", "vocab_size", "width", "heads", "layers"}  # all that a configuration says of CLIP's own


def text_entry(name: str, entry: Entry, head: str = "text") -> Entry:
    """``entry`` with the head that its trunk was trained with against texts, or another ``head`` over its text tower.

    Raises UsageError for a trunk that did not come with a text tower, with the nearest name that has one, and for a
    tower that open_clip does not build itself.
    """
    if name.startswith(OPEN_CLIP):
        sizes = _open_clip_sizes(name, entry)
    elif entry.model is CLIPViT:
        sizes = _usual_sizes(entry)
    else:
        there = [f"{OPEN_CLIP}{one}" for one in _with_texts(name, entry)]
        take = f"{' or '.join(there[:3])}, whose image tower it is, or --head linear" if there else "--head linear"
        raise UsageError(f"model {name} has no text head, for its trunk has no CLIP text tower: take {take}")
    return entry._replace(head=head, arguments={**entry.arguments, **sizes})


def prompt_entry(name: str, entry: Entry) -> Entry:
    """PromptCLIP on the trunk of ``entry``. Raises UsageError for one that did not come with CLIP's own text tower."""
    if entry.model is not CLIPViT or entry.arguments.get("mlp_ratio", 4.0) != 4.0:
        raise UsageError(f"method promptclip needs a CLIP with its text tower, and {name} is none: take vit_b16_clip")
    if name.startswith(OPEN_CLIP) and not _is_clips_own(entry, model_config(name.removeprefix(OPEN_CLIP))):
        raise UsageError(
            f"method promptclip needs CLIP's own text tower, and that of {name} is another: take vit_b16_clip"
        )
    sizes = _open_clip_sizes(name, entry) if name.startswith(OPEN_CLIP) else _usual_sizes(entry)
    arguments = {**entry.arguments, **sizes}
    taken = {key: value for key, value in arguments.items() if key in Prompting.names()}
    return Entry(PromptCLIP, taken, "promptclip")


def _usual_sizes(entry: Entry) -> dict[str, Any]:
    width, depth, output = _SIZES[entry.arguments["embed_dim"]]
    return {"text_width": width, "text_depth": depth, "output_dim": output}


def _open_clip_sizes(name: str, entry: Entry) -> dict[str, Any]:
    model = name.removeprefix(OPEN_CLIP)
    config = model_config(model)
    text = config["text_cfg"]
    if theirs := text.get("hf_model_name"):
        raise UsageError(
            f"{name}: its text tower is {theirs}, which is built by transformers and not by open_clip: "
            "take --head linear"
        )
    try:
        projection(model)
    except ValueError as error:
        raise UsageError(f"{name}: {error}, which the text head has not: take --head linear") from None
    return {
        "text_width": text["width"],
        "text_depth": text["layers"],
        "output_dim": config["embed_dim"],
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
    } | ({} if _is_clips_own(entry, config) else {"text_model": model})


def _is_clips_own(entry: Entry, config: Mapping[str, Any]) -> bool:
    """Whether the text tower of open_clip's ``config`` is built as CLIP's is, beside an image tower of CLIP's."""
    text = config["text_cfg"]
    plain = entry.model is CLIPViT and "init_logit_bias" not in config
    return plain and not any(text[key] for key in text.keys() - _PLAIN) and text["width"] == 64 * text["heads"]


def _with_texts(name: str, entry: Entry) -> list[str]:
    """open_clip's names of models whose image tower a trunk is, by timm's name, or for a CLIP by its sizes."""
    import open_clip

    architecture = name.removeprefix(TIMM_PREFIX).partition(".")[0]
    towers = {model: model_config(model)["vision_cfg"] for model in fitting(open_clip.list_models())}
    towers = {model: tower for model, tower in towers.items() if "hf_model_name" not in model_config(model)["text_cfg"]}
    named = [model for model, tower in towers.items() if tower.get("timm_model_name") == architecture]
    return named or [model for model, tower in towers.items() if "_clip" in name and _same_sizes(tower, entry)]


def _same_sizes(vision: Mapping[str, Any], entry: Entry) -> bool:
    sizes = {"embed_dim": "width", "depth": "layers", "patch_size": "patch_size", "img_size": "image_size"}
    clipa = bool(vision.get("no_ln_pre")) is (entry.model is CLIPAViT)
    ours = {"img_size": 224, **entry.arguments}
    return clipa and all(vision.get(theirs) == ours[key] for key, theirs in sizes.items())
