"""Merge multiplications, divisions and additions by constants into one of each, and multiplications into float weights.

(x*a + b)*c + d becomes x*(a*c) + (b*c + d); the constants are combined in float64 and rounded once. A multiplication per
channel behind a float convolution scales its weights instead, and zero padding in front of one joins its own.

That is the one pass that changes what float32 operations give, by rounding. So it keeps off whatever stands between a binary
convolution and the signs of its result: those bits are to be what the file's own operations make of whole sums, even where
they make exactly zero. Where such steps turn out not to be thresholds, ``fold_steps`` merges them as well.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    bindings,
    count_uses,
    op_name,
    rewrite,
    shape_of,
    value_of,
    variables,
)
from bitkiln.pipeline.ir.operands import as_float32, channel_operand, float64_of, product, reciprocal
from bitkiln.pipeline.ir.whole import WholeNumbers
from bitkiln.pipeline.ops.register import ints


def fold_affine(module: tvm.IRModule) -> tvm.IRModule:
    """The same network (up to rounding of its constants) with fewer multiplications and additions."""
    whole = WholeNumbers(module["main"])
    exact = _between_sums_and_signs(module["main"]) | whole.rescaled
    return rewrite(module, partial(_visit, exact=exact))


def _visit(graph: Graph, name: str, value: relax.Expr, exact: set[str]) -> relax.Expr | None:
    if name in exact:
        return None
    match op_name(value):
        case "multiply":
            return _multiply(graph, name, value)
        case "divide":
            return _divide(graph, name, value)
        case "add":
            return _add(graph, value)
        case "nn.conv2d":
            return _padded(graph, value)
    return None


def _between_sums_and_signs(function: relax.Function) -> set[str]:
    """The operations on one tensor and constants that lead from a binary convolution to a sign and nowhere else."""
    defined, uses = dict(bindings(function)), count_uses(function)
    found: set[str] = set()
    for value in defined.values():
        if op_name(value) == "bitkiln.binarize":
            found |= _back_to_sums(value.args[0], defined, uses) or set()
    return found


def _back_to_sums(expr: relax.Expr, defined: dict[str, relax.Expr], uses: Counter[str]) -> set[str] | None:
    """The operations between ``expr`` and the binary convolutions it is made of; None if it is made of anything else."""
    passed: set[str] = set()
    pending = [expr]
    while pending:
        var = pending.pop()
        value = defined.get(var.name) if isinstance(var, relax.Var) and uses[var.name] == 1 else None
        if op_name(value) == "bitkiln.bconv2d":
            continue
        sources = list(variables(value)) if value is not None else []
        joins = op_name(value) == "concat"
        if not sources or not (joins or (len(sources) == 1 and op_name(value) in {*ELEMENTWISE, "nn.max_pool2d"})):
            return None
        passed.add(var.name)
        pending += sources
    return passed


def _multiply(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    x, factor = call.args[0], float64_of(call.args[1])
    if factor is None:
        return None
    if np.all(factor == 1) and _keeps_shape(x, factor):
        return graph.taken_over(x)
    inner = _only_used_here(graph, x, "multiply")
    if inner is not None:
        both = product(value_of(inner.args[1]).astype(np.float64), factor)
        return call if both is None else _multiply_conv(graph, relax.op.multiply(inner.args[0], both))
    inner = _only_used_here(graph, x, "add")
    if inner is not None:
        shift = as_float32(value_of(inner.args[1]).astype(np.float64) * factor)
        if shift is None:
            return call
        scaled = relax.op.multiply(inner.args[0], call.args[1])
        again = _multiply(graph, f"{name}.scaled", scaled)
        scaled = graph.emit(scaled if again is None else again, f"{name}.scaled")
        return relax.op.add(scaled, shift)
    return _multiply_conv(graph, call)


def _divide(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    divisor = float64_of(call.args[1])
    factor = product(reciprocal(divisor), np.ones(1)) if divisor is not None else None
    return None if factor is None else _multiply(graph, name, relax.op.multiply(call.args[0], factor))


def _multiply_conv(graph: Graph, call: Call) -> relax.Expr:
    """Scale the weights of a float convolution instead of its result, where the factor is one per channel."""
    conv = graph.call_of(call.args[0], "nn.conv2d", "nn.conv2d_transpose")
    weight = array_of(conv.args[1]) if conv is not None else None
    if (
        conv is None
        or weight is None
        or weight.dtype != np.float32
        or not graph.used_once(call.args[0])
        or str(conv.attrs["data_layout"]) != "NHWC"
    ):
        return call
    array = value_of(call.args[1])
    factor = channel_operand(array, shape_of(call.args[0])[3]) if _keeps_shape(call.args[0], array) else None
    scaled = as_float32(_per_output(conv, weight.astype(np.float64), factor)) if factor is not None else None
    return call if scaled is None else Call(conv.op, [conv.args[0], scaled], conv.attrs)


def _per_output(conv: Call, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Weights OHWI, or IOHW of a transposed convolution, times the ``factor`` of their output channel."""
    if op_name(conv) == "nn.conv2d":
        return weight * factor[:, None, None, None]
    groups = int(conv.attrs["groups"])
    grouped = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(groups, 1, -1, 1, 1)
    return grouped.reshape(weight.shape)


def _add(graph: Graph, call: Call) -> relax.Expr | None:
    x, shift = call.args[0], float64_of(call.args[1])
    if shift is None:
        return None
    if not np.any(shift) and _keeps_shape(x, shift):
        return graph.taken_over(x)
    inner = _only_used_here(graph, x, "add")
    if inner is None:
        return None
    total = as_float32(value_of(inner.args[1]).astype(np.float64) + shift)
    return None if total is None else relax.op.add(inner.args[0], total)


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


def _only_used_here(graph: Graph, x: relax.Expr, name: str) -> Call | None:
    """The operation behind ``x`` if it is operator ``name`` with a constant and nothing else uses it."""
    inner = graph.call_of(x, name)
    return inner if inner is not None and graph.used_once(x) and float64_of(inner.args[1]) is not None else None


def _keeps_shape(x: relax.Expr, array: np.ndarray) -> bool:
    """Has an operation of ``x`` and ``array`` the shape of ``x``?"""
    return np.broadcast_shapes(shape_of(x), array.shape) == shape_of(x)
