"""One product of two stacks of matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import Run
from bitkiln.schedules.conv2d.tiles import CLAIM_FLOATS
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.product.definition import place
from bitkiln.schedules.product.panels import Blocks, Panels, Rows, block_buffer, copy_rows
from bitkiln.schedules.workload import Product

#: Floats of a row that a tile still reads where it lies.
_LONG = 256


def emit_product(workload: Product, tile: tuple[int, int], block: int, kernels: KernelSet) -> Kernel:
    """The implementation with register ``tile`` (rows, columns) and so many tiles a ``block``."""
    return _Product(workload, tile, block, kernels).kernel()


class _Product:
    def __init__(self, workload: Product, tile: tuple[int, int], block: int, kernels: KernelSet) -> None:
        self.workload = work = workload
        self.panels = Panels(work.second, work.stack, (work.inner, work.columns), tile[1], kernels, work.factor)
        self.rows = Rows(work.rows, tile[0], block, kernels)
        self.blocks = Blocks(self.rows, self.panels, work.epilogue, kernels)
        # Filled up rows would read what lies behind them; long ones, side by side, are more streams than are prefetched.
        self.copies = work.first.column != 1 or self.panels.depth != work.inner or work.inner > _LONG
        # Rows of the result that touch are claimed before they are written in pieces.
        self.claims = work.result.row == work.columns

    def kernel(self) -> Kernel:
        work = self.workload
        arguments = [Argument((i,), *spec) for i, spec in enumerate(work.shapes[:-1])]
        pitch, rows = (self.panels.depth, self.rows.size) if self.copies else (work.first.row, work.rows)
        tables = [Constant(self.rows.table(pitch, rows)), Constant(np.zeros(2, "int32"))]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("product")
            T.func_attr({"tirx.noalias": True})
            first, second, *self.operands, self.table, self.zero = loops.parameters([*arguments, *tables])
            shape, dtype = work.shapes[-1]
            self.result = loops.flat(T.arg("out", T.buffer(shape, dtype)), math.prod(shape))
            self.first = loops.flat(first, math.prod(work.first.shape))
            self.packed = self.panels.pack(loops.flat(second, math.prod(work.second.shape)))
            for run in self.rows.blocks:
                with T.parallel(work.matrices * run.count) as piece:
                    self._block(run, piece // run.count, run.first + piece % run.count * run.size)
        how = "copied" if self.copies else "in place"
        notes = f"tiles of {self.rows.tile_m} rows x {self.panels.runs[0].size} columns, rows {how}"
        return Kernel(builder.get(), (*arguments, *tables), self.blocks.tiles.microkernels, notes)

    def _block(self, run: Run, matrix: Any, row: Any) -> None:
        work = self.workload
        begin = place(work.first, work.stack, matrix, row if self.copies else 0, 0)
        source, image, first = self.first, begin, row
        if self.copies:
            source, image, first = block_buffer(self.rows, self.panels.depth), 0, 0
            copy_rows(source, self.first, work.first, begin, (run.used, work.inner), self.panels.depth)
        to = place(work.result, work.stack, matrix, row, 0)
        floats = run.used * work.columns
        if self.claims and floats >= CLAIM_FLOATS:
            loops.claim(self.result, to, floats)
        self.blocks.bind(source, self.packed, self.table, self.zero, self.operands)
        self.blocks.emit(
            run,
            first,
            image,
            matrix,
            self.result,
            lambda m: to + m * work.result.row,
            work.result.row,
            lambda m: (matrix, row + m),
        )
