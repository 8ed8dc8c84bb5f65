"""``out[mask] = value`` as PyTorch's exporter writes it: the indices of the mask's ones, and a value for each of them.

NonZero -> Transpose -> ScatterND with a value that is repeated as often as the mask has ones is a choice for each element,
whose shapes, unlike those of the indices, do not depend on data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from bitkiln.pipeline.importers.onnx.graph import ASSIGNMENT, OnnxGraph, drop_dead_nodes
from bitkiln.pipeline.importers.onnx.operands import Operands

#: Operators that repeat a value, or shape what is repeated.
_REPEATING = frozenset({"Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Unsqueeze"})


def join_masks(graph: OnnxGraph) -> OnnxGraph:
    """Make one node of each assignment through a mask, in a clean graph; constants are left to folding."""
    makers = {name: node for node in graph.nodes for name in node.output if name}
    known = _constant(graph)
    for index, node in enumerate(graph.nodes):
        mask = _mask(makers, node)
        value = _repeated(makers, node.input[2]) if mask is not None else None
        if mask is None or value is None or known.issuperset({mask, *node.input}):
            continue
        graph.nodes[index] = helper.make_node(ASSIGNMENT, [node.input[0], mask, value], list(node.output), node.name)
    drop_dead_nodes(graph)
    return graph


def assign(node: Operands) -> relax.Expr:
    """where(mask, value, data); a mask of fewer axes is that of the leading ones."""
    shape, mask_shape = node.shape(), node.shape(1)
    if mask_shape != shape[: len(mask_shape)] or int(np.prod(node.shape(2))) != 1:
        raise node.unsupported(
            f"assigns values of {list(node.shape(2))} through a mask of {list(mask_shape)} to {list(shape)}; "
            "a single value and a mask of the tensor's own shape are supported"
        )
    mask = node.value(1)
    if str(mask.ty.dtype) != "bool":
        mask = node.step(relax.op.astype(mask, "bool"), "mask")
    if mask_shape != shape:
        mask = node.step(relax.op.reshape(mask, (*mask_shape, *(1,) * (len(shape) - len(mask_shape)))), "spread")
    if node.is_constant(2):
        value: relax.Expr = relax.const(node.array(2, "value").reshape(()), str(node.value(2).ty.dtype))
    else:
        value = node.step(relax.op.reshape(node.value(2), ()), "value")
    return relax.op.where(mask, value, node.value(0))


def _mask(makers: Mapping[str, onnx.NodeProto], node: onnx.NodeProto) -> str | None:
    """The mask through which ``node`` assigns."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type != "ScatterND" or attributes.get("reduction", b"none") != b"none":
        return None
    turned = makers.get(node.input[1])
    if turned is None or turned.op_type != "Transpose":
        return None
    indices = makers.get(turned.input[0])
    if indices is None or indices.op_type != "NonZero":
        return None
    order = [list(attribute.ints) for attribute in turned.attribute]
    return indices.input[0] if order in ([], [[1, 0]]) else None


def _repeated(makers: Mapping[str, onnx.NodeProto], name: str) -> str | None:
    """What the values at ``name`` repeat."""
    repeats = False
    while (node := makers.get(name)) is not None and node.op_type in _REPEATING:
        repeats = repeats or node.op_type in ("Expand", "Tile")
        name = node.input[0]
    return name if repeats else None


def _constant(graph: OnnxGraph) -> set[str]:
    """Tensors that depend on constants alone."""
    known = {"", *graph.constants}
    for node in graph.nodes:
        if known.issuperset(node.input):
            known.update(node.output)
    return known
