"""Depthwise convolution on the Cortex-A53: block by block of 16 channels, tiles whose sums stay in registers.

A cell is some output rows and columns that a block of the image suffices for, which is copied with its zero border into a
buffer that stays in the L1 cache; the micro-kernel then goes along its rows of tiles. The last tile of a row overlaps the one
before where the width is no multiple of the tile's; rows that are left over make a flatter tile.
Weights are packed [vector of 4 channels][ky][kx][4].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.depthwise_geometry import Cells, Columns, in_registers, inside, reach
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.depthwise import BLOCK, LANES, Depthwise, Gather
from bitkiln.schedules.workload import Conv2d


def applies(workload: Conv2d, kernels: KernelSet) -> bool:
    """Whether this schedule can compute ``workload`` with these micro-kernels."""
    whole = workload.depthwise and workload.out_channels == workload.channels and workload.channels % LANES == 0
    return whole and bool(tiles(workload, kernels))


@cache
def tiles(workload: Conv2d, kernels: KernelSet, threads: int = 1) -> tuple[str, ...]:
    """The tiles whose values fit the registers: first those whose bands fit the L2 cache, by their cycles."""
    work = in_registers(workload)
    cells = {tile: Cells(work, tile, kernels, threads) for tile in map(size_text, kernels.depthwise)}
    estimates = {tile: (each.beyond_cache, each.cycles) for tile, each in cells.items()}
    return tuple(sorted((tile for tile in cells if cells[tile].cycles < math.inf), key=lambda tile: estimates[tile]))


def emit(workload: Conv2d, tile: str, kernels: KernelSet, threads: int = 1) -> Kernel:
    """The implementation with tiles of ``tile`` output pixels, in cells for so many threads."""
    return _Emitter(workload, Cells(in_registers(workload), tile, kernels, threads)).kernel()


class _Emitter:
    """Writes the kernel of the layer ``given`` whose part in registers is cut into ``cells``."""

    def __init__(self, given: Conv2d, cells: Cells) -> None:
        self.cells, self.workload, self.given = cells, cells.workload, given
        self.late = Late(given.epilogue[len(self.workload.epilogue) :], cells.set)
        self.straight = not self.workload.pool and self.workload.out == "float32"
        self.used: dict[str, Depthwise | Gather] = {}

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), (_, _), *operands, (out_shape, out_dtype) = self.given.shapes
        taken = sum(bool(step.operand) for step in work.epilogue)
        sources = tuple(range(2, 2 + taken))
        self.operand_rows = number_rows(work)
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (work.kernel[0] * work.kernel[1] * work.channels,), "float32", pack),
            numbers(work, sources),
            *(Argument((2 + taken + i,), *spec) for i, spec in enumerate(operands[taken:])),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.operands, *self.late_operands = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self._body(data, out)
        tile = "x".join(map(str, self.cells.tile))
        notes = f"depthwise, tiles of {tile} pixels x {LANES} channels, cells of {self.cells.rows} rows"
        return Kernel(builder.get(), tuple(arguments), (*self.used.values(), *self.late.microkernels), notes)

    def _body(self, data: Any, out: Any) -> None:
        work = self.workload
        size = math.prod(work.conv_size) * work.channels
        self.image = loops.flat(data, work.height * work.width * work.channels)
        self.result = loops.flat(out, size) if self.straight else T.alloc_buffer((size,), "float32")
        whole, left = divmod(work.conv_size[0], self.cells.rows)
        across = len(self.cells.columns)
        # Cells of one band have rows of the image in common with those of the next.
        with loops.one_by_one((whole + bool(left)) * across * self.cells.groups) as task:
            count = (whole + bool(left)) * across
            cell, group = task // self.cells.groups, task % self.cells.groups
            if self.cells.by_channels:
                cell, group = task % count, task // count
            band = cell // across
            for index, columns in enumerate(self.cells.columns):
                with T.If(cell % across == index), T.Then():
                    if whole:
                        with T.If(band < whole), T.Then():
                            self._band(band * self.cells.rows, self.cells.rows, columns, group)
                    if left:
                        with T.If(band >= whole), T.Then():
                            self._band(whole * self.cells.rows, left, columns, group)
        if self.late.steps and self.cells.groups > 1:
            with T.parallel(work.conv_size[0]) as y:
                self._late(y, 0, work.conv_size[1])
        if not self.straight:
            loops.finish(work, self.result, out)

    def _band(self, y: Any, rows: int, columns: Columns, group: Any) -> None:
        """The cell of ``rows`` output rows from row ``y`` on and of ``columns``, in the channels of ``group``."""
        width, channels = self.workload.conv_size[1], self.workload.channels
        if self.cells.groups == 1:
            with T.serial(rows) as row:
                start = ((y + row) * width + columns.start) * channels
                loops.claim(self.result, start, (columns.end - columns.start) * channels)
        block = T.alloc_buffer((reach(self.workload, 0, rows) * self.cells.block_width * BLOCK,), "float32")
        blocks, left = divmod(channels, BLOCK)
        each = blocks // self.cells.groups
        self._border(block, y, rows, columns)
        if each:
            with T.serial(each) as index:
                self._cell(block, y, rows, columns, (group * each + index) * BLOCK, BLOCK)
        if left:
            self._cell(block, y, rows, columns, blocks * BLOCK, left)
        if self.late.steps and self.cells.groups == 1:
            with T.serial(rows) as row:
                self._late(y + row, columns.start, columns.end - columns.start)

    def _late(self, y: Any, first: int, count: int) -> None:
        """The steps that the micro-kernel left, on ``count`` pixels of output row ``y`` from column ``first`` on."""
        width, channels = self.workload.conv_size[1], self.workload.channels
        pixel = y * width + first
        self.late.apply(self.result, pixel * channels, pixel, count, (width, channels), self.late_operands)

    def _row_inside(self, y: Any, row: Any) -> tuple[Any, Any]:
        """The image row that a block's ``row`` is, for a cell from output row ``y`` on, and whether the image has it."""
        at = y * self.workload.strides[0] - self.workload.padding[0] + row
        return at, tirx.all(at >= 0, at < self.workload.height)

    def _border(self, block: Any, y: Any, rows: int, columns: Columns) -> None:
        """Zeros around the image; the same for all blocks of channels."""
        before, _, count = inside(self.workload, columns)
        pitch = self.cells.block_width * BLOCK
        with T.serial(reach(self.workload, 0, rows)) as row, T.If(self._row_inside(y, row)[1]):
            with T.Then():
                loops.fill(block, row * pitch, before * BLOCK)
                loops.fill(block, row * pitch + (before + count) * BLOCK, pitch - (before + count) * BLOCK)
            with T.Else():
                loops.fill(block, row * pitch, pitch)

    def _cell(self, block: Any, y: Any, rows: int, columns: Columns, channel: Any, lanes: int) -> None:
        """``lanes`` channels from ``channel`` on of one cell."""
        work = self.workload
        assert self.cells.set.gather
        gather = self.cells.set.gather(work.channels, lanes // LANES)
        self.used[gather.symbol] = gather
        before, first, count = inside(self.workload, columns)
        with T.serial(reach(self.workload, 0, rows)) as row:
            at, there = self._row_inside(y, row)
            with T.If(there), T.Then():
                to = T.address_of(block[(row * self.cells.block_width + before) * BLOCK])
                source = T.address_of(self.image[(at * work.width + first) * work.channels + channel])
                T.evaluate(T.call_extern("int32", gather.symbol, to, source, T.int64(count)))
        done = 0
        for height, many in self.cells.tile_rows(rows):
            with T.serial(many) as index:
                self._tile_row(block, (y, done + index * height), height, columns, (channel, lanes))
            done += height * many

    def _tile_row(
        self, block: Any, rows: tuple[Any, Any], height: int, columns: Columns, channels: tuple[Any, int]
    ) -> None:
        """Tiles of ``height`` rows at row ``rows[1]`` of the cell that begins at ``rows[0]``."""
        if columns.tiles:
            self._call(block, rows, height, columns, columns.start, columns.tiles, channels)
        if columns.last >= 0:
            self._call(block, rows, height, columns, columns.last, 1, channels)

    def _call(
        self,
        block: Any,
        rows: tuple[Any, Any],
        height: int,
        columns: Columns,
        x: int,
        count: int,
        channels: tuple[Any, int],
    ) -> None:
        """``count`` tiles from output column ``x`` on; the arguments are those of ``Depthwise``."""
        work, (channel, lanes) = self.workload, channels
        micro = self.cells.micro(height)
        self.used[micro.symbol] = micro
        within = rows[1] * work.strides[0] * self.cells.block_width + (x - columns.start) * work.strides[1]
        # The image's rows below this band, evenly spread over the band's tiles.
        below = (
            (rows[0] + self.cells.rows) * work.strides[0]
            - work.padding[0]
            + reach(self.workload, 0, 1)
            - work.strides[0]
        )
        share = channel // BLOCK * self.cells.rows + rows[1]
        fetched = (
            below * work.width * work.channels + (share * work.width + (x * height)) * math.prod(work.strides) * BLOCK
        )
        last = work.height * work.width * work.channels - count * (lanes // LANES) * micro.fetched * BLOCK
        T.evaluate(
            T.call_extern(
                "int32",
                micro.symbol,
                T.address_of(self.result[((rows[0] + rows[1]) * work.conv_size[1] + x) * work.channels + channel]),
                T.address_of(block[within * BLOCK]),
                T.address_of(self.weights[channel * (work.kernel[0] * work.kernel[1])]),
                T.address_of(self.operands[channel * self.operand_rows]),
                T.address_of(self.image[tirx.min(fetched, last) if self.cells.fetches else 0]),
                T.int64(count),
                T.int64(lanes // LANES),
            )
        )


def numbers(workload: Conv2d, sources: Sequence[int]) -> Argument | Constant:
    """What the micro-kernel reads for its steps, [vector][row][4]; ``sources`` are the arguments that operands come from."""

    def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
        rows = steps_a53.operand_rows(workload.epilogue, arrays, workload.channels)
        if not len(rows):
            return np.zeros(1, "float32")
        return np.ascontiguousarray(rows.reshape(len(rows), -1, LANES).transpose(1, 0, 2)).ravel()

    if not sources:
        return Constant(packed(()))
    return Argument(tuple(sources), (workload.channels * number_rows(workload),), "float32", packed)


def number_rows(workload: Conv2d) -> int:
    """Rows of ``numbers`` of a vector."""
    return steps_a53.rows(step.op for step in workload.epilogue)


def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights [C, kh, kw, 1] as [vector][kh][kw][4]."""
    weights = arrays[0].reshape(arrays[0].shape[0] // LANES, LANES, -1)
    return np.ascontiguousarray(weights.transpose(0, 2, 1)).ravel()
