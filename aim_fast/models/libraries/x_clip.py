"""X-CLIP as transformers has it, with the features of class names in store: to be counted and timed, not trained.

What the engine trains is its own X-CLIP, which reads names; this one it is held to. In closed-set use the text
tower is neither run nor counted; what the prompts add to its features by the video is.

Source: Ni et al., X-CLIP, ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aim_fast.models.head import Head
from aim_fast.models.libraries.network import Network
from aim_fast.models.record import like

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class XCLIPNetwork(Network):
    """CLIP's image tower with messages between frames, ``output_dim`` its shared width, and prompts by the video."""

    library: ClassVar[str] = "transformers"
    channels_first: ClassVar[bool] = False
    multiple: ClassVar[int] = 1
    unread: ClassVar[str] = "is here to be counted and timed, its texts random: train a CLIP with --method x_clip"

    num_frames: int = 8
    num_classes: int = like(Head, "num_classes")
    patch_size: int = 32
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    output_dim: int = 512

    def build(self) -> nn.Module:
        import torch
        import transformers

        class StoredTexts(torch.nn.Module):
            """In place of the text tower, what it would make of the class names."""

            def __init__(self, classes: int, width: int) -> None:
                super().__init__()
                self.register_buffer("features", torch.randn(classes, width))

            def forward(self, **_: Any) -> tuple[None, Any]:
                return None, self.features

        own = {"hidden_size": self.embed_dim, "intermediate_size": 4 * self.embed_dim, "patch_size": self.patch_size}
        own |= {"num_hidden_layers": self.depth, "num_attention_heads": self.num_heads, "num_frames": self.num_frames}
        mit = {"mit_hidden_size": self.output_dim, "mit_intermediate_size": 4 * self.output_dim}
        mit["mit_num_attention_heads"] = self.output_dim // 64
        heads = self.output_dim // 64
        text = {"hidden_size": self.output_dim, "num_attention_heads": heads, "num_hidden_layers": 1}
        config = transformers.XCLIPConfig(
            text_config=text,
            vision_config={**own, **mit, "image_size": self.img_size},
            projection_dim=self.output_dim,
            prompt_num_attention_heads=heads,
        )
        model = transformers.XCLIPModel(config).train()
        model.text_model = StoredTexts(self.num_classes, model.text_projection.in_features)
        return model

    def run(self, network: Any, clips: Tensor) -> Tensor:
        return network(input_ids=None, pixel_values=clips).logits_per_video
