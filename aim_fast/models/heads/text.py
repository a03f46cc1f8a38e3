"""AIM on a CLIP ViT that keeps CLIP's own head: video features scored against class names.

Shapes: B clips, T frames, D the image tower's width, De the width that CLIP's two towers share, C classes.

    video   CLS of each frame after ln_post [B, T, D] -> mean over T -> proj [D, De] -> norm       v [B, De]
    text    embeddings of the class names by the frozen text tower (class_embeddings)              e [C, De]
    logits  exp(logit_scale) · v·e                                                                  [B, C]

``proj``, the text tower and ``logit_scale`` are CLIP's and frozen, so the head has nothing of its own: other class
names make a classifier for other classes. Sources: Radford et al., ICML 2021; Yang et al., AIM, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import WeightsError
from aim_fast.models.heads.class_embeddings import check_class_names, embed_classes, read_templates
from aim_fast.models.heads.text_tower import TextTower, infer_text_architecture, text_tensors
from aim_fast.models.trunks.clip_aim import AIMViTCLIP
from aim_fast.models.weights import clip as clip_weights
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.state_dict import strip_prefixes
from aim_kernels.choices import Activation

_TEXT_SIZES = ("output_dim", "context_length", "vocab_size", "text_width", "text_depth")


class AIMViTCLIPText(AIMViTCLIP):
    """A CLIP ViT adapted to video by AIM, with CLIP's head: clips in, logits of named classes out.

    Args:
        class_names: of the classes; :meth:`set_classes` gives others. Without names, ``num_classes`` is for counting.
        templates: prompts with ``{}`` for the class, whose embeddings are averaged; the shipped ones if not given.
        output_dim: De. context_length, vocab_size, text_width, text_depth: the text tower; its heads have 64 channels.

    The other arguments are those of :class:`AIMViTCLIP`; ``head_dropout`` has no place here. What trains is what trains
    there, without a classifier. Raises UsageError for classes without names, ValueError for sizes that cannot be.
    """

    arguments: ClassVar[tuple[str, ...]] = (*AIMViTCLIP.arguments, "head", "class_names", "templates", *_TEXT_SIZES)
    takes_class_names = True
    class_embeddings: Tensor  # e [C, De]

    def __init__(
        self,
        *args: Any,
        head: Literal["text"] = "text",
        class_names: Sequence[str] = (),
        templates: Sequence[str] = (),
        output_dim: int = 512,
        context_length: int = 77,
        vocab_size: int = 49408,
        text_width: int = 512,
        text_depth: int = 12,
        **arguments: Any,
    ) -> None:
        super().__init__(*args, **arguments)
        if head != "text":
            raise ValueError(f"head {head!r} is neither linear nor text")
        if text_width % 64:
            raise ValueError(f"text_width {text_width} is no multiple of 64")
        self.head: Literal["text"] = head
        self.templates = tuple(templates) or read_templates()
        self.output_dim, self.context_length, self.vocab_size = output_dim, context_length, vocab_size
        self.text_width, self.text_depth = text_width, text_depth
        self.fc_cls = nn.Identity()  # type: ignore[assignment]
        self.proj = nn.Parameter(torch.empty(self.embed_dim, output_dim))
        self.text = TextTower(
            context_length, vocab_size, text_width, text_depth, text_width // 64, output_dim, activation=self.activation
        )
        self.class_names: tuple[str, ...] = ()
        if class_names:
            check_class_names(class_names)
            self.class_names = tuple(class_names)
            self.num_classes = len(class_names)
        self.register_buffer("class_embeddings", torch.zeros(self.num_classes, output_dim), persistent=False)
        nn.init.normal_(self.proj, std=self.embed_dim**-0.5)
        self._stale = True
        self.register_load_state_dict_post_hook(lambda module, _: module.weights_loaded())
        self.freeze()

    def freeze(self) -> None:
        """Set ``requires_grad`` as ``tune`` says; CLIP's head is frozen in any case."""
        super().freeze()
        for name, parameter in self.named_parameters():
            if name == "proj" or name.startswith("text."):
                parameter.requires_grad_(False)

    @property
    def activation(self) -> Activation:
        """Of both towers' MLPs; assigning sets it in every block."""
        return self.transformer.resblocks[0].activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        for block in self.transformer.resblocks:
            block.activation = activation
        self.text.activation = activation

    def set_classes(self, names: Sequence[str]) -> None:
        """Score these classes from now on. Raises UsageError where they have no names, or one too long."""
        check_class_names(names)
        self.class_names = tuple(names)
        self.num_classes = len(names)
        self.weights_loaded()
        self._embed()

    def weights_loaded(self) -> None:
        """What follows from the text tower is computed again."""
        self._stale = True

    @torch.compiler.disable
    def _embed(self) -> None:
        if self.class_names:
            with torch.inference_mode(False):  # training goes on with what a validation made
                self.class_embeddings = embed_classes(self.text, self.class_names, self.templates)
        self._stale = False

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        """A whole CLIP, both towers; or a model of this class that was written as one file.

        Raises WeightsError for an image tower alone.
        """
        tensors = strip_prefixes(file.tensors, source)
        text = text_tensors(tensors, source)
        proj = tensors.get("visual.proj", tensors.get("proj"))
        if proj is None:
            raise WeightsError(f"{source} has no projection of its image tower (visual.proj): take a whole CLIP file")
        theirs = infer_text_architecture(text, source) | {"output_dim": proj.shape[1]}
        ours = {key: getattr(self.text, key) for key in theirs}
        if odd := [f"{key} {size}, not {ours[key]}" for key, size in theirs.items() if size != ours[key]]:
            raise WeightsError(f"{source} has a text tower of another architecture than the model: {'; '.join(odd)}")
        image = {name: tensor for name, tensor in tensors.items() if not name.startswith("text.")}
        fit = clip_weights.fit_weights(self, file._replace(tensors=image), source)
        lines = [line for line in fit.lines if "the head is left" not in line]
        head = {"proj": proj} | {f"text.{name}": tensor for name, tensor in text.items()}
        return Fit(fit.tensors | head, fit.left - {"fc_cls.weight", "fc_cls.bias"}, fit.kind, lines, fit.activation)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features ``[B, T, D]`` to logits ``[B, C]``."""
        if self._stale and not self.proj.is_meta:
            self._embed()
        # in fp32 at least: a cosine times 100 has no room for the rounding of lower precisions
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.promote_types(features.dtype, torch.float32)
            video = F.normalize(features.mean(1).to(dtype) @ self.proj.to(dtype), dim=-1)
            return self.text.logit_scale.exp().to(dtype) * video @ self.class_embeddings.to(dtype).T
