"""open_clip's pretrained weights by tag, ``open_clip:MODEL/TAG``: fetched or found in the cache, never built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from aim_fast.errors import WeightsError, nearest
from aim_kernels.choices import Activation

TAG_PREFIX = "open_clip:"


def fetch_tag(source: str, fitting: Callable[[Iterable[str]], list[str]] = list) -> tuple[Path, Activation]:
    """The file of a tag such as ``open_clip:ViT-B-16/openai``, and the activation ("quick_gelu" or "gelu") it needs.

    ``fitting``: of names of models, those that may be meant by an unknown one.
    Raises WeightsError for an unknown model or tag (with the nearest right one), and when the file is neither in the
    cache nor to be had from the network.
    """
    import open_clip  # imports timm and torchvision: seconds that nobody with a file should wait
    from open_clip.pretrained import download_pretrained

    model, _, tag = source.removeprefix(TAG_PREFIX).partition("/")
    known = dict.fromkeys(name for name, _ in open_clip.list_pretrained())
    if model not in known:
        right = nearest(model, fitting(known), 3)
        raise WeightsError(f"open_clip has no pretrained model {model!r} (in {source!r}): {right}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise WeightsError(f"open_clip's {model} has no tag {tag!r}: {nearest(tag, tags)}")
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    try:
        path = download_pretrained(pretrained)
    except Exception as error:  # whatever the hub client or urllib raises, there is no file
        place = pretrained.get("hf_hub", "").rstrip("/") or pretrained.get("url")
        raise WeightsError(
            f"{source} is not in the cache and cannot be fetched ({type(error).__name__}; offline?): download {place} "
            "elsewhere and pass the file instead"
        ) from error
    config = open_clip.get_model_config(model) or {}
    quick = pretrained.get("quick_gelu") or config.get("quick_gelu")
    return Path(path), "quick_gelu" if quick else "gelu"


def tag_normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the R, G and B channel, on the scale of 0 to 255, with which a tag's weights were trained."""
    import open_clip

    model, _, tag = source.removeprefix(TAG_PREFIX).partition("/")
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    mean = pretrained.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = pretrained.get("std") or open_clip.OPENAI_DATASET_STD
    return tuple(255.0 * value for value in mean), tuple(255.0 * value for value in std)
