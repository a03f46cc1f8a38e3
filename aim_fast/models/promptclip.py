"""PromptCLIP: frozen CLIP towers, a learned prompt around each class name, a small Transformer over frame features.

Shapes: B clips, T frames, C classes, L ≤ 77 positions, Wt the text tower's width, De the width that both towers share.

    text    embedding [77, Wt] fills every position; per class, start-of-text goes to position 0, the tokens of its
            name to prefix + 1 …, end-of-text to where the name ends + postfix; the frozen text tower reads it there
    video   frozen frame features [B, T, De] + temporalEmbedding [T, De] -> blocks over time -> mean over T
            (without blocks: the mean alone)
    logits  cosine of the two / temperature                                                            [B, C]

The prompt is shared by all classes, so the same prompt scores classes that it was never trained on. Parameter names
are the published code's: ``embedding, temporalEmbedding, temporalModelling.resblocks.N``, and ``clipmodel`` with
CLIP's own. Source: Ju et al., Prompting Visual-Language Models for Efficient Video Understanding, ECCV 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import UsageError, WeightsError
from aim_fast.models.block import Transformer
from aim_fast.models.heads.projection import Projection
from aim_fast.models.heads.text_tower import TextTower, infer_text_architecture, text_tensors
from aim_fast.models.heads.tokens import TextTokens, spoken, tokenize
from aim_fast.models.methods.frozen import Probe
from aim_fast.models.methods.prompting import Prompting
from aim_fast.models.record import Clips
from aim_fast.models.trunk import PlainTrunk
from aim_fast.models.trunks.clip import CLIPViT
from aim_fast.models.video_model import VideoModel
from aim_fast.models.weights.architecture import describe, infer_architecture, usual_heads, visual_tower
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_fast.models.weights.interpolation import interpolate_frames, interpolate_positions
from aim_fast.models.weights.state_dict import strip_prefixes
from aim_kernels.choices import Activation
from aim_kernels.modules import AIMBlock

_LEARNED = ("embedding.", "temporalEmbedding.", "temporalModelling.")
_TEMPORAL_BLOCK = re.compile(r"temporalModelling\.resblocks\.(\d+)\.")


class CLIP(TextTower):
    """CLIP: the text tower's names at the top, the image tower's below ``visual``."""

    visual: CLIPViT


class PromptCLIP(VideoModel):
    """Clips, or their cached frame features ``[B, T, De]``, to the logits of named classes.

    Only the prompt, the temporal embedding and the temporal blocks train. The logits come from class names:
    ``class_names`` gives them, :meth:`set_classes` others. Without names, ``num_classes`` is for counting alone.

    Raises UsageError for a class name that the text tower has no room for, ValueError for sizes that cannot be.
    """

    record = Prompting
    takes_class_names = True
    output_dim: int
    context_length: int
    vocab_size: int
    prompt_prefix: int
    prompt_postfix: int
    temporal_layers: int
    temperature: float
    max_names: int
    _placed: Tensor  # token ids [C, L] where they stand among the prompt, -1 where the prompt is
    _ends: Tensor  # positions of end-of-text [C]

    def __init__(self, of: Prompting) -> None:
        super().__init__(of)
        sizes = (of.context_length, of.vocab_size, of.text_width, of.text_depth, of.text_width // 64, of.output_dim)
        self.clipmodel = CLIP(*sizes, activation=of.activation)
        arguments = {name: getattr(of, name) for name in of.names()}
        self.clipmodel.visual = CLIPViT(
            PlainTrunk.of(arguments), Probe(), Projection(of.output_dim), Clips.of({**arguments, "num_frames": 1})
        ).requires_grad_(False)
        self.embedding = nn.Embedding(of.context_length, of.text_width)
        if of.temporal_layers:
            self.temporalEmbedding = nn.Embedding(of.num_frames, of.output_dim)
            self.temporalModelling = Transformer(
                AIMBlock(of.output_dim, of.temporal_heads, adapters=(), activation="quick_gelu", backend="reference")
                for _ in range(of.temporal_layers)
            )
        self._scored: tuple[tuple[Any, ...], Tensor] | None = None  # text features of an evaluation
        if of.class_names:
            self.set_classes(of.class_names)
        else:
            nothing = torch.zeros(of.num_classes, 3, dtype=torch.int64, device="cpu")
            self.set_tokens(TextTokens(nothing, nothing[:, 0] + 2))
            self.class_names = ()
        self.reset_parameters()
        self.freeze()

    @classmethod
    def infer_arguments(cls, tensors: Mapping[str, Tensor], where: str) -> dict[str, Any] | None:
        """The sizes of both towers and of the temporal part. The lengths of the prompt, its heads over time and the
        temperature leave no trace: they are the published ones. Raises WeightsError for learned tensors alone."""
        clip = {name.removeprefix("clipmodel."): t for name, t in tensors.items() if name.startswith("clipmodel.")}
        if not clip and "temporalEmbedding.weight" not in tensors:
            return None
        if not clip or "embedding.weight" not in tensors:
            has, lacks = ("CLIP", "prompt (embedding.weight)") if clip else ("temporal part", "CLIP (clipmodel.…)")
            raise WeightsError(f"{where}: holds PromptCLIP's {has} but no {lacks}: give a file with both")
        image = infer_architecture(visual_tower(clip, where), where)
        text = infer_text_architecture(text_tensors(clip, where), where)
        found = {
            **{key: image[key] for key in ("img_size", "patch_size", "embed_dim", "depth")},
            "num_heads": usual_heads(image["embed_dim"]),
            **{key: text[key] for key in ("output_dim", "context_length", "vocab_size")},
            "text_width": text["width"],
            "text_depth": text["depth"],
            "temporal_layers": len({match[1] for match in map(_TEMPORAL_BLOCK.match, tensors) if match}),
        }
        if "temporalEmbedding.weight" in tensors:
            found["num_frames"] = len(tensors["temporalEmbedding.weight"])
        return found

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"method": "promptclip"}

    def published_name(self, name: str) -> str:
        return name

    def reset_parameters(self) -> None:
        """Initialise the prompt and the temporal part; the towers are initialised by themselves."""
        nn.init.normal_(self.embedding.weight, std=0.01)
        if self.temporal_layers:
            nn.init.normal_(self.temporalEmbedding.weight, std=0.01)
            for block in self.temporalModelling.resblocks:
                block.reset_parameters()
                for residual in (block.attn.out_proj, block.mlp.c_proj):
                    nn.init.normal_(residual.weight, std=(2 * self.output_dim * self.temporal_layers) ** -0.5)

    def freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.is_adaptation(name))

    def is_adaptation(self, name: str) -> bool:
        return name.startswith(_LEARNED)

    def no_weight_decay(self) -> set[str]:
        """None: everything learned is decayed."""
        return set()

    @property
    def activation(self) -> Activation:
        """Of both towers' MLPs; assigning sets it everywhere."""
        return self.clipmodel.activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        self.clipmodel.activation = activation
        self.clipmodel.visual.activation = activation

    def set_classes(self, names: Sequence[str]) -> None:
        """Score these classes from now on.

        Raises UsageError, naming the class, where a name has no room beside the prompt.
        """
        spare = self.prompt_prefix + self.prompt_postfix
        self.set_tokens(tokenize([spoken(name) for name in names], self.context_length, self.vocab_size, spare))
        self.class_names = tuple(names)

    def set_tokens(self, names: TextTokens) -> None:
        """Score the classes of these tokenised names, for a tokenizer of one's own."""
        prefix, ends = self.prompt_prefix, names.ends + self.prompt_prefix + self.prompt_postfix
        placed = torch.full((len(ends), int(ends.max()) + 1), -1, dtype=torch.int64, device="cpu")
        for row, (ids, end) in enumerate(zip(names.ids, names.ends.tolist())):
            placed[row, 0] = ids[0]
            placed[row, prefix + 1 : prefix + end] = ids[1:end]
            placed[row, ends[row]] = ids[end]
        same = (placed == placed[0]).all(0).long().cumprod(0).sum()  # first positions, equal in all classes
        self._shared = min(int(same), int(ends.min()))
        device = self.embedding.weight.device
        self.register_buffer("_placed", placed.to(device), persistent=False)
        self.register_buffer("_ends", ends.to(device), persistent=False)
        self.num_classes = len(ends)
        self.class_names = tuple(f"class {row}" for row in range(len(ends)))
        self._scored = None

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        tensors = strip_prefixes(file.tensors, source)
        learned = {name: tensor for name, tensor in tensors.items() if self.is_adaptation(name)}
        clip = {name.removeprefix("clipmodel."): t for name, t in tensors.items() if name not in learned}
        if not any(name.startswith("visual.") for name in clip):
            raise WeightsError(f"{source} is no whole CLIP: PromptCLIP needs the image tower and the text tower of one")
        image, text = visual_tower(clip, source), text_tensors(clip, source)
        theirs, lines = infer_architecture(image, source), []
        ours = {key: getattr(self, key) for key in ("embed_dim", "depth", "patch_size", "img_size")}
        if any(theirs[key] != ours[key] for key in ("embed_dim", "depth", "patch_size")):
            raise WeightsError(
                f"{source} is of another architecture: it looks like {describe(theirs)}; the model is {describe(ours)}"
            )
        sizes = {key: getattr(self.clipmodel, key) for key in infer_text_architecture(text, source)}
        if odd := {key: size for key, size in infer_text_architecture(text, source).items() if size != sizes[key]}:
            said = ", ".join(f"{key} {size}, the model's {sizes[key]}" for key, size in odd.items())
            raise WeightsError(f"{source} has a text tower of another architecture: {said}")
        if theirs["img_size"] != self.img_size:
            tokens = len(self.clipmodel.visual.positional_embedding)
            image["positional_embedding"] = interpolate_positions(image["positional_embedding"], tokens)
            lines.append(f"positional embedding interpolated from {theirs['img_size']} px to {self.img_size} px")
        activation = file.activation
        if activation is None:
            lines.append(
                f"{source} does not say its activation: {self.activation} is used (OpenAI's weights need quick_gelu; "
                "most others in open_clip's list need gelu)"
            )
        if "visual.proj" not in clip:
            raise WeightsError(f"{source} has no projection of its image tower (visual.proj): take a whole CLIP file")
        image["proj"] = clip["visual.proj"]
        found = {f"clipmodel.visual.{name}": t for name, t in image.items()}
        found |= {f"clipmodel.{name}": t for name, t in text.items()}
        left = {name for name in self.state_dict() if self.is_adaptation(name)}
        if learned:
            if (places := learned.get("temporalEmbedding.weight")) is not None and not self.temporal_layers:
                del learned["temporalEmbedding.weight"]
                lines.append(f"{source} has a temporalEmbedding, which is read by no block: it is left out")
            elif places is not None and len(places) != self.num_frames:
                learned["temporalEmbedding.weight"] = interpolate_frames(places[None], self.num_frames)[0]
                lines.append(f"temporalEmbedding interpolated from {len(places)} to {self.num_frames} frames")
            return Fit(found | learned, set(), "aim", lines, activation)
        return Fit(found, left, "clip", lines, activation)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """Clips, or frame features ``[B, T, De]``, to logits of all classes, or of those in ``classes`` [K]."""
        features = x if x.ndim == 3 else self.forward_features(x)
        return self.forward_head(features, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips to frozen frame features ``[B, T, De]``."""
        b, t = self.check_clips(x), self.num_frames
        if x.dtype == torch.uint8:
            frames = x.flatten(0, 1)[:, None]
        else:
            frames = x.transpose(1, 2).flatten(0, 1)[:, :, None]
        return self.clipmodel.visual(frames).unflatten(0, (b, t))

    def frozen_features(self, x: Tensor) -> Tensor:
        return self.forward_features(x)

    def forward_head(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Frame features to logits: cosine of video and text features over the temperature."""
        video = F.normalize(self.video_features(features), dim=-1)
        text = F.normalize(self.class_features(classes), dim=-1)
        return video @ text.to(video.dtype).T / self.temperature

    def video_features(self, features: Tensor) -> Tensor:
        """Frame features ``[B, T, De]`` to video features ``[B, De]``, not normalised."""
        if features.shape[1:] != (self.num_frames, self.output_dim):
            wanted = f"[B, {self.num_frames}, {self.output_dim}]"
            raise ValueError(f"expected frame features {wanted}, got {list(features.shape)}")
        features = features.to(self.embedding.weight.dtype)
        if not self.temporal_layers:
            return features.mean(1)
        tokens = features + self.temporalEmbedding.weight
        return self.temporalModelling(tokens[:, None], 0, self.temporal_layers)[:, 0].mean(1)

    def class_features(self, classes: Tensor | None = None) -> Tensor:
        """Text features ``[C, De]`` of all classes, or ``[K, De]`` of those in ``classes``, not normalised.

        In training they come from the prompt as it is at that step; without gradients those of all classes are kept
        until the prompt changes. Raises UsageError where no class has a name.
        """
        weight = self.embedding.weight
        if not self.class_names:
            if weight.is_meta:  # a clip's cost is counted, and names are no part of it
                return weight.new_empty(self.num_classes, self.output_dim)
            raise UsageError("no class names: give create_model(..., class_names=[...]), or call model.set_classes")
        kept = classes is None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not kept or weight.is_inference():  # what is made in inference mode does not tell its changes
            return self._read_prompts(classes)
        autocast = not weight.is_meta and torch.is_autocast_enabled(weight.device.type)
        state = (weight._version, weight.device, weight.dtype, autocast, self.activation)
        if self._scored is None or self._scored[0] != state:
            self._scored = (state, self._read_prompts(None))
        return self._scored[1]

    def candidates(self, labels: Tensor, seed: int) -> Tensor | None:
        """Which classes a training step scores: None for all, else ids ascending ``[K]``, K = max_names.

        Those of the batch, and others drawn by ``seed``; without a wait for the device.
        """
        count = max(self.max_names, len(labels))
        if count >= self.num_classes:
            return None
        draws = torch.rand(self.num_classes, generator=torch.Generator().manual_seed(seed)).to(labels.device)
        draws[labels] = 2.0
        return draws.topk(count).indices.sort().values

    def _read_prompts(self, classes: Tensor | None) -> Tensor:
        placed, ends = (t if classes is None else t[classes] for t in (self._placed, self._ends))
        names = self.clipmodel.token_embedding(placed.clamp_min(0))  # [C, L, Wt]
        prompts = torch.where(placed[..., None] >= 0, names, self.embedding.weight[: placed.shape[1]])
        return self.clipmodel.encode(prompts, ends, self._shared)
