"""Two products with a softmax between them: a block of rows has its scores in the cache, and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import Run
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.four import BLOCK
from bitkiln.schedules.product.definition import place
from bitkiln.schedules.product.panels import Blocks, Panels, Rows, block_buffer, copy_rows
from bitkiln.schedules.softmax import SoftmaxRow
from bitkiln.schedules.workload import Attention

#: Rows so many bytes apart, or a multiple of it, would fall into few sets of the L1 cache; floats that keep them apart.
_ALIKE, _APART = 1024, 16
#: Shares are 2^64 times too large (``softmax``) until a row of results meets its factor. Values of the third matrix are packed
#: 2^32 times too small, so that sums stay finite where a value times the number of columns is below 2^96.
_SMALLER = 2.0**-32


def emit_attention(workload: Attention, tile: tuple[int, int], block: int, kernels: KernelSet) -> Kernel:
    """The implementation with register ``tile`` (rows, columns) and so many tiles a ``block``."""
    return _Attention(workload, tile, block, kernels).kernel()


class _Attention:
    def __init__(self, workload: Attention, tile: tuple[int, int], block: int, kernels: KernelSet) -> None:
        self.workload = work = workload
        self.keys = Panels(work.second, work.stack, (work.inner, work.columns), tile[1], kernels, work.factor)
        self.values = Panels(work.third, work.stack, (work.columns, work.width), tile[1], kernels, _SMALLER)
        self.rows = Rows(work.rows, tile[0], block, kernels)
        self.scores = Blocks(self.rows, self.keys, work.epilogue, kernels)
        self.shares = Blocks(self.rows, self.values, (), kernels)
        self.copies = work.first.column != 1 or self.keys.depth != work.inner
        self.softmax = SoftmaxRow(kernels)
        # Rows are filled up for the softmax with what has no share.
        self.columns = -(-work.columns // BLOCK) * BLOCK
        self.pitch = self.columns + (_APART if self.columns * 4 % _ALIKE == 0 else 0)

    def kernel(self) -> Kernel:
        work = self.workload
        arguments = [Argument((i,), *spec) for i, spec in enumerate(work.shapes[:-1])]
        pitch, rows = (self.keys.depth, self.rows.size) if self.copies else (work.first.row, work.rows)
        tables = [
            Constant(self.rows.table(pitch, rows)),
            Constant(self.rows.table(self.pitch, self.rows.size)),
            Constant(np.zeros(2, "int32")),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("attention")
            T.func_attr({"tirx.noalias": True})
            first, second, third, *self.operands, self.table, self.own_table, self.zero = loops.parameters(
                [*arguments, *tables]
            )
            shape, dtype = work.shapes[-1]
            self.result = loops.flat(T.arg("out", T.buffer(shape, dtype)), math.prod(shape))
            self.first = loops.flat(first, math.prod(work.first.shape))
            self.packed_keys = self.keys.pack(loops.flat(second, math.prod(work.second.shape)))
            self.packed_values = self.values.pack(loops.flat(third, math.prod(work.third.shape)))
            for run in self.rows.blocks:
                with T.parallel(work.matrices * run.count) as piece:
                    self._block(run, piece // run.count, run.first + piece % run.count * run.size)
        used = (*self.scores.tiles.microkernels, *self.shares.tiles.microkernels, *self.softmax.microkernels)
        microkernels = {each.symbol: each for each in used}
        notes = f"tiles of {self.rows.tile_m} rows x {self.keys.runs[0].size} columns"
        return Kernel(builder.get(), (*arguments, *tables), tuple(microkernels.values()), notes)

    def _block(self, run: Run, matrix: Any, row: Any) -> None:
        work = self.workload
        begin = place(work.first, work.stack, matrix, row if self.copies else 0, 0)
        source, image, first = self.first, begin, row
        if self.copies:
            source, image, first = block_buffer(self.rows, self.keys.depth), 0, 0
            copy_rows(source, self.first, work.first, begin, (run.used, work.inner), self.keys.depth)
        scores = block_buffer(self.rows, self.pitch)
        self.scores.bind(source, self.packed_keys, self.table, self.zero, self.operands)
        self.scores.emit(
            run, first, image, matrix, scores, lambda m: m * self.pitch, self.pitch, lambda m: (matrix, row + m)
        )
        factors = T.alloc_buffer((self.rows.size,), "float32", scope="local")
        with T.serial(run.used) as m:
            at = m * self.pitch
            loops.fill(scores, at + work.columns, self.columns - work.columns, -math.inf)
            factor = self.softmax.powers(scores, scores, at, self.columns)
            T.buffer_store(factors, factor * tirx.const(1 / _SMALLER, "float32"), [m])
        to = place(work.result, work.stack, matrix, row, 0)
        self.shares.bind(scores, self.packed_values, self.own_table, self.zero, ())
        self.shares.emit(
            run,
            0,
            0,
            matrix,
            self.result,
            lambda m: to + m * work.result.row,
            work.result.row,
            lambda m: (matrix, row + m),
        )
        with T.serial(run.used) as m:
            at, factor = to + m * work.result.row, T.bind(factors[m])
            loops.sweep(work.width, lambda i: T.buffer_store(self.result, self.result[at + i] * factor, [at + i]))
