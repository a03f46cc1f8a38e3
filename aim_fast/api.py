"""Training, evaluation and prediction as functions: what the commands of these names call.

A keyword is a field of a recipe or an option of the command, under its name with ``_`` for ``-``; None is one that is
not given. What a reader can mend is an :class:`~aim_fast.errors.AimFastError` with the command's line: UsageError,
DataError, WeightsError, CheckpointError, TrainingError. Importing this file imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from aim_fast.errors import AimFastError, UsageError, nearest
from aim_fast.training.part_groups import UNTOLD

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from aim_fast.data.views import Video
    from aim_fast.training.loop import Result
    from aim_fast.training.prediction import Prediction
    from aim_fast.training.report import Report
    from aim_fast.training.run import LoadedRun
    from aim_fast.training.watching import Watch

    Run = str | Path | LoadedRun

__all__ = ["EVALUATED", "PREDICTED", "evaluate", "predict", "train"]

# Recipe fields that may be given anew for a run that is evaluated, and for one that predicts.
EVALUATED = (
    *("dataset", "data_root", "shard_cache_gib", "multi_label", "accept_gaps", "views", "weights", "weights_key"),
    *("model", *UNTOLD),
    *("frames", "interval", "batch_size", "random_views", "view_starts", "features", "device", "precision", "workers"),
)
PREDICTED = ("views", "weights", "weights_key", "model", *UNTOLD, "frames", "device", "precision")


def train(
    recipe: str | Path | None = None,
    *,
    resume: bool | Literal["yes", "auto"] | None = None,
    trunk: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Result:
    """Trains what a recipe says, as ``aim-fast train`` does, and leaves the run's folder with its ``report.html``.

    Args:
        recipe: a shipped recipe's name or a YAML file; chosen by ``dataset``, ``model`` and ``frames`` if not given.
        resume: go on with the run in ``output`` from its last checkpoint; ``"auto"`` begins it where there is none.
        trunk: a trunk, in place of ``model``.
        quiet: show no progress.
        fields: any field of a recipe, which wins over the recipe's: ``dataset="folder", data_root="videos", lr=1e-3``.

    Returns:
        The run's ``folder``, its ``last`` validation (top1, top5, mean_class or map, loss, videos, excluded; shares
        from 0 to 1), ``best_top1``, ``step``, whether SIGTERM or a time limit ``stopped`` it, and the last validation's
        ``report``. Under torchrun every process gets one; ``first`` says which speaks for all.

    Raises:
        UsageError, DataError, WeightsError, CheckpointError: before anything is written. TrainingError: the loss is not
        finite, or memory does not suffice.
    """
    from aim_fast.training.recipe_file import load_recipe, typed, with_trunk
    from aim_fast.training.recipe_model import borrowed_from, check_given_fields
    from aim_fast.training.run_folder import RECIPE, absolute_paths

    if resume not in (None, False, True, "yes", "auto"):
        raise UsageError(f"resume is {resume!r}: give yes or auto")
    given = with_trunk(typed(fields), trunk)
    output = given.get("output")
    if resume and recipe is None and output and (Path(output) / RECIPE).is_file():
        resolved = load_recipe(Path(output) / RECIPE, given)
    else:
        resolved = load_recipe(recipe, given)
    if resolved.run.output is None:
        data = resolved.data
        head = resolved.model.head if resolved.model.head != "linear" else None
        words = [data.dataset, resolved.model.model.replace("/", "_"), resolved.model.method, head]
        resolved = resolved.replace(output=f"runs/{'-'.join(filter(None, words))}-{data.frames}f")

    from aim_fast.report import PAGE, write_page
    from aim_fast.training import loop
    from aim_fast.training.drawing import drawing
    from aim_fast.training.progress import RunProgress

    check_given_fields(recipe, resolved, given)
    if line := borrowed_from(recipe, resolved):
        RunProgress(quiet or os.environ.get("RANK", "0") != "0").say(line)
    # decided before the processes join, and so before the first one can write the file that decides it
    begun = (Path(resolved.run.output or "") / RECIPE).is_file()
    result = loop.train(absolute_paths(resolved), resume=begun if resume == "auto" else bool(resume), quiet=quiet)
    if result.first and result.report and not result.stopped:
        with drawing(result.folder / PAGE):
            write_page(result.report, result.folder / PAGE)
    return result


def evaluate(run: str | Path, split: str = "validation", **fields: Any) -> Report:
    """Scores a run on a split of its data set or of another, as ``aim-fast eval`` does; writes nothing.

    Args:
        run: a run's folder (its best checkpoint), a checkpoint folder, or a file of a trained model.
        split: train, validation or test.
        fields: ``classes`` (seen, unseen, all, or a file of names), ``wise_ft``, and the recipe fields that ``aim-fast
            eval --help`` lists: ``views="1x3"``, ``data_root=...``, ``device="cpu"``.

    Returns:
        A report: ``scores.summary()`` and ``rows()`` are its figures, ``scores.probabilities`` float32 [videos,
        classes] averaged over the views, ``scores.labels`` int64 [videos], ``classes`` their names, ``videos`` their
        files. ``to_dict()``, ``text()`` and ``draw(path)`` are the command's output. Alike in every process.

    Raises:
        CheckpointError, WeightsError: the run cannot be opened. DataError: data that is not there, or of other classes.
        UsageError: a field that cannot be.
    """
    from aim_fast.training.recipe_file import typed
    from aim_fast.training.report import evaluate_run

    given = typed(fields)
    _refuse_unknown("evaluate", fields, (*EVALUATED, "classes", "wise_ft", "run_code"))
    return evaluate_run(os.fspath(run), split, given)


@overload
def predict(run: Run, video: int, top_k: int = 5, **options: Any) -> Watch: ...


@overload
def predict(run: Run, video: str, top_k: int = 5, **options: Any) -> Any: ...


@overload
def predict(run: Run, video: os.PathLike[str] | np.ndarray | Tensor, top_k: int = 5, **options: Any) -> Prediction: ...


@overload
def predict(run: Run, video: list[Any], top_k: int = 5, **options: Any) -> list[Prediction]: ...


def predict(
    run: Run,
    video: Video | int | list[Any],
    top_k: int = 5,
    *,
    repeat_frames: bool = False,
    window: float | None = None,
    stride: float | None = None,
    **fields: Any,
) -> Prediction | list[Prediction] | Watch:
    """The most probable classes of videos, as ``aim-fast predict`` gives them.

    Args:
        run: a run's folder, a checkpoint folder or a file of a trained model; or what ``load_run`` gave, which is not
            read again.
        video: a path, or frames as an array or tensor uint8 [F, H, W, 3] RGB, or such an array's ``.npy`` file; or a
            list of these; or a camera's number or an address (rtsp, http …), which is watched.
        top_k: classes to name.
        repeat_frames: take a video with fewer frames than the model, repeating frames.
        window, stride: seconds, of what is watched.
        fields: ``class_names``, ``wise_ft``, and the recipe fields that ``aim-fast predict --help`` lists, for a run
            that is named by its path.

    Returns:
        A prediction: ``labels``, the best first, and their ``probabilities``; ``label`` is the best. Of a list a list,
        in its order, where one that cannot be read has its reason as ``error`` and costs no other its prediction. Of a
        camera or an address an iterator, which gives a prediction with ``start`` and ``end`` for each window as it
        comes, until the address ends.

    Raises:
        DataError: a single video, camera or address cannot be read. CheckpointError, WeightsError: the run cannot be
        opened. UsageError: a field that cannot be.
    """
    from aim_fast.data.video.camera import is_live, shown
    from aim_fast.training.prediction import Prediction, name_of

    if isinstance(video, list) and (live := [one for one in video if is_live(one)]):
        raise UsageError(f"{shown(live[0])} is watched until it ends: give it alone")
    watched = is_live(video)
    if not watched and (window, stride) != (None, None):
        raise UsageError("window and stride are of a camera or an address: leave them out")
    opened = _opened(run, fields)
    if watched:
        return opened.watch(video, top_k, window=window, stride=stride)  # type: ignore[arg-type]
    if not isinstance(video, list):
        return opened.predict(video, top_k, repeat_frames=repeat_frames)  # type: ignore[arg-type]
    predictions = []
    for one in video:
        try:
            predictions.append(opened.predict(one, top_k, repeat_frames=repeat_frames))
        except UsageError:
            raise
        except AimFastError as error:
            predictions.append(Prediction(name_of(one), [], [], " ".join(str(error).split())))
    return predictions


def _opened(run: Run, fields: dict[str, Any]) -> LoadedRun:
    """A run that predicts, with what is worth saying about its weights said on stderr where it is opened here."""
    from aim_fast.training.progress import RunProgress
    from aim_fast.training.recipe_file import typed
    from aim_fast.training.run import LoadedRun, load_run

    given = typed(fields)
    if isinstance(run, LoadedRun):
        if given:
            raise UsageError(f"the run is open already: give {', '.join(given)} to load_run")
        return run
    _refuse_unknown("predict", fields, (*PREDICTED, "class_names", "wise_ft", "run_code"))
    opened = load_run(run, **given)
    for line in opened.lines:
        RunProgress().say(line)
    return opened


def _refuse_unknown(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"{function} takes no {name!r}; {nearest(name, known)}")
