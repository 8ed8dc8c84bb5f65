"""ONNX operators that look along axes: reductions, normalisations, maxima, sums of what went before."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands


def reduce(node: Operands) -> relax.Expr:
    """All of ONNX's reductions; axes are an attribute of old opsets, a constant operand of newer ones."""
    kind, x, shape = node.node.op_type, node.value(0), node.shape()
    axes = [int(axis) for axis in node.attributes.get("axes", [])]
    if node.has(1):
        axes = [int(axis) for axis in node.array(1, "axes").reshape(-1)]
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise node.unsupported(f"reduces the axes {axes} of {list(shape)}")
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        if kind not in _IDLE_WITHOUT_AXES:
            raise node.unsupported("its attribute noop_with_empty_axes=1 is not supported without axes")
        return x
    axes = sorted({axis % len(shape) for axis in axes}) or list(range(len(shape)))
    if not axes:
        return x if kind in _IDLE_WITHOUT_AXES else _REDUCTIONS[kind](node, relax.op.reshape(x, (1,)), [0], False)
    return _REDUCTIONS[kind](node, x, axes, bool(node.attributes.get("keepdims", 1)))


_Reduction = Callable[[Operands, relax.Expr, list[int], bool], relax.Expr]

#: Reductions that leave a single element as it is.
_IDLE_WITHOUT_AXES = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})


