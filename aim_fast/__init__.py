"""aim-fast adapts frozen image Transformers to video.

``train``, ``evaluate`` and ``predict`` do what the commands of these names do, ``load_run`` opens what was trained,
``ClipLoader`` gives batches of clips. ``create_model(name, **overrides)`` makes a model, ``list_models()`` names them,
``load_checkpoint(model, path)`` reads a published checkpoint into one, and every error a reader can mend is an
``AimFastError``. Importing this package imports neither torch nor DALI: what is named here is loaded when it is first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_fast.api import evaluate, predict, train
    from aim_fast.data.loader import ClipLoader
    from aim_fast.errors import AimFastError
    from aim_fast.models.registry import create_model, list_models
    from aim_fast.models.weights.state_dict import load_checkpoint
    from aim_fast.training.run import load_run

_HOMES = {
    "AimFastError": "aim_fast.errors",
    "ClipLoader": "aim_fast.data.loader",
    "create_model": "aim_fast.models.registry",
    "evaluate": "aim_fast.api",
    "list_models": "aim_fast.models.registry",
    "load_checkpoint": "aim_fast.models.weights.state_dict",
    "load_run": "aim_fast.training.run",
    "predict": "aim_fast.api",
    "train": "aim_fast.api",
}

__all__ = [
    "AimFastError",
    "ClipLoader",
    "create_model",
    "evaluate",
    "list_models",
    "load_checkpoint",
    "load_run",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
