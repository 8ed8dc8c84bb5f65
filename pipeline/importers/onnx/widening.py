"""Networks in float16 and bfloat16, in float32: weights, inputs, casts and whatever else names the type.

Every value such a network holds is one of float32's, so weights and inputs are exact; what it computes is rounded less.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

#: Attributes that name an element type.
_TYPES = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision"})


def widen(proto: onnx.ModelProto) -> list[str]:
    """Widen ``proto`` in place; a warning where it had anything to widen."""
    found = _widen_graph(proto.graph)
    if not found:
        return []
    return ["the file computes in float16; the bundle computes in float32, and its inputs and outputs are float32"]


def _widen_graph(graph: onnx.GraphProto) -> bool:
    found = False
    for tensor in graph.initializer:
        found |= _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type in _NARROW:
            kind.elem_type, found = TensorProto.FLOAT, True
    for attribute in (each for node in graph.node for each in node.attribute):
        if attribute.name in _TYPES and attribute.i in _NARROW:
            attribute.i, found = TensorProto.FLOAT, True
        if attribute.HasField("t"):
            found |= _widen_tensor(attribute.t)
        for inner in _graphs(attribute):
            found |= _widen_graph(inner)
    return found


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _widen_tensor(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type not in _NARROW:
        return False
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError):  # whoever reads the weights says that they do not fill their shape
        return False
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return True
