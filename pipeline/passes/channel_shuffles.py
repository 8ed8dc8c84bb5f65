"""Channel shuffles as files write them, a reshape, a transpose and a reshape back, as one choice of channels."""

from __future__ import annotations

from math import prod

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import Graph, shape_of
from bitkiln.pipeline.ops.register import ints


def shuffled(graph: Graph, call: Call) -> Call | None:
    """The reshape ``call`` that ends a shuffle along one axis of an image, as ``take`` of its channels."""
    transpose = graph.call_of(call.args[0], "permute_dims")
    if transpose is None or transpose.attrs["axes"] is None:
        return None
    split = graph.call_of(transpose.args[0], "reshape")
    if split is None:
        return None
    x, shape = split.args[0], shape_of(graph.normalized(call))
    if len(shape) != 4 or shape_of(x) != shape or len(shape_of(split)) <= 4:
        return None
    moved = np.arange(prod(shape)).reshape(shape_of(split)).transpose(ints(transpose.attrs["axes"])).reshape(shape)
    for axis in (1, 3):
        inner = prod(shape[axis + 1 :])
        line = moved[tuple(slice(None) if i == axis else 0 for i in range(4))]
        channels = line // inner
        plain = np.arange(prod(shape)).reshape(shape)
        if channels.max() < shape[axis] and np.array_equal(plain.take(channels, axis), moved):
            return relax.op.take(x, relax.const(channels.astype("int64")), axis)
    return None
