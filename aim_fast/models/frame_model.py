"""An image Transformer over clips, frame by frame: what its models share whatever their weights' names.

Shapes: B clips, T frames, N tokens a frame, D = embed_dim.

    stem    clips -> patches, tokens that stand before them, embeddings                     [B, T, N, D]
    blocks  depth × the model's own, in a row
    tail    pool -> finish (a norm) [B, T, D] -> mean over T -> dropout -> fc_cls -> [B, num_classes]
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.errors import UsageError
from aim_fast.models.argument_checks import check_normalisation, check_sizes
from aim_fast.models.block import products
from aim_fast.models.head import Head
from aim_fast.models.headed import Headed
from aim_fast.models.method import Method
from aim_fast.models.record import Clips
from aim_fast.models.side import SideNetwork
from aim_fast.models.trunk import PlainTrunk, Trunk
from aim_fast.models.weights.files import WeightsFile
from aim_fast.models.weights.fit import Fit
from aim_kernels.choices import Activation, BlockBackend
from aim_kernels.formed_together import formed_together
from aim_kernels.modules import Adapter

# The middle of uint8: pixels minus this are exact in bf16, and small enough that a rounded weight does little harm.
_MIDDLE = 128.0


class FrameModel(Headed):
    """A trunk, which a subclass is, under a method and a head: clips in, class logits out.

    The subclass makes the trunk's modules under the names of its weights. Raises ValueError for sizes that cannot be,
    and in ``forward`` for a clip of another layout or size.
    """

    trunk_record: ClassVar[type[Trunk]] = PlainTrunk
    last_norm: str = "ln_post."  # what the names of the norm before the head begin with
    pooling: tuple[str, ...] = ()  # what the names of the parameters that :meth:`pool` alone reads begin with

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    lowest: int  # number of the lowest block in or below which something trains; depth where only the tail does
    temporal_embedding: Tensor
    ln_post: nn.LayerNorm
    side: SideNetwork | None  # what the method has beside the trunk

    def __init__(self, trunk: Trunk, method: Method, head: Head, clips: Clips) -> None:
        mean, std = check_normalisation(trunk.mean, trunk.std)
        check_sizes(img_size=trunk.img_size, patch_size=trunk.patch_size, embed_dim=trunk.embed_dim, depth=trunk.depth)
        check_sizes(num_heads=trunk.num_heads, num_frames=clips.num_frames, num_classes=head.num_classes)
        if trunk.img_size % trunk.patch_size:
            raise ValueError(f"img_size {trunk.img_size} is no multiple of patch_size {trunk.patch_size}")
        method = method.fitted(trunk.depth)
        super().__init__(replace(trunk, mean=mean, std=std), method, head, clips)
        self.method, self.reader = method, head
        self.classifier_std = method.classifier_std
        self.lowest, self.moves_time = method.lowest(trunk.depth), method.moves_time(trunk.depth)
        self.side = None
        self.make_trunk()
        self.side = method.network(self)
        self.stores_layers = self.side is not None and self.lowest == 0
        self.joint = self.side is not None and self.side.joint
        time = torch.empty(1, self.trunk_frames, trunk.embed_dim)
        if method.over_time:
            self.temporal_embedding = nn.Parameter(time)
        else:
            self.register_buffer("temporal_embedding", time, persistent=False)
        head.make(self)
        self.reset_parameters()
        self.freeze()

    @abstractmethod
    def make_trunk(self) -> None:
        """Makes the stem, the blocks by :meth:`adapt`, and the last norm."""

    @abstractmethod
    def reset_trunk(self) -> None:
        """Initialises them as the trunk's authors do, each block with what the method added."""

    @abstractmethod
    def fit_trunk(self, file: WeightsFile, source: str) -> Fit:
        """What a file gives of all but the head."""

    @property
    @abstractmethod
    def row(self) -> Sequence[Any]:
        """The blocks, each [B, T, N, D] to itself, with ``activation``."""

    @property
    @abstractmethod
    def projection(self) -> nn.Conv2d:
        """The patch embedding."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """N."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Clips to the first block's input ``[B, T, N, D]``."""

    @property
    def feature_dim(self) -> int:  # type: ignore[override]
        return self.frame_dim if self.side is None else self.side.feature_dim

    @property
    def trunk_frames(self) -> int:
        """T: of a clip's frames those that the trunk sees."""
        return self.num_frames // self.method.frame_step

    @property
    def frame_dim(self) -> int:
        """Channels of what :meth:`pool` gives of a frame."""
        return self.embed_dim

    @property
    def config(self) -> dict[str, Any]:
        head = {} if self.reader.name in ("linear", self.method.name) else {"head": self.reader.name}
        return super().config | {"method": self.method.name} | head

    def block_arguments(self, number: int) -> dict[str, Any]:
        """What a block is made with on any trunk: how it runs, and the adapters that the method has in it."""
        clips: Any = self.records[-1]
        running = {"backend": clips.backend, "memory": clips.memory}
        return running | self.method.block_arguments(number, self.depth)

    def reset_added(self, block: Any) -> None:
        """Initialises what the method added to a block, after the block's own parameters."""
        for module in block.children():
            if isinstance(module, Adapter):
                module.reset_parameters()
        self.method.reset(block)

    def adapt(self, block: Any, number: int) -> Any:
        """A frozen block with what the method adds to it."""
        block.method, block.prefix = self.method, self.num_tokens - (self.img_size // self.patch_size) ** 2
        self.method.extend(block, number, self.depth)
        return block

    def reset_parameters(self) -> None:
        if next(self.parameters()).is_meta:
            return
        self.reset_trunk()
        nn.init.zeros_(self.temporal_embedding)
        if self.side is not None:
            self.side.reset_parameters()
        self.reader.reset(self)

    def freeze(self) -> None:
        for name, parameter in self.named_parameters():
            of_head = name.startswith(self.reader.own)
            unread = self.reader.reads_tokens and name.startswith(self.pooling)
            trains = self.reader.trains(name) if of_head else self.method.trains(name, self.last_norm) and not unread
            parameter.requires_grad_(trains)

    def is_adaptation(self, name: str) -> bool:
        return self.method.is_own(name) or self._of_head(name)

    def published_name(self, name: str) -> str:
        return self.method.published_name(name) or super().published_name(name)

    def part_of(self, name: str) -> str:
        return "head" if self._of_head(name) else "method" if self.method.is_own(name) else "trunk"

    def _of_head(self, name: str) -> bool:
        return name.startswith(self.reader.own) and self.reader.adds(name)

    @property
    def decayed_layers(self) -> Sequence[Any]:
        return self.row

    @property
    def lr_factors(self) -> Mapping[str, float]:
        return self.method.lr_factors

    def no_weight_decay(self) -> set[str]:
        if self.method.decays_all:
            return set()
        own = {name for name, _ in self.trainable_parameters() if self.method.undecayed(name)}
        return super().no_weight_decay() | own

    def merged(self) -> Self:
        """The model with what the method added merged into its trunk, of the same value to rounding.

        Raises UsageError for a method that does not merge, and for a trunk that it cannot be merged into.
        """
        merges = self.method.merges
        if not merges or all(getattr(self.method, name) == value for name, value in merges.items()):
            raise UsageError(
                f"method {self.method.name} has nothing here that merges into its trunk: leave --merge out"
            )
        config = self.config | dict(merges)
        twin: Self = type(self)(*(type(record).of(config) for record in self.records))  # type: ignore[arg-type]
        twin.to(self.projection.weight)
        kept = {name: tensor for name, tensor in self.state_dict().items() if name in twin.state_dict()}
        twin.load_state_dict(kept)
        for mine, theirs in zip(self.row, twin.row):
            for old, new in zip(products(theirs), self.method.merge(mine)):
                for tensor, value in zip(old, new):
                    tensor.detach().copy_(value)
        twin.activation = self.activation
        return twin.train(self.training)

    def fit_weights(self, file: WeightsFile, source: str) -> Fit:
        return self.reader.fit(self, self.fit_trunk(self.reader.of_trunk(file), source), file, source)

    def trunk_loaded(self) -> list[str]:
        return self.method.trunk_loaded(self.row)

    def weights_loaded(self) -> None:
        self.reader.weights_loaded(self)

    def set_classes(self, names: Sequence[str]) -> None:
        self.reader.set_classes(self, names)

    @property
    def takes_class_names(self) -> bool:  # type: ignore[override]
        return self.reader.takes_class_names

    @property
    def stem_embedding(self) -> Tensor:
        """What the stem adds to every token of a frame, ``[1, T, D]``."""
        return torch.zeros_like(self.temporal_embedding) if self.moves_time else self.temporal_embedding

    @property
    def activation(self) -> Activation:
        """Of the image Transformer's MLPs, "swiglu" where they are gated; assigning sets it in every block."""
        return self.row[0].activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        for block in self.row:
            block.activation = activation
        self.reader.set_activation(self)

    @property
    def backend(self) -> BlockBackend:
        """Of the stem and the blocks: "fused", or "reference" for plain torch."""
        return self.row[0].backend

    def forward_features(self, x: Tensor) -> Tensor:
        """Clips, or what :meth:`forward_bottom` made of them, to what the head reads.

        That is of each frame its normalised feature, ``[B, T, D]``, or its tokens, ``[B, T, N, D]``; under a method
        that averages frames before the last norm, or has a network beside the trunk, ``[B, 1, D]``.
        """
        if self.side is not None and x.ndim == 2:
            return self.side.from_stored(self, x)
        stored = list(x.shape[1:]) == self.bottom_shape  # perhaps in half precision
        tokens = x.to(self.projection.weight.dtype) if stored else self.forward_bottom(x)
        return self.forward_top(tokens) if self.side is None else self.side(self, tokens, x)

    @property
    def bottom_shape(self) -> list[int]:
        """[T, N, D] of what :meth:`forward_bottom` makes of a clip."""
        tokens = 1 if self.lowest == self.depth and not self.reader.reads_tokens else self.num_tokens
        return [self.trunk_frames, tokens, self.embed_dim]

    def forward_bottom(self, x: Tensor) -> Tensor:
        """Clips to the input of block ``lowest``, [B, T, N, D]; the pooled token alone, N = 1, where no block is left.

        Nothing in it trains where ``lowest`` is above 0, so it keeps nothing for backward and can be cached.
        """
        if (step := self.method.frame_step) > 1:
            self.check_clips(x)
            x = x[:, ::step] if x.dtype == torch.uint8 else x[:, :, ::step]
        tokens = self.run(self.embed(x), 0, self.lowest)
        pooled = self.lowest == self.depth and not self.reader.reads_tokens
        return self.pool(tokens)[:, :, None] if pooled else tokens

    def frozen_features(self, x: Tensor) -> Tensor:
        """:meth:`forward_bottom`, where nothing in it trains, or what the network beside the trunk reads of it and of
        all blocks above, [B, E], where the model ``stores_layers``; else UsageError."""
        if self.side is not None and self.stores_layers:
            return self.side.store(self, self.forward_bottom(x), x)
        if self.lowest == 0:
            use = "--adapters none, or --adapter-layers top or a list without block 0, and not --temporal-place stem"
            if self.method.name != "aim":
                reads = f"--cache-layers all, for {self.method.name} reads all blocks"
                use = reads if self.side else f"--method probe, for {self.method.name} trains the first block too"
            raise UsageError(f"nothing below the first trained block can be stored: use {use}")
        return self.forward_bottom(x)

    def store_layers(self, which: Literal["lower", "all"]) -> None:
        if self.side is None:
            raise UsageError(
                f"--cache-layers is of networks beside a trunk, and {self.method.name} has none: leave it out"
            )
        self.stores_layers = which == "all"

    @property
    def frozen_part(self) -> str:  # type: ignore[override]
        """What :meth:`frozen_features` are."""
        if self.side is not None and self.stores_layers:
            blocks = f"blocks {self.lowest} to {self.depth - 1} of {self.depth}"
            return f"what {self.method.name} reads of {blocks}" + (", and pixels" if self.side.reads_pixels else "")
        whole = self.lowest == self.depth and self.reader.reads_tokens  # another head has one pooled token there
        return f"input of block {self.lowest} of {self.depth}" + (", all tokens" if whole else "")

    def forward_top(self, tokens: Tensor) -> Tensor:
        """The input of block ``lowest`` to what the head reads, normalised: ``[B, T, D]``, or ``[B, T, N, D]``."""
        if self.moves_time:
            tokens = tokens + self.temporal_embedding[:, :, None]
        if self.reader.reads_tokens:
            tokens = self.run(tokens, self.lowest, self.depth)
            return self.finish_tokens(tokens) if self.reader.normed else tokens
        stored = self.lowest == self.depth
        pooled = tokens[:, :, 0] if stored else self.pool(self.run(tokens, self.lowest, self.depth))
        return self.finish(pooled.mean(1, keepdim=True) if self.method.mean_first else pooled)

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``: its CLS token."""
        return tokens.squeeze(2) if tokens.shape[2] == 1 else tokens[:, :, 0]  # back from which there are zeros to fill

    def finish(self, pooled: Tensor) -> Tensor:
        """The feature of each frame, normalised: ``[B, T, D]`` to itself."""
        return self.ln_post(pooled)

    def finish_tokens(self, tokens: Tensor) -> Tensor:
        """The last block's output, normalised: ``[B, T, N, D]`` to itself."""
        return self.ln_post(tokens)

    @property
    def pools_cls(self) -> bool:
        """Whether :meth:`pool` reads the CLS token, the first of each frame, and nothing else."""
        return True

    def run(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Blocks ``start`` to ``stop`` - 1 on ``tokens`` [B, T, N, D].

        Of the last block only [B, T, 1, D] where no more of it is read.
        """
        blocks = [*self.row][start:stop]
        with formed_together(blocks, tokens):
            for number, block in enumerate(blocks, start):
                last = number == self.depth - 1
                tokens = block(tokens, cls_only=last and self.pools_cls and not self.reader.reads_tokens)
        return tokens

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Clips to logits ``[B, num_classes]``, or with :meth:`step_inputs` to what :meth:`losses` takes."""
        return self.forward_head(self.forward_features(x), *inputs)

    def forward_head(self, features: Tensor, *inputs: Tensor) -> Tensor:
        """What :meth:`forward_features` gives to logits ``[B, num_classes]``."""
        return self.reader.logits(self, features, *inputs)

    @property
    def pairs_clips(self) -> bool:  # type: ignore[override]
        return self.reader.pairs_clips

    def step_inputs(self, labels: Tensor, draws: Tensor) -> tuple[Tensor, ...]:
        return self.reader.step_inputs(self, labels, draws)

    def losses(self, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
        if self.pairs_clips:
            return self.reader.losses(logits, labels, weights)
        return super().losses(logits, labels, weights, smoothing)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Patch embedding ``[B, T, (H/p)(W/p), D]`` as one product over flattened patches, faster than the convolution.

        For uint8 the normalisation is folded into it: W·((x − mean)/std) = (W/std)·(x − 128) + Σ (W/std)·(128 − mean).
        """
        t = self.trunk_frames
        b = self.check_clips(x, t)
        p, grid, weight = self.patch_size, self.img_size // self.patch_size, self.projection.weight
        bias = self.projection.bias
        if x.dtype == torch.uint8:
            weight, bias = self._normalising_patch_weights()
            patches = x.reshape(b, t, grid, p, grid, p * 3).transpose(3, 4).to(weight.dtype) - _MIDDLE
            return F.linear(patches.reshape(b, t, grid * grid, p * p * 3), weight.flatten(1), bias)
        patches = x.to(weight.dtype).reshape(b, 3, t, grid, p, grid, p).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(patches.reshape(b, t, grid * grid, 3 * p * p), weight.flatten(1), bias)

    def _normalising_patch_weights(self) -> tuple[Tensor, Tensor]:
        """Weight ``[D, p, p, 3]`` and bias ``[D]`` for pixels less ``_MIDDLE``.

        The mean and std stay plain numbers, exact in any dtype; the bias is that of the rounded weight.
        """
        dtype = self.projection.weight.dtype
        wide = self.projection.weight.to(torch.promote_types(dtype, torch.float32))
        weight = torch.stack([wide[:, c] / self.std[c] for c in range(3)], dim=-1).to(dtype)
        sums = weight.to(wide.dtype).sum((1, 2))  # [D, 3]
        bias = sum((sums[:, c] * (_MIDDLE - self.mean[c]) for c in range(1, 3)), sums[:, 0] * (_MIDDLE - self.mean[0]))
        if self.projection.bias is not None:
            bias = bias + self.projection.bias
        return weight, bias.to(dtype)
