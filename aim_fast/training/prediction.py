"""Class names and probabilities for video files: a run's model on the views of each file, averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aim_fast.data import load_views
from aim_fast.errors import AimFastError
from aim_fast.training.clips import sampling_of
from aim_fast.training.devices import single_place
from aim_fast.training.progress import RunProgress
from aim_fast.training.run import open_named_run


def predict_files(
    path: str, videos: list[str], top_k: int, repeat_frames: bool, fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """For each video in order ``{"video", "predictions": [{"label", "probability"}]}``, or ``{"video", "error"}``.

    A file that cannot be read has the reason, one line, for its error; the others are not affected. Frames come from
    PyAV, so that neither DALI nor a GPU is needed.
    """
    place = single_place(fields.get("device", "auto"), fields.get("precision", "auto"))
    run = open_named_run(path, fields, place)
    for line in run.lines:
        RunProgress().say(line)
    sampling = sampling_of(run.recipe)
    results: list[dict[str, Any]] = []
    for video in videos:
        try:
            views = load_views(Path(video), sampling, run.model.img_size, allow_short=repeat_frames)
        except AimFastError as error:
            results.append({"video": video, "error": " ".join(str(error).split())})
            continue
        with torch.inference_mode(), place.autocast():
            logits = run.model(torch.as_tensor(views).to(place.device))
        probabilities = logits.float().softmax(-1).mean(0)
        best = probabilities.topk(min(top_k, len(run.classes)))
        rows = [
            {"label": run.classes[index], "probability": value}
            for value, index in zip(best.values.tolist(), best.indices.tolist())
        ]
        results.append({"video": video, "predictions": rows})
    return results
