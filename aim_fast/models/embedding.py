"""One vector of a clip, of a frame or of a text, by any model: what its classifier or its texts are compared with.

Shapes: B clips, T frames, D channels; De of the space that an image and a text tower share.

    a clip    what the classifier reads, [B, D]; of a model with a text tower the video feature, [B, De]
    a frame   the trunk's feature of each of a clip's frames, [B, T, D] or [B, T, De]
    a text    its feature by the model's own text tower, [n, De]

Vectors are float32 and not normalised; the cosine of two of one model tells how near they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.heads.named_classes import JointSpace
from aim_fast.models.heads.x_clip import VideoPrompts
from aim_fast.models.library_model import LibraryModel
from aim_fast.models.promptclip import PromptCLIP
from aim_fast.models.video_model import VideoModel

__all__ = ["clip_vectors", "frame_vectors", "text_vectors"]


def clip_vectors(model: VideoModel, clips: Tensor) -> Tensor:
    """``[B, D]`` of clips, uint8 ``[B, T, S, S, 3]``."""
    reader = getattr(model, "reader", None)
    if isinstance(model, PromptCLIP):
        return model.video_features(model.forward_features(clips)).float()
    if isinstance(reader, JointSpace):
        return reader.video(model, model.forward_features(clips)).float()  # type: ignore[arg-type]
    read: list[Tensor] = []
    hook = _classifier(model).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        model(clips)
    finally:
        hook.remove()
    return read[-1].float()


def frame_vectors(model: VideoModel, clips: Tensor) -> Tensor:
    """``[B, T, D]`` of clips. Raises UsageError for a model that makes no feature of every frame."""
    reader: Any = getattr(model, "reader", None)
    features = model.forward_features(clips)
    if features.ndim == 4 and reader is not None:
        features = features.mean(2) if reader.normed else model.finish(model.pool(features))  # type: ignore[operator]
    if features.ndim != 3 or features.shape[1] != model.num_frames:
        raise UsageError(
            f"{type(model).__name__} has no feature of every frame, it makes {list(features.shape[1:])} of a clip: "
            "take --per clip or --per window"
        )
    if isinstance(reader, JointSpace):
        features = reader.project(model, features)  # type: ignore[arg-type]
    return features.float()


def text_vectors(model: VideoModel, texts: Sequence[str]) -> Tensor:
    """``[n, De]`` of texts as they are written. Raises UsageError for a model that reads none by themselves."""
    from aim_fast.models.heads.class_embeddings import read_texts

    reader = getattr(model, "reader", None)
    if isinstance(model, PromptCLIP):
        model.set_classes(texts)
        return model.class_features().float()
    if not isinstance(reader, JointSpace) or isinstance(reader, VideoPrompts):
        why = "reads texts beside a video alone" if isinstance(reader, VideoPrompts) else "has no text tower"
        raise UsageError(
            f"the features are of a model that {why}, so words find nothing in them: search by a video, or write "
            "features of a CLIP with --head text"
        )
    model.text.tokenizer = model.tokenizer  # type: ignore[union-attr]
    return read_texts(model.text, texts)  # type: ignore[arg-type]


def _classifier(model: VideoModel) -> nn.Module:
    """The layer that makes logits of a clip's vector."""
    if isinstance(model, LibraryModel) and model.of.classifier:
        return model.network.get_submodule(model.of.classifier)
    return model.get_submodule("fc_cls")
