"""AIM on a CLIPA ViT: CLIP's blocks without the norm after the stem, read from the mean over patches.

    stem    patches (no bias) -> prepend class_embedding -> + positional_embedding -> + temporal_embedding
    blocks  those of ``aim_vit_clip``
    tail    mean over the patch tokens of each frame -> ln_post [B, T, D] -> mean over T -> dropout -> fc_cls

Source: Li et al., An Inverse Scaling Law for CLIP Training, NeurIPS 2023, as in open_clip's configurations
(``no_ln_pre``, ``pool_type`` avg, ``final_ln_after_pool``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from aim_fast.models.trunks.clip_aim import AIMViTCLIP


class AIMViTCLIPA(AIMViTCLIP):
    """A CLIPA ViT adapted to video by AIM; arguments, shapes and what trains are those of :class:`AIMViTCLIP`."""

    def reset_parameters(self) -> None:
        self.ln_pre = _NoNorm()  # type: ignore[assignment] # at construction too, which ends with this
        super().reset_parameters()

    @staticmethod
    def has_stem_of(tensors: Mapping[str, Tensor]) -> bool:
        return "ln_pre.weight" not in tensors

    @property
    def pools_cls(self) -> bool:
        return False

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's output ``[B, T, N, D]`` to one feature a frame, ``[B, T, D]``: the mean of its patches."""
        return tokens[:, :, 1:].mean(2)


class _NoNorm(nn.Identity):
    """In the place of a norm that there is not."""

    def reset_parameters(self) -> None:
        """Nothing to initialise."""
