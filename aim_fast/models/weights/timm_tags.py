"""timm's pretrained weights by tag, ``timm:MODEL.TAG`` or ``timm:MODEL`` for its usual one: fetched or cached."""

from __future__ import annotations

from pathlib import Path

from aim_fast.errors import WeightsError, nearest
from aim_fast.models.pixels import IMAGENET_MEAN, IMAGENET_STD

TIMM_PREFIX = "timm:"


def fetch_timm_tag(source: str) -> Path:
    """The file of a tag such as ``timm:swin_base_patch4_window7_224.ms_in22k``.

    Raises WeightsError for a name that timm has no weights for (with the nearest right one), and when the file is
    neither in the cache nor to be had from the network.
    """
    import timm  # with torchvision: seconds that nobody with a file should wait
    from huggingface_hub import hf_hub_download

    name = source.removeprefix(TIMM_PREFIX)
    known = timm.list_pretrained()
    if name not in known and not any(tag.startswith(f"{name}.") for tag in known):
        raise WeightsError(f"timm has no pretrained weights {name!r}: {nearest(name, known)}")
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None or not pretrained.hf_hub_id:
        where = getattr(pretrained, "url", None) or "its authors' page"
        raise WeightsError(f"timm's {name} is not on the hub: download {where} and pass the file instead")
    try:
        return Path(hf_hub_download(pretrained.hf_hub_id, pretrained.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # whatever the hub client raises, there is no file
        raise WeightsError(
            f"{source} is not in the cache and cannot be fetched ({type(error).__name__}; offline?): download "
            f"model.safetensors of {pretrained.hf_hub_id} elsewhere and pass the file instead"
        ) from error


def timm_normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the R, G and B channel, on the scale of 0 to 255, with which a tag's weights were trained.

    ImageNet's where timm says none.
    """
    import timm

    pretrained = timm.get_pretrained_cfg(source.removeprefix(TIMM_PREFIX))
    if pretrained is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(255.0 * value for value in pretrained.mean), tuple(255.0 * value for value in pretrained.std)
