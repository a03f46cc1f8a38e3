"""What was chosen on a card, kept in the user's cache folder (XDG_CACHE_HOME, else ~/.cache) in one file a card.

``tuning/CARD.json`` names what it holds for: the card, its driver, and the versions of torch, triton, this package and
its kernels' sources. Under another of them it is made anew, as it is where it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import aim_kernels
from aim_fast.files import write_whole
from aim_fast.tuning.calls import Call, decoded, encoded
from aim_fast.tuning.selection import Choice, Tried
from aim_kernels.block_shapes import LIBRARY, BlockShape, Launch


@dataclass(frozen=True)
class Card:
    """A device, and everything of this machine that a choice may depend on."""

    name: str
    capability: str
    driver: str
    torch: str
    triton: str
    package: str
    kernels: str  # a digest of their sources

    @property
    def file(self) -> Path:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aim-fast" / "tuning"
        return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.name).strip('-')}.json"


def card_of(device: torch.device) -> Card:
    """The card of a CUDA device; of a CPU its processor, for those who look what would be chosen."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        name, driver = torch.cuda.get_device_name(device), _driver()
    else:
        capability, name, driver = (0, 0), platform.processor() or platform.machine(), ""
    triton, package = (_version(package) for package in ("triton", "aim-fast"))
    number = f"{capability[0]}.{capability[1]}"
    return Card(name, number, driver, str(torch.__version__), triton, package, _digest())


def read_record(card: Card) -> tuple[dict[Call, Choice], str | None]:
    """The choices kept for ``card``; none, and why, where the file is damaged or was made under something else."""
    try:
        content = json.loads(card.file.read_text())
        made = Card(**content["made_by"])
        changed = [name for name, value in asdict(card).items() if getattr(made, name) != value]
        if changed:
            return {}, " and ".join(f"{name} {getattr(made, name) or 'none'}" for name in changed) + " made it"
        found = [choice_of(entry) for entry in content["choices"]]
    except (FileNotFoundError, NotADirectoryError):
        return {}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"it is damaged ({type(error).__name__}: {str(error)[:80]})"
    return {choice.call: choice for choice in found}, None


def write_record(card: Card, choices: dict[Call, Choice]) -> None:
    """Raises OSError where the cache folder cannot be written."""
    content = {"made_by": asdict(card), "choices": [content_of(choice) for choice in choices.values()]}
    card.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(card.file, json.dumps(content, indent=1) + "\n")


def content_of(choice: Choice) -> dict[str, Any]:
    """What JSON holds of a choice; :func:`choice_of` makes it again."""
    return {
        "call": encoded(choice.call),
        "implementation": choice.implementation,
        "shapes": content_of_shapes(choice.shapes),
        "tried": [asdict(tried) for tried in choice.tried],
    }


def choice_of(content: dict[str, Any]) -> Choice:
    """Raises KeyError, TypeError, ValueError or AttributeError for what :func:`content_of` never gives."""
    tried = [Tried(**entry) for entry in content["tried"]]
    return Choice(decoded(content["call"]), content["implementation"], shapes_of(content["shapes"]), tried)


def content_of_shapes(shapes: dict[Launch, BlockShape]) -> list[list[list[Any]]]:
    """Launches and their shapes as JSON holds them; :func:`shapes_of` makes them again."""
    return [[list(launch), list(shape)] for launch, shape in shapes.items()]


def shapes_of(content: list[Any]) -> dict[Launch, BlockShape]:
    """Raises TypeError or ValueError for what :func:`content_of_shapes` never gives."""
    found = {Launch(*launch): BlockShape(*shape) for launch, shape in content}
    tiles = (shape for shape in found.values() if shape != LIBRARY)
    if not all(isinstance(number, int) and number > 0 for shape in tiles for number in shape):
        raise ValueError("a block shape is four numbers above 0")
    return found


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return re.findall(r"\b\d+\.\d+(?:\.\d+)?\b", text)[0]
    except (OSError, IndexError):
        return f"for CUDA {torch.version.cuda}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@cache
def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(aim_kernels.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
