"""A DINOv2-S-structured trunk out of an ONNX file, in the names of Hugging Face's Dinov2Model.

In: the bytes of a model that PyTorch's exporter wrote from a module ``backbone`` of transformers. Out: its tensors by
name, float32. The exporter keeps the names of what it stores as it was (biases, norms, the patch embedding) and gives
numbers to the matrices that it has turned for MatMul, so a matrix is found by the bias that is added after it; the
positions stand in two constants, the class token's and the patches'. Format: https://onnx.ai/onnx/intro/concepts.html;
numbers of fields: onnx.proto3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from torch import Tensor

_FIELDS: dict[str, list[tuple[str, int, str, bool]]] = {  # name, number, type, repeated
    "Model": [("graph", 7, "Graph", False)],
    "Graph": [("node", 1, "Node", True), ("initializer", 5, "Constant", True)],
    "Node": [("input", 1, "string", True), ("output", 2, "string", True), ("op_type", 4, "string", False)],
    "Constant": [
        *(("dims", 1, "int64", True), ("data_type", 2, "int32", False)),
        *(("name", 8, "string", False), ("raw_data", 9, "bytes", False)),
    ],
}
_FLOAT = 1  # TensorProto.DataType


def read_trunk(data: bytes) -> dict[str, Tensor]:
    """The trunk's tensors, ``embeddings.cls_token``, ``encoder.layer.0.norm1.weight`` and so on."""
    graph = _message("Model").FromString(data).graph
    held = {one.name: _array(one) for one in graph.initializer if one.data_type == _FLOAT}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        bias = next((name for name in node.input if name in held and name.endswith(".bias")), None)
        before = next((made_by[name] for name in node.input if name in made_by), None)
        if node.op_type == "Add" and bias and before is not None and before.op_type == "MatMul":
            matrix = next(name for name in before.input if name in held)
            held[bias.removesuffix("bias") + "weight"] = held[matrix].T
    mine = {name.removeprefix("backbone."): a for name, a in held.items() if name.startswith("backbone.")}
    width = mine["embeddings.cls_token"].shape[-1]
    others = [
        array for name, array in held.items() if not name.startswith("backbone.") and array.shape[-1:] == (width,)
    ]
    first = next(array for array in others if array.size == width and array.ndim == 3)
    rest = next(array for array in others if array.ndim == 3 and array.shape[1] > 1)
    mine["embeddings.position_embeddings"] = np.concatenate([first, rest], 1)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in mine.items()}


def in_timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for ``timm.create_model("vit_small_patch14_dinov2", num_classes=0)``, written out for comparison."""
    found = {
        "cls_token": tensors["embeddings.cls_token"],
        "pos_embed": tensors["embeddings.position_embeddings"],
        **{f"patch_embed.proj.{k}": tensors[f"embeddings.patch_embeddings.projection.{k}"] for k in ("weight", "bias")},
        **{f"norm.{kind}": tensors[f"layernorm.{kind}"] for kind in ("weight", "bias")},
    }
    for number in range(12):
        theirs, ours = f"encoder.layer.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            three = [tensors[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{ours}attn.qkv.{kind}"] = torch.cat(three)
            found[f"{ours}attn.proj.{kind}"] = tensors[f"{theirs}attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{ours}{part}.{kind}"] = tensors[f"{theirs}{part}.{kind}"]
        for scale in "12":
            found[f"{ours}ls{scale}.gamma"] = tensors[f"{theirs}layer_scale{scale}.lambda1"]
    return found


def _array(constant: Any) -> np.ndarray:
    return np.frombuffer(constant.raw_data, np.float32).reshape(tuple(constant.dims))


def _message(name: str) -> Any:
    """A class of protobuf's for one of the messages above; fields that are not named there are passed over."""
    file = descriptor_pb2.FileDescriptorProto(name="onnx_trunk.proto", package="onnx_trunk", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, rows in _FIELDS.items():
        described = file.message_type.add(name=message)
        for field, number, kind, repeated in rows:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            one = described.field.add(name=field, number=number, label=label)
            if kind in _FIELDS:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".onnx_trunk.{kind}"
            else:
                one.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx_trunk.{name}"))
