"""Rows brought to mean 0 and variance 1 (layer normalisation), three times over each row while it is in the cache."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops, rows
from bitkiln.schedules.kernel import Argument, Kernel, Knobs
from bitkiln.schedules.workload import Normalize
from bitkiln.targets import Target


def reference(workload: Normalize) -> tirx.PrimFunc:
    """The plain definition: data, scale, shift, then the output."""
    shape, columns = workload.shape, workload.columns
    data = te.placeholder(shape, "float32", name="data")
    scale, shift = (te.placeholder((columns,), "float32", name=name) for name in ("scale", "shift"))
    axes = [te.reduce_axis((0, columns), name) for name in ("m", "v")]
    share = tirx.const(1 / columns, "float32")
    total = te.compute(shape[:-1], lambda *at: te.sum(data[(*at, axes[0])], axis=axes[0]), name="total")
    centred = te.compute(shape, lambda *at: data[at] - total[at[:-1]] * share, name="centred")
    squares = te.compute(
        shape[:-1], lambda *at: te.sum(centred[(*at, axes[1])] * centred[(*at, axes[1])], axis=axes[1]), name="squares"
    )
    epsilon = tirx.const(workload.epsilon, "float32")
    result = te.compute(
        shape,
        lambda *at: centred[at] / tirx.sqrt(squares[at[:-1]] * share + epsilon) * scale[at[-1]] + shift[at[-1]],
        name="normalized",
    )
    return te.create_prim_func([data, scale, shift, result])


def space(workload: Normalize, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Normalize, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Normalize, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Row by row."""
    size, columns = math.prod(workload.shape), workload.columns
    arguments = tuple(Argument((i,), *spec) for i, spec in enumerate(workload.shapes[:-1]))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("normalize")
        T.func_attr({"tirx.noalias": True})
        data, scale, shift = loops.parameters(arguments)
        out = T.arg("out", T.buffer(workload.shape, "float32"))
        source, result = loops.flat(data, size), loops.flat(out, size)

        def row(index: Any) -> None:
            _row(workload, result, source, index * columns, (scale, shift))

        rows.shared(workload.rows, columns, row)
    return Kernel(builder.get(), arguments, notes="row by row")


def _row(workload: Normalize, target: Any, source: Any, at: Any, operands: tuple[Any, Any]) -> None:
    columns, (scale, shift) = workload.columns, operands
    share, zero = tirx.const(1 / columns, "float32"), tirx.const(0, "float32")
    total = rows.fold(columns, lambda i: source[at + i], lambda a, b: a + b, zero)
    mean = T.bind(total * share)

    def square(i: Any) -> tirx.PrimExpr:
        return (source[at + i] - mean) * (source[at + i] - mean)

    squares = rows.fold(columns, square, lambda a, b: a + b, zero)
    factor = T.bind(tirx.const(1, "float32") / tirx.sqrt(squares * share + tirx.const(workload.epsilon, "float32")))

    def element(i: Any) -> None:
        value = (source[at + i] - mean) * factor * scale[i] + shift[i]
        T.buffer_store(target, value, [at + i])

    loops.sweep(columns, element)
