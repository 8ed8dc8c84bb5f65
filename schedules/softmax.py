"""Softmax along rows: the largest number, exponentials with their sum, and a factor, while a row is in the cache.

e^(x - most) is kept 2^64 times too large until it meets the factor, so that it is rounded once, into subnormals if need be.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops, rows
from bitkiln.schedules.exponentials import LIFT, lifted_decay
from bitkiln.schedules.kernel import Argument, Kernel, Knobs, MicroKernel
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.microkernels.a53.four import BLOCK
from bitkiln.schedules.product import definition
from bitkiln.schedules.workload import Softmax
from bitkiln.targets import Target

#: Exponentials at a time: more would not fit the registers.
_LANES = 8


def reference(workload: Softmax) -> tirx.PrimFunc:
    """The plain definition: the data, then the output."""
    data = te.placeholder(workload.shape, "float32", name="data")
    return te.create_prim_func([data, definition.softmax(data, workload.log)])


def space(workload: Softmax, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Softmax, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Softmax, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Row by row."""
    size, columns = math.prod(workload.shape), workload.columns
    arguments = (Argument((0,), workload.shape, "float32"),)
    row = SoftmaxRow(kernel_set(target))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("softmax")
        T.func_attr({"tirx.noalias": True})
        (data,) = loops.parameters(arguments)
        out = T.arg("out", T.buffer(workload.shape, "float32"))
        source, result = loops.flat(data, size), loops.flat(out, size)
        one = row.logarithms if workload.log else row.shares
        rows.shared(workload.rows, columns, lambda index: one(result, source, index * columns, columns))
    return Kernel(builder.get(), arguments, row.microkernels, notes="row by row")


class SoftmaxRow:
    """Emits the softmax of a row, and remembers the micro-kernels that it calls."""

    def __init__(self, kernels: KernelSet) -> None:
        self.microkernels: tuple[MicroKernel, ...] = (kernels.decay(),) if kernels.decay else ()

    def shares(self, target: Any, source: Any, at: Any, columns: int) -> None:
        """Of ``columns`` floats from ``at`` on of ``source``, into ``target`` at the same place, which may be the same."""
        factor = self.powers(target, source, at, columns)
        loops.sweep(columns, lambda i: T.buffer_store(target, target[at + i] * factor, [at + i]))

    def powers(self, target: Any, source: Any, at: Any, columns: int) -> Any:
        """As ``shares``, but 2^``LIFT`` times e^(x - greatest), at most that: the shares are these times the answer."""
        _most, total = self._exponentials(target, source, at, columns)
        return T.bind(tirx.const(1, "float32") / total)

    def logarithms(self, target: Any, source: Any, at: Any, columns: int) -> None:
        """As ``shares``, their logarithms. ``target`` is another buffer than ``source``."""
        most, total = self._exponentials(target, source, at, columns)
        less = T.bind(most + tirx.log(total * tirx.const(2.0**-LIFT, "float32")))
        loops.sweep(columns, lambda i: T.buffer_store(target, source[at + i] - less, [at + i]))

    def _exponentials(self, target: Any, source: Any, at: Any, columns: int) -> tuple[Any, Any]:
        """e^(x - greatest) * 2^``LIFT`` of a row into ``target``; the greatest, and the sum."""
        whole = columns - columns % BLOCK if self.microkernels else 0
        rest, begin = columns - whole, at + whole
        # The greatest, and the sum of whole blocks.
        facts = T.alloc_buffer((2,), "float32", scope="local")
        most, total = tirx.const(-math.inf, "float32"), tirx.const(0, "float32")
        if rest:
            most = rows.fold(rest, lambda i: source[begin + i], tirx.max, most)
        if whole:
            T.buffer_store(facts, most, [0])
            ends = (T.address_of(target[at]), T.address_of(source[at]), T.int64(whole // BLOCK))
            results = (T.address_of(facts[0]), T.address_of(facts[1]))
            T.evaluate(T.call_extern("int32", self.microkernels[0].symbol, *ends, *results))
            most, total = T.bind(facts[0]), T.bind(facts[1])

        def element(i: Any) -> tirx.PrimExpr:
            T.buffer_store(target, lifted_decay(most - source[begin + i]), [begin + i])
            return target[begin + i]

        if rest:
            total = T.bind(total + rows.fold(rest, element, lambda a, b: a + b, tirx.const(0, "float32"), _LANES))
        return most, total