def _plain(operator: Callable[..., relax.Expr]) -> _Reduction:
    def apply(_node: Operands, x: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
        return operator(x, axes, keep)

    return apply


def _extreme(operator: Callable[..., relax.Expr]) -> _Reduction:
    """Truth values are compared as numbers."""

    def apply(node: Operands, x: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
        if str(x.ty.dtype) != "bool":
            return operator(x, axes, keep)
        number = node.step(operator(node.step(relax.op.astype(x, "int32"), "numbers"), axes, keep), "extreme")
        return relax.op.astype(number, "bool")

    return apply


def _of_sum(before: Callable[[relax.Expr], relax.Expr], after: Callable[..., relax.Expr] | None) -> _Reduction:
    def apply(node: Operands, x: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
        total = relax.op.sum(node.step(before(x), "terms"), axes, keep)
        return total if after is None else after(node.step(total, "sum"))

    return apply


def _log_sum_exp(node: Operands, x: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    """Relative to the largest, so that nothing overflows."""
    largest = node.step(relax.op.max(x, axes, True), "largest")
    powers = node.step(relax.op.exp(node.step(relax.op.subtract(x, largest), "shifted")), "powers")
    logarithm = node.step(relax.op.log(node.step(relax.op.sum(powers, axes, True), "sum")), "log")
    result = relax.op.add(logarithm, largest)
    return result if keep else relax.op.squeeze(node.step(result, "kept"), axes)


def _square(x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


def _itself(x: relax.Expr) -> relax.Expr:
    return x


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceL1": _of_sum(relax.op.abs, None),
    "ReduceL2": _of_sum(_square, relax.op.sqrt),
    "ReduceLogSum": _of_sum(_itself, relax.op.log),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(relax.op.max),
    "ReduceMean": _plain(relax.op.mean),
    "ReduceMin": _extreme(relax.op.min),
    "ReduceProd": _plain(relax.op.prod),
    "ReduceSum": _plain(relax.op.sum),
    "ReduceSumSquare": _of_sum(_square, None),
}

REDUCTIONS = frozenset(_REDUCTIONS)


def softmax(node: Operands) -> relax.Expr:
    """Softmax and LogSoftmax. Before opset 13 all axes from ``axis`` on are one."""
    operator = relax.op.nn.softmax if node.node.op_type == "Softmax" else relax.op.nn.log_softmax
    return _along_one_axis(node, operator)


def hardmax(node: Operands) -> relax.Expr:
    """1 at the first largest element along the axis, 0 elsewhere."""

    def largest(x: relax.Expr, axis: int) -> relax.Expr:
        shape = [int(size) for size in x.ty.shape.values]
        index = node.step(relax.op.argmax(x, axis, True), "index")
        places = np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
        found = node.step(relax.op.equal(index, relax.const(places, str(index.ty.dtype))), "found")
        return relax.op.astype(found, "float32")

    return _along_one_axis(node, largest)


def _along_one_axis(node: Operands, operator: Callable[[relax.Expr, int], relax.Expr]) -> relax.Expr:
    shape = node.shape()
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
    axis = axis + len(shape) if axis < 0 else axis
    if node.opset >= 13 or math.prod(shape[axis:]) == shape[axis]:
        return operator(node.value(0), axis)
    flat = node.step(relax.op.reshape(node.value(0), (math.prod(shape[:axis]), math.prod(shape[axis:]))), "flat")
    return relax.op.reshape(node.step(operator(flat, 1), "all"), shape)


def layer_normalization(node: Operands) -> relax.Expr:
    """Over all axes from ``axis`` on; the scale and the bias may broadcast to them."""
    shape = node.shape()
    first = node.attributes.get("axis", -1) % len(shape)
    scale = _spread(node, 1, shape[first:])
    bias = _spread(node, 2, shape[first:]) if node.has(2) else relax.const(np.zeros(shape[first:], np.float32))
    axes = list(range(first, len(shape)))
    return relax.op.nn.layer_norm(node.value(0), scale, bias, axes, node.attributes.get("epsilon", 1e-5))


def _spread(node: Operands, index: int, shape: tuple[int, ...]) -> relax.Expr:
    if node.shape(index) == shape:
        return node.value(index)
    return relax.const(np.ascontiguousarray(np.broadcast_to(node.weight(index, "scale or bias"), shape)))


def lp_normalization(node: Operands) -> relax.Expr:
    """x over the length of the vectors along the axis."""
    power, axis = node.attributes.get("p", 2), node.attributes.get("axis", -1)
    if power not in (1, 2):
        raise node.unsupported(f"its attribute p={power} is not supported")
    x = node.value(0)
    terms = node.step(relax.op.abs(x) if power == 1 else relax.op.multiply(x, x), "terms")
    length = node.step(relax.op.sum(terms, [axis % len(node.shape())], True), "sum")
    if power == 2:
        length = node.step(relax.op.sqrt(length), "length")
    # A vector of zeros stays one (ONNX), instead of becoming NaN.
    empty = node.step(relax.op.equal(length, relax.const(np.float32(0))), "empty")
    safe = node.step(relax.op.where(empty, relax.const(np.float32(1)), length), "divisor")
    return relax.op.divide(x, safe)


def cumulative_sum(node: Operands) -> relax.Expr:
    """A product with a triangle of ones."""
    shape, axis = node.shape(), int(node.array(1, "axis").reshape(-1)[0])
    if not -len(shape) <= axis < len(shape):
        raise node.unsupported(f"sums along axis {axis} of {list(shape)}")
    axis %= len(shape)
    ones = np.tri(shape[axis], k=-1 if node.attributes.get("exclusive", 0) else 0)
    triangle = (ones.T if node.attributes.get("reverse", 0) else ones)[None]
    flat = relax.op.reshape(node.value(0), (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    kind = node.dtype(0)
    product = relax.op.matmul(relax.const(triangle.astype(kind), kind), node.step(flat, "flat"))
    return relax.op.reshape(node.step(product, "sums"), shape)


def extreme_index(node: Operands) -> relax.Expr:
    """ArgMax and ArgMin: the first index, or with ``select_last_index`` the last one."""
    shape, axis = node.shape(), node.attributes.get("axis", 0)
    if not -len(shape) <= axis < len(shape):
        raise node.unsupported(f"looks along axis {axis} of {list(shape)}")
    axis %= len(shape)
    operator = relax.op.argmax if node.node.op_type == "ArgMax" else relax.op.argmin
    keep, x = bool(node.attributes.get("keepdims", 1)), node.value(0)
    if not node.attributes.get("select_last_index", 0):
        return operator(x, axis, keep)
    backwards = relax.const(np.arange(shape[axis])[::-1].astype(np.int64))
    turned = node.step(relax.op.take(x, backwards, axis, "clip"), "backwards")
    index = node.step(operator(turned, axis, keep), "index")
    return relax.op.subtract(relax.const(np.int64(shape[axis] - 1), "int64"), index)
