"""What a product and an attention are, as tensor expressions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import te, tirx

from bitkiln.schedules import definition as stages
from bitkiln.schedules.workload import Attention, Matrices, Product


def product(workload: Product) -> tirx.PrimFunc:
    """As ``workload.shapes`` lists arguments."""
    work = workload
    tensors = [te.placeholder(each.shape, "float32", name) for name, each in (("a", work.first), ("b", work.second))]
    operands = stages.operand_tensors(work.epilogue, work.size)
    sums = _products(work, tensors, (work.first, work.second), (work.rows, work.inner, work.columns), work.factor)
    value = stages.apply_epilogue(sums, work.epilogue, operands)
    return te.create_prim_func([*tensors, *operands, _placed(work, value, work.columns)])


def attention(workload: Attention) -> tirx.PrimFunc:
    """As ``workload.shapes`` lists arguments."""
    work = workload
    matrices = {"a": work.first, "b": work.second, "c": work.third}
    tensors = [te.placeholder(each.shape, "float32", name) for name, each in matrices.items()]
    operands = stages.operand_tensors(work.epilogue, (work.matrices, work.rows, work.columns))
    sums = _products(work, tensors[:2], (work.first, work.second), (work.rows, work.inner, work.columns), work.factor)
    scores = stages.apply_epilogue(sums, work.epilogue, operands)
    shares = softmax(scores)
    own = Matrices(
        (1, work.matrices, work.rows, work.columns),
        0,
        tuple(work.rows * work.columns * prod(work.stack[axis + 1 :]) for axis in range(len(work.stack))),
        work.columns,
        1,
    )
    value = _products(work, [shares, tensors[2]], (own, work.third), (work.rows, work.columns, work.width), 1.0)
    return te.create_prim_func([*tensors, *operands, _placed(work, value, work.width)])


def softmax(data: te.Tensor, log: bool = False) -> te.Tensor:
    """e^x over its sum along the last axis, or the logarithm of that."""
    shape, columns = data.shape, int(data.shape[-1])
    axes = [te.reduce_axis((0, columns), name) for name in ("m", "s")]
    most = te.compute(shape[:-1], lambda *at: te.max(data[(*at, axes[0])], axis=axes[0]), name="most")
    power = te.compute(shape, lambda *at: tirx.exp(data[at] - most[at[:-1]]), name="power")
    total = te.compute(shape[:-1], lambda *at: te.sum(power[(*at, axes[1])], axis=axes[1]), name="total")
    if log:
        return te.compute(shape, lambda *at: data[at] - most[at[:-1]] - tirx.log(total[at[:-1]]), name="logarithm")
    return te.compute(shape, lambda *at: power[at] / total[at[:-1]], name="share")


def _products(
    work: Product | Attention,
    tensors: Sequence[te.Tensor],
    matrices: tuple[Matrices, Matrices],
    size: tuple[int, int, int],
    factor: float,
) -> te.Tensor:
    """[1, matrices, rows, columns] of ``size`` (rows, inner, columns)."""
    rows, inner, columns = size
    axis = te.reduce_axis((0, inner), "k")

    def element(_n: tirx.Var, matrix: tirx.Var, row: tirx.Var, column: tirx.Var) -> tirx.PrimExpr:
        first = _read(tensors[0], place(matrices[0], work.stack, matrix, row, axis))
        second = _read(tensors[1], place(matrices[1], work.stack, matrix, axis, column))
        return te.sum(first * second, axis=axis)

    sums = te.compute((1, work.matrices, rows, columns), element, name="product")
    if factor == 1:
        return sums
    return te.compute(sums.shape, lambda *at: sums[at] * tirx.const(factor, "float32"), name="scaled")


def place(
    matrices: Matrices, stack: tuple[int, ...], matrix: tirx.PrimExpr, row: tirx.PrimExpr, column: tirx.PrimExpr
) -> tirx.PrimExpr:
    """Where an element of a stack of matrices lies; ``matrix`` counts them in order."""
    at = row * matrices.row + column * matrices.column + matrices.begin
    for axis, (extent, pitch) in enumerate(zip(stack, matrices.stack, strict=True)):
        if pitch:
            at = at + matrix // prod(stack[axis + 1 :]) % extent * pitch
    return at


def _read(tensor: te.Tensor, at: tirx.PrimExpr) -> tirx.PrimExpr:
    shape = [int(extent) for extent in tensor.shape]
    return tensor[tuple(at // prod(shape[axis + 1 :]) % extent for axis, extent in enumerate(shape))]


def _placed(work: Product | Attention, value: te.Tensor, columns: int) -> te.Tensor:
    """``value`` [1, matrices, rows, columns] where the result has it."""
    result = work.result
    pitches = [*result.stack, result.row, result.column]
    extents = [*work.stack, work.rows, columns]

    def element(*index: tirx.Var) -> tirx.PrimExpr:
        flat = sum(each * prod(result.shape[axis + 1 :]) for axis, each in enumerate(index))
        found = [flat // pitch % extent if extent > 1 else 0 for pitch, extent in zip(pitches, extents, strict=True)]
        matrix = sum(each * prod(work.stack[axis + 1 :]) for axis, each in enumerate(found[:-2]))
        return value[0, matrix, found[-2], found[-1]]

    return te.compute(result.shape, element, name="result")
