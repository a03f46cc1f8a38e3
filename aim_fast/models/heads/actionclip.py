"""ActionCLIP's head: a Transformer over the frames' features, against class names in sixteen templates.

Shapes: B clips, T frames, De the joint space, C classes, K templates.

    f       projection of each frame's feature                                                      [B, T, De]
    u       f + fusion.frame_position_embeddings[:T];  v = mean over T of u + blocks(u)
            without blocks: v = mean over T of f                                                    [B, De]
    train   one of the K texts of each clip's class, drawn; L = exp(logit_scale) · cos(v_i, text_j) over the clips that
            all processes take at a time
            G_ij = 1 where the classes are equal, else 0
            loss_i = ½ KL(softmax(10 G)_i ‖ softmax(L)_i) + ½ the same of Lᵀ
    test    log of the mean over templates of softmax over classes of 100 · cos                     [B, C]

Both towers and the scale train. Clips that only fill a batch up are left out of both sums. Published names are those of
two state dicts, of CLIP and of ``fusion``. Source: Wang et al., ActionCLIP: A New Paradigm for Video Action
Recognition, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.errors import WeightsError
from aim_fast.models.heads.class_texts import read_templates
from aim_fast.models.heads.named_classes import JointSpace, count_in_row, unit
from aim_fast.models.heads.text import Text
from aim_fast.models.record import argument, like

if TYPE_CHECKING:
    from torch import Tensor

    from aim_fast.models.headed import Headed
    from aim_fast.models.weights.files import WeightsFile
    from aim_fast.models.weights.fit import Fit

_TEST_SCALE = 100.0
_TEXTS_AT_ONCE = 256
_TRANSF = ("fusion.frame_position_embeddings.", "fusion.transformer.resblocks.")
TEMPLATES = Path(__file__).parent / "actionclip_templates.txt"


@dataclass(frozen=True)
class ActionTexts(JointSpace):
    """ActionCLIP's head.

    Args:
        fusion_layers: blocks over time, 6 ("Transf"), or 0 for the mean over frames ("meanP").
        templates: prompts with ``{}`` for the class; the sixteen published ones if not given.
    """

    heading: ClassVar[str] = "ActionCLIP"
    name: ClassVar[str] = "actionclip"
    pairs_clips: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = (*JointSpace.own, "fusion.")

    fusion_layers: int = argument(6, "ActionCLIP: blocks over the features of the frames; 0 for their mean", ge=0)
    templates: Sequence[str] = like(Text, "templates")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "templates", tuple(self.templates) or read_templates(TEMPLATES))

    def adds(self, name: str) -> bool:
        return name.startswith("fusion.")

    def trains(self, name: str) -> bool:
        return not name.endswith("logit_bias")  # which changes no softmax

    def make(self, model: Headed) -> None:
        import torch

        from aim_fast.models.heads.fusion import Fusion

        super().make(model)
        rows = len(self.templates) * self.num_classes
        model.class_embeddings = torch.zeros(rows, self.output_dim)
        model.register_buffer("text_ids", torch.zeros(rows, 1, dtype=torch.int64), persistent=False)
        model.texts_told, model.texts_version = (), -1
        if self.fusion_layers:
            model.fusion = Fusion(self.output_dim, self.text_width // 64, self.context_length, self.fusion_layers)

    def reset(self, model: Headed) -> None:
        super().reset(model)
        if self.fusion_layers:
            model.fusion.reset_parameters()

    @classmethod
    def told(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
        others = [name.split(".")[1] for name in tensors if name.startswith("fusion.") and not name.startswith(_TRANSF)]
        if others:
            raise WeightsError(
                f"{where}: is an ActionCLIP whose frames are joined by {others[0]}: here they are by the "
                "Transformer or the mean alone (Transf, meanP)"
            )
        layers = count_in_row(tensors, "fusion.transformer.resblocks.{}.ln_1.weight")
        return super().told(tensors, where) | {"fusion_layers": layers}

    def fit(self, model: Headed, fit: Fit, file: WeightsFile, source: str) -> Fit:
        from aim_fast.models.weights.state_dict import strip_prefixes

        fit = super().fit(model, fit, file, source)
        own = {name: t for name, t in strip_prefixes(file.tensors, source).items() if self.adds(name)}
        kind = "aim" if own else fit.kind
        return replace(fit, tensors=fit.tensors | own, left=fit.left - own.keys(), kind=kind)

    def video(self, model: Headed, features: Tensor) -> Tensor:
        """Frame features ``[B, T, D]`` to video features ``[B, De]``, not normalised."""
        frames = self.project(model, features)
        return model.fusion(frames) if self.fusion_layers else frames.mean(1)

    def step_inputs(self, model: Headed, labels: Tensor, draws: Tensor) -> tuple[Tensor, ...]:
        """The token ids of each clip's text ``[B, L]``: its class in the template that its number draws."""
        drawn = (draws % len(self.templates)).to(labels.device, non_blocking=True)
        return (self._ids(model)[drawn * model.num_classes + labels],)

    def logits(self, model: Headed, features: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Of a training step, with ``tokens`` of its clips, ``[2, B, A]``: against the texts of the A clips of all
        processes, and of the texts against those clips; else ``[B, C]``."""
        import torch

        from aim_fast.models.heads.fusion import of_all

        video = unit(self.video(model, features))
        if tokens is not None:
            texts = unit(model.text(tokens))
            return torch.stack([self.score(model, video, of_all(texts)), self.score(model, texts, of_all(video))])
        texts = unit(self.texts(model)).to(video.dtype).unflatten(0, (len(self.templates), -1))  # [K, C, De]
        scores = _TEST_SCALE * video @ texts.mT  # [K, B, C]
        return scores.log_softmax(-1).logsumexp(0) - math.log(len(self.templates))

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        from aim_fast.models.heads.fusion import two_sided_loss

        return two_sided_loss(logits, labels, weights > 0) * weights

    def texts(self, model: Headed) -> Tensor:
        """Features of every class in every template ``[K·C, De]``, templates first: kept until the text tower changes,
        and with gradients made each time."""
        import torch

        if torch.is_grad_enabled() and model.class_names:
            return model.text(self._ids(model))
        scale = model.text.logit_scale
        if not scale.is_meta and not scale.is_inference() and not torch.compiler.is_compiling():
            model.stale |= model.texts_version != scale._version
            model.texts_version = scale._version
        return super().texts(model)

    def embed(self, model: Headed) -> Tensor:
        import torch

        with torch.no_grad():
            return torch.cat([model.text(ids) for ids in self._ids(model).split(_TEXTS_AT_ONCE)]).float()

    def _ids(self, model: Headed) -> Tensor:
        """Token ids of every class in every template ``[K·C, L]``."""
        from aim_fast.models.heads.class_embeddings import token_ids

        if model.texts_told != model.class_names:
            model.text_ids, model.texts_told = token_ids(model, self.templates), model.class_names
        return model.text_ids
