"""Merge multiplications and additions by constants into one of each, and multiplications into float weights.

(x*a + b)*c + d becomes x*(a*c) + (b*c + d); the constants are combined in float64. A multiplication per channel behind a
float convolution scales its weights instead, and zero padding in front of one joins its own.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.passes.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.passes.operands import channel_operand


def fold_affine(module: tvm.IRModule) -> tvm.IRModule:
    """The same network (up to rounding of its constants) with fewer multiplications and additions."""
    return rewrite(module, _visit)


def _visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
    match op_name(value):
        case "multiply":
            return _multiply(graph, name, value)
        case "add":
            return _add(graph, value)
        case "nn.conv2d":
            return _padded(graph, value)
    return None


def _multiply(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    x, factor = call.args[0], _constant(call.args[1])
    if factor is None:
        return None
    if np.all(factor == 1) and np.broadcast_shapes(shape_of(x), factor.shape) == shape_of(x):
        return graph.taken_over(x)
    inner = _swallowed(graph, x, "multiply")
    if inner is not None:
        return _multiply_conv(graph, relax.op.multiply(inner.args[0], _product(inner.args[1], factor)))
    inner = _swallowed(graph, x, "add")
    if inner is not None:
        scaled = relax.op.multiply(inner.args[0], call.args[1])
        again = _multiply(graph, f"{name}.scaled", scaled)
        scaled = graph.emit(scaled if again is None else again, f"{name}.scaled")
        return relax.op.add(scaled, _product(inner.args[1], factor))
    return _multiply_conv(graph, call)


def _multiply_conv(graph: Graph, call: Call) -> relax.Expr:
    """Scale the weights of a float convolution instead of its result, where the factor is one per channel."""
    conv = graph.call_of(call.args[0], "nn.conv2d")
    weight = array_of(conv.args[1]) if conv is not None else None
    if (
        weight is None
        or weight.dtype != np.float32
        or not graph.used_once(call.args[0])
        or str(conv.attrs["data_layout"]) != "NHWC"
    ):
        return call
    factor = channel_operand(array_of(call.args[1]), len(weight))
    if factor is None:
        return call
    scaled = weight.astype(np.float64) * factor.astype(np.float64)[:, None, None, None]
    return Call(conv.op, [conv.args[0], constant(scaled)], conv.attrs)


def _add(graph: Graph, call: Call) -> relax.Expr | None:
    x, shift = call.args[0], _constant(call.args[1])
    if shift is None:
        return None
    if not np.any(shift) and np.broadcast_shapes(shape_of(x), shift.shape) == shape_of(x):
        return graph.taken_over(x)
    inner = _swallowed(graph, x, "add")
    if inner is None:
        return None
    return relax.op.add(inner.args[0], constant(array_of(inner.args[1]).astype(np.float64) + shift))


def _padded(graph: Graph, conv: Call) -> relax.Expr | None:
    pad = graph.call_of(conv.args[0], "nn.pad")
    if pad is None or str(conv.attrs["data_layout"]) != "NHWC" or str(pad.attrs["pad_mode"]) != "constant":
        return None
    widths = ints(pad.attrs["pad_width"])
    if float(pad.attrs["pad_value"]) or any(widths[:2]) or any(widths[6:]) or min(widths) < 0:
        return None
    top, bottom, left, right = widths[2:6]
    padding = [a + b for a, b in zip(ints(conv.attrs["padding"]), (top, left, bottom, right), strict=True)]
    return relax.op.nn.conv2d(
        pad.args[0],
        conv.args[1],
        strides=list(ints(conv.attrs["strides"])),
        padding=padding,
        dilation=list(ints(conv.attrs["dilation"])),
        groups=int(conv.attrs["groups"]),
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_layout="NHWC",
    )


def _swallowed(graph: Graph, x: relax.Expr, operator: str) -> Call | None:
    """The operation behind ``x`` if it is ``operator`` with a constant and nothing else uses it."""
    inner = graph.call_of(x, operator)
    return inner if inner is not None and graph.used_once(x) and _constant(inner.args[1]) is not None else None


def _constant(expr: relax.Expr) -> np.ndarray | None:
    array = array_of(expr)
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else None


def _product(expr: relax.Expr, factor: np.ndarray) -> relax.Expr:
    return constant(array_of(expr).astype(np.float64) * factor)
