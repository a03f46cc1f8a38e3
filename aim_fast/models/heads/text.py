"""The head that a trunk was trained with against texts, CLIP's: video features scored against class names.

Shapes: B clips, T frames, D the image tower's width, De the width that both towers share, C classes.

    video   feature of each frame [B, T, D] -> mean over T -> proj [D, De], a bias -> norm         v [B, De]
    text    embeddings of the class names by the frozen text tower (class_embeddings)              e [C, De]
    logits  exp(logit_scale) · v·e + logit_bias                                                     [B, C]

A bias of the projection, and ``logit_bias``, are where the model has them (SigLIP was trained on the sigmoid of these
logits); where its pooling ends in the joint space there is no projection. All of this is the image model's and frozen,
so the head has nothing of its own: other class names make a classifier for other classes. Sources: Radford et al., ICML
2021; Zhai et al., SigLIP, ICCV 2023; Yang et al., AIM, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aim_fast.models.heads.class_texts import read_templates
from aim_fast.models.heads.named_classes import JointSpace
from aim_fast.models.record import argument

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed


@dataclass(frozen=True)
class Text(JointSpace):
    """The head over named classes; ``templates``: prompts with ``{}`` for the class, whose embeddings are averaged, the
    shipped ones if not given."""

    name: ClassVar[str] = "text"
    line: ClassVar[str] = "class names scored by the text tower that the trunk was trained with"
    heading: ClassVar[str] = "Text head"

    templates: Sequence[str] = argument(
        (),
        "text head: file of prompts, one a line, {} for the class; ours if not given",
        unset=True,
        written=str,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "templates", tuple(self.templates) or read_templates())

    def video(self, model: Headed, features: Tensor) -> Tensor:
        """Frame features ``[B, T, D]`` to video features ``[B, De]``, not normalised."""
        import torch

        video = features.mean(1)
        with torch.autocast("cpu" if video.is_meta else video.device.type, enabled=False):
            return self.project(model, video.to(torch.promote_types(video.dtype, torch.float32)))

    def logits(self, model: Headed, features: Tensor) -> Tensor:
        texts = self.texts(model)
        return self.score(model, self.video(model, features), texts)

    def embed(self, model: Headed) -> Tensor:
        from aim_fast.models.heads.class_embeddings import embed_classes

        return embed_classes(model.text, model.class_names, self.templates)
