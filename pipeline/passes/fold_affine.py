"""Merge multiplications, divisions and additions by constants into one of each, and multiplications into float weights.

(x*a + b)*c + d becomes x*(a*c) + (b*c + d); the constants are combined in float64 and rounded once. A multiplication per
channel behind a float convolution scales its weights instead, and zero padding in front of one joins its own.

That is the one pass that changes what float32 operations give, by rounding. So it keeps off whatever stands between a binary
convolution and the signs of its result: those bits are to be what the file's own operations make of whole sums, even where
they make exactly zero. Where such steps turn out not to be thresholds, ``fold_steps`` merges them as well.
"""

from __future__ import annotations

import operator
from collections import Counter
from functools import partial

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    bindings,
    constant,
    count_uses,
    op_name,
    rewrite,
    shape_of,
    variables,
)
from bitkiln.pipeline.ir.operands import channel_operand, fits_float32
from bitkiln.pipeline.ops.register import epilogue_of, has_workload, ints, operands_of, with_epilogue
from bitkiln.schedules.workload import Step


def fold_affine(module: tvm.IRModule) -> tvm.IRModule:
    """The same network (up to rounding of its constants) with fewer multiplications and additions."""
    return rewrite(module, partial(_visit, exact=_between_sums_and_signs(module["main"])))


def fold_steps(module: tvm.IRModule) -> tvm.IRModule:
    """As ``fold_affine``, within epilogues."""
    return rewrite(module, lambda _graph, _name, value: _with_fewer_steps(value) if has_workload(value) else None)


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
    x, factor = call.args[0], _constant(call.args[1])
    if factor is None:
        return None
    if np.all(factor == 1) and _keeps_shape(x, factor):
        return graph.taken_over(x)
    inner = _swallowed(graph, x, "multiply")
    if inner is not None:
        product = _product(_constant(inner.args[1]), factor)
        return call if product is None else _multiply_conv(graph, relax.op.multiply(inner.args[0], product))
    inner = _swallowed(graph, x, "add")
    if inner is not None:
        shift = _merged(_constant(inner.args[1]) * factor)
        if shift is None:
            return call
        scaled = relax.op.multiply(inner.args[0], call.args[1])
        again = _multiply(graph, f"{name}.scaled", scaled)
        scaled = graph.emit(scaled if again is None else again, f"{name}.scaled")
        return relax.op.add(scaled, shift)
    return _multiply_conv(graph, call)


def _divide(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    divisor = _constant(call.args[1])
    factor = _product(_reciprocal(divisor), np.ones(1)) if divisor is not None else None
    return None if factor is None else _multiply(graph, name, relax.op.multiply(call.args[0], factor))


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
    array = array_of(call.args[1])
    factor = channel_operand(array, len(weight)) if _keeps_shape(call.args[0], array) else None
    scaled = _merged(weight.astype(np.float64) * factor[:, None, None, None]) if factor is not None else None
    return call if scaled is None else Call(conv.op, [conv.args[0], scaled], conv.attrs)


def _add(graph: Graph, call: Call) -> relax.Expr | None:
    x, shift = call.args[0], _constant(call.args[1])
    if shift is None:
        return None
    if not np.any(shift) and _keeps_shape(x, shift):
        return graph.taken_over(x)
    inner = _swallowed(graph, x, "add")
    total = _merged(_constant(inner.args[1]) + shift) if inner is not None else None
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


def _with_fewer_steps(call: Call) -> Call | None:
    """``call`` with runs of multiplications, divisions and additions of constants in its epilogue merged."""
    operands = iter(operands_of(call))
    before = [(step, next(operands) if step.operand else None) for step in epilogue_of(call)]
    after: list[tuple[Step, relax.Expr | None]] = []
    run: list[tuple[Step, relax.Expr]] = []
    for taken in before:
        if taken[0].op in ("mul", "div", "add") and _constant(taken[1]) is not None:
            run.append(taken)
            continue
        after += [*_shortened(run), taken]
        run = []
    after += _shortened(run)
    if len(after) == len(before) and all(map(operator.is_, after, before)):
        return None
    return with_epilogue(call, [step for step, _ in after], [operand for _, operand in after if operand is not None])


def _shortened(run: list[tuple[Step, relax.Expr]]) -> list[tuple[Step, relax.Expr]]:
    """A product and a sum for ``run``; the run itself where it is no longer than those, or where float32 cannot hold them."""
    scale, shift = np.ones(1), np.zeros(1)
    for step, operand in run:
        values = _constant(operand)
        if step.op == "add":
            shift = shift + values
            continue
        factor = values if step.op == "mul" else _reciprocal(values)
        if _product(scale, factor) is None:
            return run
        scale, shift = scale * factor, shift * factor
    merged = []
    for op, values, neutral in (("mul", scale, 1), ("add", shift, 0)):
        if np.all(values == neutral):
            continue
        operand = _merged(values)
        if operand is None:
            return run
        merged.append((Step(op, "channel" if values.ndim == 1 else "element"), operand))
    return merged if len(merged) < len(run) or any(step.op == "div" for step, _ in run) else run


def _swallowed(graph: Graph, x: relax.Expr, name: str) -> Call | None:
    """The operation behind ``x`` if it is operator ``name`` with a constant and nothing else uses it."""
    inner = graph.call_of(x, name)
    return inner if inner is not None and graph.used_once(x) and _constant(inner.args[1]) is not None else None


def _keeps_shape(x: relax.Expr, array: np.ndarray) -> bool:
    """Has an operation of ``x`` and ``array`` the shape of ``x``?"""
    return np.broadcast_shapes(shape_of(x), array.shape) == shape_of(x)


def _constant(expr: relax.Expr) -> np.ndarray | None:
    array = array_of(expr)
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else None


def _reciprocal(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 1 / values


def _merged(values: np.ndarray) -> GenericConst | None:
    """float64 ``values`` as a constant, unless some are too large for float32."""
    return constant(values) if fits_float32(values) else None


def _product(first: np.ndarray, second: np.ndarray) -> GenericConst | None:
    """The product of factors, unless some float32 cannot hold: too large, or denormal though the factors were not.

    (Dead channels have denormal factors to begin with.)
    """
    normal = np.finfo(np.float32).smallest_normal
    lost = (np.abs(first * second) < normal) & (np.abs(first) >= normal) & (np.abs(second) >= normal)
    return None if np.any(lost) else _merged(first * second)
