"""The words that arguments of the data path take. Imports neither torch nor a decoder."""

from typing import Literal

Decoder = Literal["auto", "dali", "pyav"]
FeatureDtype = Literal["float16", "bfloat16", "float32"]
FrameCacheKind = Literal["raw", "jpeg"]
ReadOrder = Literal["shuffled", "shards"]
VectorDtype = Literal["float16", "float32"]
VectorFormat = Literal["safetensors", "npz", "parquet", "npy"]
VectorsPer = Literal["clip", "frame", "window"]
