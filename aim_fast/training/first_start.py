"""Before a GPU computes: a run's kernels are chosen for the shapes of its first step (``aim_fast.tuning``), and what
takes no such step runs those that were chosen on the card before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.video_model import VideoModel
from aim_fast.training.devices import Place
from aim_fast.training.progress import RunProgress
from aim_fast.training.trained_model import TrainedModel
from aim_fast.tuning.calls import Call, calls_of_step
from aim_fast.tuning.tuning import check_backends, recall, tune
from aim_kernels.optional_triton import INSTALLED


def tune_for_step(model: VideoModel, inputs: Sequence[Tensor], place: Place, progress: RunProgress) -> None:
    """Chooses the kernels of a step of ``model`` over ``inputs``, what its ``forward`` takes, and says so in a line.

    Processes of one kind of card choose once: the others wait and read. What goes wrong stops nothing, but for a
    backend that was forced and is wrong here: UsageError.
    """
    if place.device.type != "cuda" or not INSTALLED:
        return
    try:
        calls = step_calls(model, inputs, place)
    except Exception as error:  # a step that looks at values, such as a model of another library
        reason = " ".join(str(error).split())[:160]
        progress.say(f"kernels run at their committed shapes: the step could not be listed ({reason})")
        return
    tuning = tune(calls, place.device)
    check_backends(model, place.device)
    for line in (*tuning.lines, tuning.summary):
        progress.say(line)


def recall_kernels(trained: TrainedModel, place: Place) -> None:
    """:func:`run_recalled`, unless the model's recipe keeps the committed kernels."""
    if trained.recipe.run.kernels == "tuned":
        run_recalled(trained.model, place)


def run_recalled(model: nn.Module, place: Place) -> str | None:
    """Has a model run the kernels that ``train`` or ``tune`` chose on this card; a line on them, None on a CPU.

    Raises UsageError where it is to run a backend that failed its check there.
    """
    if place.device.type != "cuda" or not INSTALLED:
        return None
    tuning = recall(place.device)
    check_backends(model, place.device)
    return tuning.summary


def step_calls(model: VideoModel, inputs: Sequence[Tensor], place: Place) -> Counter[Call]:
    """The operators' calls of a training step."""

    def losses(*operands: Tensor) -> Tensor:
        with place.autocast():
            logits = model(*operands)
        return logits.float().square()  # with a gradient of its own for every logit, as the loss has

    return calls_of_step(model, losses, inputs)


def check_place(place: Place) -> None:
    """Raises UsageError where there are no Triton kernels to choose for."""
    if place.device.type != "cuda":
        raise UsageError(f"tune: measures a GPU's kernels and the device is {place.device}: there are none to tune")
    if not INSTALLED:
        raise UsageError("tune: measures Triton's kernels, and Triton is not installed: pip install triton")
