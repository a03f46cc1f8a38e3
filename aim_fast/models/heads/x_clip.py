"""X-CLIP's head: a Transformer over the frames' features, and class names prompted by what the clip shows.

Shapes: B clips, T frames, P patches, De the joint space, C classes.

    f   projection of the last norm of CLS [B, T, De];  v = mean over T of f + mit(f + mit.positional_embedding)
    s   mean over T of prompts_visual_ln(patches) · prompts_visual_proj                               [B, P, De]
    w   = t, the text features of the bare class names; in each of ``prompt_layers``
        w = w + proj(attention of norm1(w) to the patches norm(s));  w = w + mlp(norm3(w))            [B, C, De]
    e   = t + alpha ⊙ w;  logits = exp(logit_scale) · cos(v, e)                                       [B, C]

The text tower and the scale are frozen. The tensors hold no class: other names are scored as well. Source: Ni et al.,
Expanding Language-Image Pretrained Models for General Video Recognition, ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.errors import WeightsError
from aim_fast.models.heads.named_classes import JointSpace, count_in_row, unit
from aim_fast.models.record import argument

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed
    from aim_fast.models.weights.files import WeightsFile
    from aim_fast.models.weights.fit import Fit

_ADDED = ("mit.", "prompts_")


@dataclass(frozen=True)
class VideoPrompts(JointSpace):
    """X-CLIP's head; ``mit_layers`` and ``prompt_layers`` are 1 and 2 as published, heads have 64 channels."""

    heading: ClassVar[str] = "X-CLIP"
    name: ClassVar[str] = "x_clip"
    reads_tokens: ClassVar[bool] = True
    normed: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = (*JointSpace.own, *_ADDED)

    mit_layers: int = argument(1, "X-CLIP: blocks over the features of the frames", ge=1)
    prompt_layers: int = argument(2, "X-CLIP: layers in which class names read the patches", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_dim % 64:
            raise ValueError(f"output_dim {self.output_dim} is no multiple of the 64 channels of a head")

    def adds(self, name: str) -> bool:
        return name.startswith(_ADDED)

    def trains(self, name: str) -> bool:
        return not name.startswith("text.")

    def make(self, model: Headed) -> None:
        from aim_fast.models.heads.video_prompts import make_prompts

        super().make(model)
        make_prompts(model, self.output_dim, self.mit_layers, self.prompt_layers)

    def reset(self, model: Headed) -> None:
        from aim_fast.models.heads.video_prompts import reset_prompts

        super().reset(model)
        reset_prompts(model)

    @classmethod
    def told(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
        layers = {
            "mit_layers": "mit.resblocks.{}.ln_1.weight",
            "prompt_layers": "prompts_generator.decoder.{}.norm1.weight",
        }
        found = {name: count_in_row(tensors, part) for name, part in layers.items()}
        frames = tensors.get("mit.positional_embedding")
        if frames is None or not all(found.values()):
            raise WeightsError(
                f"{where}: has X-CLIP's messages and not its head (mit, prompts_generator): take its whole file"
            )
        return super().told(tensors, where) | found | {"num_frames": frames.shape[1]}

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        from aim_fast.models.weights.state_dict import strip_prefixes

        fit = super().fit(model, fit, file, source)
        own = {name: t for name, t in strip_prefixes(file.tensors, source).items() if self.adds(name)}
        return replace(fit, tensors=fit.tensors | own, left=fit.left - own.keys())

    def video(self, model: Any, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to video features ``[B, De]``, not normalised."""
        return model.mit(self.project(model, model.finish(model.pool(tokens))))

    def patches(self, model: Any, tokens: Tensor) -> Tensor:
        """The last block's output to what class names read, ``[B, P, De]``."""
        patches = model.prompts_visual_ln(tokens[:, :, model.row[-1].prefix :]).mean(1)
        return patches @ model.prompts_visual_proj.to(patches.dtype)

    def logits(self, model: Any, features: Tensor) -> Tensor:
        texts, patches = self.texts(model), self.patches(model, features)
        texts = texts.to(patches.dtype)
        prompted = texts + model.prompts_generator(texts, patches)
        return self.score(model, self.video(model, features), unit(prompted))
