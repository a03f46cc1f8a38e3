"""All of a graph that follows from weights alone, computed once: W1·Wo of an adapter, a normalisation in the patch
embedding, the features of class names.

In: a program of torch.export, functional. Out: the same program, in place, with the results as buffers; weights that
nothing reads any more are gone. A view of a weight stays as it is, since as a buffer it would be there twice.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.utils._pytree import tree_leaves

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@torch.no_grad()
def fold_weights(program: ExportedProgram) -> None:
    """Computes what follows from weights alone, see the module."""
    graph, signature = program.graph_module.graph, program.graph_signature
    values = _values(program)
    kept = {node for node in graph.nodes if node not in values}
    found = []
    for node in reversed(list(graph.nodes)):
        if node in kept or node.op == "placeholder" or kept.isdisjoint(node.users):
            continue
        if isinstance(values[node], Tensor) and not _is_view(node, values):
            found.append(node)
        else:
            kept.add(node)
    first = next(node for node in graph.nodes if node not in values)
    for number, node in enumerate(found):
        name = f"folded_{number}"
        with graph.inserting_before(first):
            made = graph.placeholder(name)
        made.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(made)
        place = next(i for i, spec in enumerate(signature.input_specs) if spec.kind is InputKind.USER_INPUT)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(made.name), name, persistent=True)
        signature.input_specs.insert(place, spec)
        program.state_dict[name] = values[node].contiguous()
    for node in reversed(list(graph.nodes)):
        if node in values and not node.users:
            graph.erase_node(node)
    _forget_unread(program)
    program.graph_module.recompile()


def _values(program: ExportedProgram) -> dict[Node, Any]:
    """What each node has that nothing but weights leads to."""
    tensors = {**program.constants, **program.state_dict}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[Node, Any] = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder" and specs[node.name].kind in _WEIGHTS:
            values[node] = tensors[specs[node.name].target]
        elif node.op == "call_function" and all(one in values for one in node.all_input_nodes) and _is_pure(node):
            arguments = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments[0], **arguments[1])
    return values


def _is_pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return not target._schema.is_mutable


def _is_view(node: Node, values: dict[Node, Any]) -> bool:
    """Whether it has the memory of what it is made of."""
    memory = values[node].untyped_storage().data_ptr()
    inputs = [leaf for one in node.all_input_nodes for leaf in tree_leaves(values[one]) if isinstance(leaf, Tensor)]
    return any(leaf.untyped_storage().data_ptr() == memory for leaf in inputs)


def _forget_unread(program: ExportedProgram) -> None:
    signature = program.graph_signature
    there = {node.name for node in program.graph_module.graph.nodes if node.op == "placeholder"}
    gone = [spec for spec in signature.input_specs if spec.arg.name not in there]
    signature.input_specs[:] = [spec for spec in signature.input_specs if spec.arg.name in there]
    still = {spec.target for spec in signature.input_specs}
    for target in {spec.target for spec in gone} - still:
        program.state_dict.pop(target, None)
        program.constants.pop(target, None)
