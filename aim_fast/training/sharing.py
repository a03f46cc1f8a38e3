"""A run on the Hugging Face hub: what is sent, and how it comes back whole.

A repository holds ``adapters.safetensors`` (the trained tensors of the best checkpoint), ``recipe.yaml`` without the
paths of the machine that it was trained on, ``README.md`` (the card), where it was asked for ``trunk.safetensors``, and
``aim-fast.json`` with the SHA-256 of each. It is sent in one commit. Of what is there only these are fetched, at one
commit, and only safetensors and text are read; what does not fit its SHA-256 is refused and nothing is left behind. A
folder that was pulled is evaluated and predicted with as a run; it holds no optimiser, so that it cannot be resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from aim_fast.errors import CheckpointError, UsageError
from aim_fast.files import replacing, write_whole
from aim_fast.models.loading import save_trunk
from aim_fast.training.checkpoint import ADAPTERS, find_checkpoint, pack_adapters, read_checkpoint
from aim_fast.training.model_card import best_figures, model_card
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.run import restore_run
from aim_fast.training.run_folder import RECIPE, run_folder, saved_recipe

__all__ = ["pull", "push"]

MANIFEST, CARD, TRUNK = "aim-fast.json", "README.md", "trunk.safetensors"
_FILES = (ADAPTERS, RECIPE, TRUNK)
_PLACES = ("data_root", "features", "cache_features", "shot_list", "cache_dir", "output", "classes", "templates")


def push(run: str, repo: str, *, private: bool = False, licence: str | None = None, with_trunk: bool = False) -> str:
    """Sends the best checkpoint of a run, or a checkpoint, to ``repo``; returns its address.

    Raises UsageError for a name that is none, without a login, and for what the hub refuses; CheckpointError as
    :func:`find_checkpoint`. Nothing is sent before the card is found valid, and all of it in one commit.
    """
    import huggingface_hub as hub

    _check_name(repo)
    source = find_checkpoint(run)
    if hub.get_token() is None:
        raise UsageError("no login for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    checkpoint = read_checkpoint(source)
    recipe = saved_recipe(source) or load_recipe(None, {"model": checkpoint.identity.model})
    weights = TRUNK if with_trunk else _public(recipe.model.weights or checkpoint.identity.weights)
    identity = replace(checkpoint.identity, weights=weights)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if with_trunk:
            save_trunk(restore_run(source, {}).model, folder / TRUNK)
        (folder / ADAPTERS).write_bytes(pack_adapters(checkpoint.tensors, identity))
        (folder / RECIPE).write_text(_without_places(recipe, weights).to_yaml())
        figures = best_figures(run_folder(source))
        card = model_card(repo, recipe, identity, figures, licence, with_trunk)
        (folder / CARD).write_text(str(card))
        sums = {name: _sha256(folder / name) for name in _FILES if (folder / name).exists()}
        content = {"format": 1, "aim_fast": version("aim-fast"), "files": sums}
        (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
        with _one_line(f"{repo}: not pushed"):
            card.validate()
            api = hub.HfApi()
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                commit_message=f"Add {identity.model} trained by aim-fast",
                delete_patterns=[TRUNK],
            )
    return str(url)


def pull(repo: str, output: str | None = None, revision: str | None = None) -> Path:
    """Fetches what :func:`push` sent into a new folder, ``output`` or one of the repository's name.

    Raises UsageError for a folder that is there, a name that is none, and for what the hub refuses; CheckpointError for
    a repository without a run, or files that are not those that were pushed.
    """
    import huggingface_hub as hub

    _check_name(repo)
    target = Path(output or repo.rpartition("/")[2])
    if target.exists():
        raise UsageError(f"{target}: is there already; give another --output")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.absolute().parent}; make it first")
    with _one_line(f"{repo}: not pulled"):
        api = hub.HfApi()
        info = api.model_info(repo, revision=revision)
        there = {one.rfilename for one in info.siblings or ()}
    if MANIFEST not in there:
        raise CheckpointError(f"{repo}: holds no {MANIFEST}, so that it is no run that aim-fast push sent")
    with replacing(target) as folder:
        folder.mkdir()

        def fetch(name: str) -> Path:
            with _one_line(f"{repo}: not pulled"):
                return Path(api.hf_hub_download(repo, name, revision=info.sha, local_dir=folder))

        _verify(repo, folder, fetch)
        if CARD in there:
            fetch(CARD)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        _localise(folder, target)
    return target


def _verify(repo: str, folder: Path, fetch: Callable[[str], Path]) -> None:
    """Fetches the files that the manifest names and reads them; CheckpointError where one is not what it says."""
    try:
        sums = json.loads(fetch(MANIFEST).read_text())["files"]
        wanted = {str(name): str(value) for name, value in sums.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{repo}: its {MANIFEST} is damaged; push it again") from None
    if odd := sorted(set(wanted) - set(_FILES)):
        raise CheckpointError(f"{repo}: its {MANIFEST} names {odd[0]!r}, which no run has; nothing of it is taken")
    if lacking := sorted({ADAPTERS, RECIPE} - set(wanted)):
        raise CheckpointError(f"{repo}: lacks {', '.join(lacking)}; push it again")
    for name, value in wanted.items():
        if _sha256(fetch(name)) != value:
            raise CheckpointError(f"{repo}: {name} is not the file that was pushed (SHA-256); push it again")
    read_checkpoint(folder)
    load_recipe(folder / RECIPE, {})


def _localise(folder: Path, target: Path) -> None:
    """A trunk that came along is named from the root, so that the run can be opened from anywhere."""
    if (folder / TRUNK).exists():
        recipe = load_recipe(folder / RECIPE, {})
        write_whole(folder / RECIPE, recipe.replace(weights=str(target.absolute() / TRUNK), weights_key=None).to_yaml())


def _without_places(recipe: Recipe, weights: str) -> Recipe:
    """The recipe without the paths of this machine."""
    fields = recipe.fields()
    gone = {name: None for name in _PLACES if isinstance(value := fields[name], str) and os.sep in value}
    return recipe.replace(**gone | {"weights": weights or None, "data_root": None, "output": None})


def _public(weights: str) -> str:
    """A tag as it is, of a file its name alone."""
    return os.path.basename(weights) if os.path.isabs(weights) or os.path.exists(weights) else weights


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(f"{repo!r} is no name of a repository; expected USER/NAME") from None


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """What the hub's client raises as one line."""
    try:
        yield
    except Exception as error:  # of any kind: of its network's library, which is not always the same, and of its own
        reply = getattr(getattr(error, "response", None), "status_code", None)
        kind = {
            401: "it is not there, or not for this login: check the name, `hf auth login` or HF_TOKEN",
            403: "this login may not: take one that may write, or your own USER/NAME",
            404: "it is not there: check the name and the revision",
        }.get(reply or 0)
        raise UsageError(f"{what} ({kind or _first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next(iter(line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
