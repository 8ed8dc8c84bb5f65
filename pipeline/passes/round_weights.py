"""Round large weights of float convolutions to bfloat16, where the user asked for it: half the bytes come from memory.

Only weights that caches do not hold are rounded, of layers that wait for memory: of others nothing would be gained. Batch
norms are folded by then, so that no factor follows. Biases stay whole.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import is_image
from bitkiln.pipeline.ops.register import pair, sides
from bitkiln.schedules import conv2d
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Bits of a float32 that a bfloat16 lacks.
_LOST = 16
_QUIET = np.uint32(0x400000)


def round_weights(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """``module`` with the weights of its large float convolutions rounded to the nearest bfloat16, halves to even."""
    return rewrite(module, lambda graph, name, value: _rounded(graph, value, target))


def large(weights: np.ndarray, target: Target) -> bool:
    """Whether ``weights`` take so much of the L2 cache that they come from memory in every run."""
    return weights.nbytes > int(target.cpu["l2_kib"]) * 1024 // 2


def nearest(weights: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16; what is not finite stays so."""
    bits = np.ascontiguousarray(weights, "float32").view("uint32")
    even = (bits >> _LOST & 1) + np.uint32((1 << _LOST - 1) - 1)
    rounded = np.where(np.isnan(weights), bits | _QUIET, bits + even)
    return (rounded >> _LOST << _LOST).astype("uint32").view("float32")


def _workload(call: Call) -> Conv2d:
    """What an NHWC convolution with OHWI weights computes."""
    (_, height, width, channels), (outs, *kernel, _) = shape_of(call.args[0]), shape_of(call.args[1])
    attrs = call.attrs
    return Conv2d(
        height,
        width,
        channels,
        outs,
        pair(kernel),
        pair(attrs["strides"]),
        sides(attrs["padding"]),
        pair(attrs["dilation"]),
        int(attrs["groups"]),
    )


def _rounded(graph: Graph, value: relax.Expr, target: Target) -> relax.Expr | None:
    if op_name(value) != "nn.conv2d":
        return None
    weights = array_of(value.args[1])
    if weights is None or weights.dtype != np.float32 or not large(weights, target) or not is_image(value.args[0]):
        return None
    if not conv2d.halves_pay(_workload(value), target):
        return None
    return Call(value.op, [value.args[0], constant(nearest(weights))], value.attrs)
