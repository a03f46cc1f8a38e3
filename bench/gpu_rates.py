"""What GPUs can do by their data sheets, and which share of it kernels reach: what predictions rest on."""

from __future__ import annotations

from typing import NamedTuple


class GPU(NamedTuple):
    """A data sheet: dense rates, two FLOP a multiply-add, half precision with sums in float32."""

    name: str
    architecture: int
    memory: float  # bytes a second
    matrix: float  # FLOP a second, bfloat16 and float16
    float32: float  # FLOP a second, without tensor cores


GPUS = {
    "h100": GPU("NVIDIA H100 SXM", 90, 3.35e12, 989e12, 67e12),
    "h200": GPU("NVIDIA H200", 90, 4.8e12, 989e12, 67e12),
    "a100": GPU("NVIDIA A100 SXM 80 GB", 80, 2.039e12, 312e12, 19.5e12),
    "4090": GPU("NVIDIA GeForce RTX 4090", 89, 1.008e12, 165e12, 82.6e12),
    "b200": GPU("NVIDIA B200", 100, 8.0e12, 2250e12, 80e12),
}


class Share(NamedTuple):
    """Of a data sheet's rate, what a class of kernels reaches, and where the number is from."""

    value: float
    source: str


_CARD, _PROFILE = "H200, nvidia-h200-card.json", "H200, nvidia-h200-profile.json"
SHARES = {
    "copy": Share(0.873, f"{_CARD}: 4.19 of 4.8 TB/s; other cards: assumed"),
    "matrix": Share(0.791, f"{_CARD}: 782 of 989 TFLOP/s for one product of 8192³; other cards: assumed"),
    # of the two above
    "own": Share(0.96, f"{_PROFILE}: norms, residual adds, activations and sums of `fast`, bytes"),
    "torch": Share(0.62, f"{_PROFILE}: copies, sums and pointwise kernels of `published`, bytes"),
    "product": Share(0.93, f"{_PROFILE}: all large products of both sides, FLOPs"),
    "eight bits": Share(2.0, "assumed, of a product's rate in half precision, as data sheets have it from sm_89 up"),
    "product bytes": Share(0.80, f"{_PROFILE}: products of 192 columns and weight gradients, bytes"),
    "own product": Share(0.94, "assumed, of the library's product: one of ours with activation and slope within"),
    "own attention": Share(0.20, f"{_PROFILE}: spatial attention of `fast`, FLOPs"),
    "torch attention": Share(0.33, f"{_PROFILE}: cuDNN's of `published`, FLOPs of sequences padded to 128"),
    "torch attention backward": Share(0.50, f"{_PROFILE}: the same"),
    "float32": Share(0.7, "assumed"),
}
LEAST = 3e-6  # seconds of any kernel: H200, nvidia-h200-profile.json, casts and copies of parameters in `fast`
