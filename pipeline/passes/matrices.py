"""Matrix products of tensors that are computed while the network runs, and functions of rows, as operators of ours.

What a product would read through reshapes, transposes, slices and splits it reads from the tensor before them, by strides; a
multiplication by one number on the way becomes its factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call
from tvm.relax import TupleGetItem

from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, shape_of
from bitkiln.pipeline.ops.register import call_of, ints, workload_of
from bitkiln.schedules.workload import Attention, Matrices, Normalize, Product

#: Operators that only move elements of their first argument.
_MOVES = frozenset({"reshape", "permute_dims", "strided_slice", "split", "take"})
#: How many of them are followed back.
_FAR = 12

#: What an operator does to where elements come from.
_Move = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Seen:
    """A tensor as elements of ``source``: (i, j, ...) is ``factor`` times float begin + i*pitches[0] + j*pitches[1] ..."""

    source: relax.Expr
    shape: tuple[int, ...]
    begin: int
    pitches: tuple[int, ...]
    factor: float = 1.0

    def matrices(self, stack: Sequence[int]) -> Matrices:
        """Its last two axes as matrices; those before them are broadcast to ``stack``, of which axes of one are left out."""
        own = [0] * (len(stack) + 2 - len(self.shape)) + list(self.pitches[:-2])
        kept = tuple(pitch for pitch, extent in zip(own, stack, strict=True) if extent > 1)
        return Matrices(shape_of(self.source), self.begin, kept, *self.pitches[-2:])


def product(graph: Graph, call: Call) -> Call | None:
    """A product of two tensors of floats, neither of them a constant."""
    shapes = [shape_of(arg) for arg in call.args]
    if any(len(shape) < 2 or min(shape) < 1 for shape in shapes) or any(
        str(arg.ty.dtype) != "float32" or array_of(arg) is not None for arg in call.args
    ):
        return None
    first, second = (seen(graph, arg) for arg in call.args)
    stack = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    shape = (*stack, shapes[0][-2], shapes[1][-1])
    return ops.product(
        [first.source, second.source],
        stack=tuple(extent for extent in stack if extent > 1),
        rows=shape[-2],
        inner=shapes[0][-1],
        columns=shape[-1],
        first=first.matrices(stack),
        second=second.matrices(stack),
        result=in_order(shape),
        factor=first.factor * second.factor,
    )


def in_order(shape: Sequence[int]) -> Matrices:
    """The last two axes of a tensor of ``shape`` as matrices."""
    found = _pitches(np.arange(prod(shape)).reshape(shape))
    assert found is not None, "a tensor as it lies in memory has pitches"
    pitches = found[1]
    stack = tuple(pitch for pitch, extent in zip(pitches[:-2], shape[:-2], strict=True) if extent > 1)
    return Matrices(tuple(shape), 0, stack, *pitches[-2:])


def seen(graph: Graph, expr: relax.Expr) -> Seen:
    """``expr`` as elements of the earliest tensor from which they are an even choice."""
    shape, moves, factor, at = shape_of(expr), list[_Move](), 1.0, expr
    best: Seen | None = None
    for _ in range(_FAR):
        found = _pitches(_moved(shape_of(at), moves))
        if found is not None:
            best = Seen(at, shape, *found, factor)
        step = _step(graph, at)
        if step is None:
            break
        at, move, scale = step
        moves.insert(0, move)
        factor *= scale
    assert best is not None, "a tensor as it lies in memory has pitches"
    return best


def _step(graph: Graph, expr: relax.Expr) -> tuple[relax.Expr, _Move, float] | None:
    """The tensor that ``expr`` is made of by moving its elements, how, and the number they are multiplied by."""
    value = graph.definition(expr)
    call = graph.definition(value.tuple_value) if isinstance(value, TupleGetItem) else value
    if not isinstance(call, Call) or not isinstance(call.args[0], relax.Var):
        return None
    source = call.args[0]
    if op_name(call) in ("multiply", "divide"):
        number = array_of(call.args[1])
        if number is None or number.size != 1 or number.item() == 0 or shape_of(source) != shape_of(expr):
            return None
        scale = float(number.item())
        return source, lambda places: places, scale if op_name(call) == "multiply" else 1 / scale
    if op_name(call) not in _MOVES or (op_name(call) == "take" and array_of(call.args[1]) is None):
        return None

    def move(places: np.ndarray) -> np.ndarray:
        known: dict[str, reference.Value] = {source.name: places}
        moved = reference.evaluate_call(tvm.IRModule(), call, known)
        return np.asarray(moved[value.index] if isinstance(value, TupleGetItem) else moved)

    return source, move, 1.0


def _moved(shape: Sequence[int], moves: Sequence[_Move]) -> np.ndarray:
    """Where in a tensor of ``shape`` each element comes from, after ``moves``."""
    places = np.arange(prod(shape)).reshape(shape)
    for move in moves:
        places = move(places)
    return places


def _pitches(places: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """(begin, pitches) such that element (i, j, ...) of ``places`` is begin + i*pitches[0] + j*pitches[1]..., if there are."""
    begin = int(places.flat[0])
    corners = [tuple(int(at == axis) for at in range(places.ndim)) for axis in range(places.ndim)]
    pitches = tuple(
        int(places[corner]) - begin if extent > 1 else 0 for corner, extent in zip(corners, places.shape, strict=True)
    )
    even = _even(places.shape, begin, pitches)
    return (begin, pitches) if min(pitches, default=0) >= 0 and np.array_equal(even, places) else None


def _even(extents: tuple[int, ...], begin: int, pitches: Sequence[int]) -> np.ndarray:
    """The inverse of ``_pitches``."""
    places: np.ndarray = np.full(extents, begin)
    for axis, (extent, pitch) in enumerate(zip(extents, pitches, strict=True)):
        places += (np.arange(extent) * pitch).reshape([-1 if at == axis else 1 for at in range(len(extents))])
    return places


def scaled(graph: Graph, call: Call) -> Call | None:
    """A product times a number, as its factor; normalised rows times or plus a number for each channel, as theirs."""
    x, other = call.args[0], array_of(call.args[1])
    host = graph.call_of(x, "bitkiln.product", "bitkiln.normalize")
    if host is None or other is None or not graph.used_once(x):
        return None
    work = workload_of(host)
    if isinstance(work, Normalize):
        return _on_channels(op_name(call), host, other, shape_of(x))
    assert isinstance(work, Product)
    if work.epilogue or other.size != 1 or op_name(call) == "add" or not other.item():
        return None
    factor = other.item() if op_name(call) == "multiply" else 1 / other.item()
    return call_of(replace(work, factor=work.factor * factor), host.args)


def _on_channels(operator: str, host: Call, other: np.ndarray, shape: tuple[int, ...]) -> Call | None:
    """Another scale or shift for each channel of normalised rows."""
    if operator == "divide" or prod(other.shape[:-1]) != 1 or np.broadcast_shapes(other.shape, shape) != shape:
        return None
    x, scale, shift = host.args
    values = np.broadcast_to(other.reshape(-1), shape[-1:])
    if operator == "multiply":
        scale, shift = (constant(array_of(each) * values) for each in (scale, shift))
    else:
        shift = constant(array_of(shift) + values)
    return call_of(workload_of(host), [x, scale, shift])


def softmax(graph: Graph, call: Call) -> relax.Expr | None:
    """Softmax or its logarithm along the last axis, or one behind which there is nothing."""
    x, axis = call.args[0], int(call.attrs["axis"])
    shape, log = shape_of(x), op_name(call) == "nn.log_softmax"
    axis %= len(shape)
    if str(x.ty.dtype) != "float32" or prod(shape[axis + 1 :]) != 1 or min(shape) < 1:
        return None
    if axis == len(shape) - 1:
        return ops.softmax(x, log=log)
    rows = graph.emit(relax.op.reshape(x, shape[: axis + 1]), f"{x.name}.rows")
    return relax.op.reshape(graph.emit(ops.softmax(rows, log=log), f"{x.name}.shares"), shape)


def layer_norm(graph: Graph, call: Call) -> relax.Expr | None:
    """Layer normalisation along the last axes."""
    x, *operands = call.args
    shape, axes = shape_of(x), sorted(axis % len(shape_of(x)) for axis in ints(call.attrs["axes"]))
    arrays = [array_of(each) for each in operands]
    if axes != list(range(axes[0], len(shape))) or any(each is None for each in arrays) or str(x.ty.dtype) != "float32":
        return None
    scale, shift = (constant(each.reshape(-1)) for each in arrays if each is not None)
    epsilon = float(call.attrs["epsilon"])
    if len(axes) == 1:
        return ops.normalize(x, scale, shift, epsilon=epsilon)
    rows = graph.emit(relax.op.reshape(x, (*shape[: axes[0]], prod(shape[axes[0] :]))), f"{x.name}.rows")
    return relax.op.reshape(graph.emit(ops.normalize(rows, scale, shift, epsilon=epsilon), f"{x.name}.normal"), shape)


def spelled_layer_norm(graph: Graph, call: Call) -> relax.Expr | None:
    """(x - mean) / sqrt(mean of its square + epsilon), as files spell it."""
    centred, below = call.args
    root = graph.call_of(below, "sqrt")
    moved = graph.call_of(root.args[0], "add") if root is not None else None
    epsilon = array_of(moved.args[1]) if moved is not None else None
    variance = graph.call_of(moved.args[0], "mean") if moved is not None else None
    difference = graph.call_of(centred, "subtract")
    if epsilon is None or epsilon.size != 1 or variance is None or difference is None:
        return None
    x, mean = difference.args[0], graph.call_of(difference.args[1], "mean")
    if mean is None or not mean.args[0].same_as(x) or not _squares(graph, variance.args[0], centred):
        return None
    shape = shape_of(x)
    if not all(_of_last_axis(each, len(shape)) for each in (mean, variance)) or str(x.ty.dtype) != "float32":
        return None
    ones = np.ones(shape[-1])
    return ops.normalize(x, constant(ones), constant(0 * ones), epsilon=float(epsilon.item()))


def _squares(graph: Graph, expr: relax.Expr, x: relax.Expr) -> bool:
    call = graph.call_of(expr, "power", "multiply", "square")
    if call is None or not call.args[0].same_as(x):
        return False
    if op_name(call) == "power":
        exponent = array_of(call.args[1])
        return exponent is not None and exponent.size == 1 and exponent.item() == 2
    return op_name(call) == "square" or call.args[1].same_as(x)


def _of_last_axis(mean: Call, rank: int) -> bool:
    axes = mean.attrs["axis"]
    return axes is not None and [axis % rank for axis in ints(axes)] == [rank - 1] and bool(mean.attrs["keepdims"])


def joined(graph: Graph, call: Call) -> Call | None:
    """A product of a softmax of a product, as one operator; ``call`` is the second product."""
    work = workload_of(call, Product)
    shares = graph.call_of(call.args[0], "bitkiln.softmax")
    scores = graph.call_of(shares.args[0], "bitkiln.product") if shares is not None else None
    if shares is None or scores is None or bool(shares.attrs["log"]) or work.factor != 1 or work.epilogue:
        return None
    if not graph.used_once(call.args[0]) or not graph.used_once(shares.args[0]):
        return None
    before = workload_of(scores, Product)
    alike = before.stack == work.stack and (before.rows, before.columns) == (work.rows, work.inner)
    if not alike or before.result != work.first or shape_of(shares.args[0])[-1] != before.columns:
        return None
    tensors, operands = scores.args[:2], scores.args[2:]
    return call_of(
        Attention(
            stack=work.stack,
            rows=work.rows,
            inner=before.inner,
            columns=before.columns,
            width=work.columns,
            first=before.first,
            second=before.second,
            third=work.second,
            result=work.result,
            factor=before.factor,
            epilogue=before.epilogue,
        ),
        [*tensors, call.args[1], *operands],
    )


def moved_result(graph: Graph, call: Call) -> Call | None:
    """A transpose of a product's result, which the product then writes itself."""
    x = call.args[0]
    while (inner := graph.call_of(x, "reshape")) is not None and graph.used_once(x):
        x = inner.args[0]
    host = graph.call_of(x, "bitkiln.product", "bitkiln.attention")
    if host is None or not graph.used_once(x):
        return None
    work = workload_of(host)
    assert isinstance(work, Product | Attention)
    columns = work.width if isinstance(work, Attention) else work.columns
    shape = shape_of(call.args[0])
    taken = np.asarray(
        reference.evaluate_call(tvm.IRModule(), call, {call.args[0].name: np.arange(prod(shape)).reshape(shape)})
    )
    places = np.empty(prod(shape), int)
    places[taken.reshape(-1)] = np.arange(prod(shape))
    extents = (*work.stack, work.rows, columns)
    result = work.result
    own = _even(extents, result.begin, (*result.stack, result.row, result.column))
    found = _pitches(places[own])
    if found is None or (columns > 1 and found[1][-1] != 1):
        return None
    begin, (*stack, row, column) = found
    return call_of(replace(work, result=Matrices(taken.shape, begin, tuple(stack), row, column)), host.args)
