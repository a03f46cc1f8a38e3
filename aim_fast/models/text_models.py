"""The text head of a model by name: which models can have one, and the sizes of the text tower that comes with it."""

from __future__ import annotations

from typing import Any

from aim_fast.errors import UsageError
from aim_fast.models.entry import Entry
from aim_fast.models.methods.promptclip import PromptCLIP, Prompting
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.models.trunks.open_clip_models import OPEN_CLIP

# Of CLIP's text towers (width, depth, output), by the width of the image tower. Heads have 64 channels in all of them.
_SIZES = {
    64: (64, 2, 64),  # of the demo
    768: (512, 12, 512),
    1024: (768, 12, 768),
    1280: (1024, 24, 1024),
    1408: (1024, 24, 1024),
    1664: (1280, 32, 1280),
}


def text_entry(name: str, entry: Entry) -> Entry:
    """``entry`` with CLIP's own head. Raises UsageError for a model that did not come with a CLIP text tower."""
    if entry.model is not CLIPViT:
        raise UsageError(f"model {name} has no text head, for its trunk has no CLIP text tower: take --head linear")
    return entry._replace(head="text", arguments={**entry.arguments, **_tower_sizes(name, entry)})


def prompt_entry(name: str, entry: Entry) -> Entry:
    """PromptCLIP on the trunk of ``entry``. Raises UsageError for one that did not come with a CLIP text tower."""
    if entry.model is not CLIPViT or entry.arguments.get("mlp_ratio", 4.0) != 4.0:
        raise UsageError(f"method promptclip needs a CLIP with its text tower, and {name} is none: take vit_b16_clip")
    arguments = {**entry.arguments, **_tower_sizes(name, entry)}
    taken = {key: value for key, value in arguments.items() if key in Prompting.names()}
    return Entry(PromptCLIP, taken, "promptclip")


def _tower_sizes(name: str, entry: Entry) -> dict[str, Any]:
    if name.startswith(OPEN_CLIP):
        return _open_clip_sizes(name)
    width, depth, output = _SIZES[entry.arguments["embed_dim"]]
    return {"text_width": width, "text_depth": depth, "output_dim": output}


def _open_clip_sizes(name: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(name.removeprefix(OPEN_CLIP)) or {}
    text = config["text_cfg"]
    if "hf_model_name" in text:
        raise UsageError(f"{name}: its text tower is {text['hf_model_name']}, not CLIP's: take --head linear")
    plain = {"context_length", "vocab_size", "width", "heads", "layers"}
    if odd := [key for key, value in text.items() if key not in plain and value]:
        raise UsageError(f"{name}: its text tower is not CLIP's ({', '.join(odd)}): take --head linear")
    if text["width"] != 64 * text["heads"]:
        raise UsageError(f"{name}: its text tower has heads of another width than CLIP's 64: take --head linear")
    return {
        "text_width": text["width"],
        "text_depth": text["layers"],
        "output_dim": config["embed_dim"],
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
    }
