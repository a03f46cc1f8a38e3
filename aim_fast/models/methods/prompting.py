"""Arguments of PromptCLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from aim_fast.models.argument_checks import check_normalisation, check_sizes
from aim_fast.models.record import Clips, Record, argument, like
from aim_fast.models.trunk import PlainTrunk, Trunk
from aim_kernels.choices import Activation, BlockBackend, Memory


@dataclass(frozen=True)
class Prompting(Record):
    """Arguments of PromptCLIP.

    Args:
        img_size, patch_size, embed_dim, depth, num_heads: the image tower.
        output_dim: De. context_length, vocab_size, text_width, text_depth: the text tower; heads have 64 channels.
        num_frames: T.
        class_names: of the classes; underscores and capitals within a word are read as spaces.
        prompt_prefix, prompt_postfix: learned positions before and after a name.
        temporal_layers, temporal_heads: of the Transformer over frames; 0 layers for the mean.
        temperature: τ.
        max_names: classes that a training step scores at most, those of its batch among them.
        activation: of all MLPs of the towers. mean, std: of the R, G and B channel, on the scale of 0 to 255.
        backend, memory: of the image tower's blocks.
    """

    heading: ClassVar[str] = "PromptCLIP"
    name: ClassVar[str] = "promptclip"
    line: ClassVar[str] = (
        "a learned prompt around class names with a head of its own, on a CLIP of both towers (ECCV 2022)"
    )

    img_size: int = like(Trunk, "img_size")
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    num_frames: int = 16
    num_classes: int = 400
    class_names: Sequence[str] = ()
    output_dim: int = 512
    context_length: int = 77
    vocab_size: int = 49408
    text_width: int = 512
    text_depth: int = 12
    prompt_prefix: int = argument(
        16, "PromptCLIP: learned positions before a class name; 16 if not given", unset=True, told=False
    )
    prompt_postfix: int = argument(
        16, "PromptCLIP: learned positions after a class name; 16 if not given", unset=True, told=False
    )
    temporal_layers: int = argument(
        2, "PromptCLIP: blocks over frame features, 0 for their mean; ViViT: blocks over steps of time", unset=True
    )
    temporal_heads: int = 8
    temperature: float = 0.07
    max_names: int = argument(
        400, "PromptCLIP: names that a training step scores at most; 400 if not given", unset=True
    )
    activation: Activation = like(PlainTrunk, "activation")
    mean: Sequence[float] = like(Trunk, "mean")
    std: Sequence[float] = like(Trunk, "std")
    backend: BlockBackend = like(Clips, "backend")
    memory: Memory = like(Clips, "memory")

    def __post_init__(self) -> None:
        check_sizes(num_frames=self.num_frames, num_classes=self.num_classes, output_dim=self.output_dim)
        check_sizes(text_depth=self.text_depth, context_length=self.context_length, vocab_size=self.vocab_size)
        check_sizes(max_names=self.max_names)
        for name, count in (("prompt_prefix", self.prompt_prefix), ("prompt_postfix", self.prompt_postfix)):
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, not {count}")
        if self.temporal_layers < 0 or self.temperature <= 0 or self.text_width % 64:
            raise ValueError("temporal_layers must be 0 or more, temperature above 0, text_width a multiple of 64")
        mean, std = check_normalisation(self.mean, self.std)
        for name, value in (("mean", mean), ("std", std), ("class_names", tuple(self.class_names))):
            object.__setattr__(self, name, value)
