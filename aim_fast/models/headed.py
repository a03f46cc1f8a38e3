"""A model that has a head: what heads read of it, and what they make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aim_fast.models.video_model import VideoModel


class Headed(VideoModel):
    """What a head makes becomes the model's own, under the names of published checkpoints."""

    feature_dim: int  # D, of a frame's feature
    num_heads: int  # of the trunk
    classifier_std: float | None = 0.01  # of the classifier's initial weights; None for torch's own
    head_dropout: float
    dropout: torch.nn.Dropout
    fc_cls: torch.nn.Linear
    proj: Any  # a parameter, or None where features are in the joint space
    projection_bias: torch.nn.Parameter | None
    attentive_pool: torch.nn.Module
    attentive_time: torch.nn.Parameter
    text: Any
    mit: Any
    prompts_visual_ln: Any
    prompts_visual_proj: Any
    prompts_generator: Any
    fusion: Any
    class_embeddings: Tensor
    text_ids: Tensor  # tokens of the texts that a text tower which trains reads
    texts_told: tuple[str, ...]  # the class names that they are of
    texts_version: int  # of the text tower that class_embeddings are of
    joint: bool = False  # whether features are in the space of both towers without a projection of the head's
    stale: bool  # whether class_embeddings are to be made again

    @property
    def time_slots(self) -> int:
        """T of the features that the head reads: of frames, or of pairs of them."""
        return self.num_frames

    def make_classifier(self, width: int, classes: int, dropout: float) -> None:
        """Gives the model ``dropout`` and ``fc_cls``."""
        self.dropout = torch.nn.Dropout(dropout)
        self.fc_cls = torch.nn.Linear(width, classes)

    def reset_classifier(self) -> None:
        """Initialises ``fc_cls`` as the method's authors do."""
        if self.classifier_std is None:
            return self.fc_cls.reset_parameters()
        torch.nn.init.normal_(self.fc_cls.weight, std=self.classifier_std)
        torch.nn.init.zeros_(self.fc_cls.bias)

    def classify(self, pooled: Tensor) -> Tensor:
        """Dropout and classifier on ``pooled`` [B, D]."""
        return self.fc_cls(self.dropout(pooled))
