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
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels import steps_a53
from bitkiln.schedules.microkernels.depthwise_a53 import BLOCK, LANES, Depthwise, Gather
from bitkiln.schedules.workload import Conv2d

#: Rows x columns of output pixels.
TILES = ("1x4", "1x8", "2x4", "2x6", "2x7", "3x4")
#: A block of the image takes at most so much of the L1 cache: the rest is for weights, the output and what is fetched.
_BLOCK_BYTES = 16 * 1024
#: A band's share of the L2 cache: what it reads and writes, and what is fetched for the next one.
_BAND_BYTES = 320 * 1024
#: An image as small as this is in the L2 cache when it is needed.
_IN_CACHE = 128 * 1024
#: Tasks that keep four threads busy.
_TASKS = 4


class _Columns(NamedTuple):
    """A cell's output columns: ``tiles`` whole tiles from ``start`` on, and the ``last`` tile's start, or -1."""

    start: int
    end: int
    tiles: int
    last: int


def applies(workload: Conv2d) -> bool:
    """Whether this schedule can compute ``workload``."""
    whole = workload.depthwise and workload.out_channels == workload.channels and workload.channels % LANES == 0
    return whole and all(map(steps_a53.known, workload.epilogue)) and bool(tiles(workload))


@cache
def tiles(workload: Conv2d) -> tuple[str, ...]:
    """The tiles whose values fit the registers: first those whose bands fit the L2 cache, by their cycles."""
    cells = {tile: _Cells(workload, tile) for tile in TILES}
    estimates = {tile: (cell.traffic(cell.tile[0]) > _BAND_BYTES, cell.cycles) for tile, cell in cells.items()}
    return tuple(sorted((tile for tile in TILES if cells[tile].cycles < math.inf), key=lambda tile: estimates[tile]))


def emit(workload: Conv2d, tile: str) -> Kernel:
    """The implementation with tiles of ``tile`` output pixels."""
    return _Cells(workload, tile).kernel()


class _Cells:
    def __init__(self, workload: Conv2d, tile: str) -> None:
        self.workload = workload
        height, width = workload.conv_size
        rows, columns = map(int, tile.split("x"))
        self.tile = min(rows, height), min(columns, width)
        self.straight = not workload.pool and workload.out == "float32"
        most = _BLOCK_BYTES // (BLOCK * 4)
        #: A cell is as wide as fits, then as high.
        across = (most // self._reach(0, self.tile[0]) - self._reach(1, 1)) // (self.tile[1] * workload.strides[1])
        self.columns = self._split(max(across, 1))
        self.block_width = max(self._reach(1, columns.end - columns.start) for columns in self.columns)
        self.rows = self.tile[0]
        while self.rows < height and self._fits(self.rows + self.tile[0], most):
            self.rows += self.tile[0]
        self.rows = min(self.rows, height)
        self.fetches = workload.height * workload.width * workload.channels * 4 > _IN_CACHE
        self.groups = self._groups()
        self.used: dict[str, Depthwise | Gather] = {}

    def _reach(self, axis: int, outputs: int) -> int:
        """Image rows or columns, zeros included, that ``outputs`` neighbouring outputs read."""
        work = self.workload
        return (outputs - 1) * work.strides[axis] + (work.kernel[axis] - 1) * work.dilation[axis] + 1

    def _fits(self, rows: int, most: int) -> bool:
        """Whether a block of so many output rows has ``most`` pixels, and a band's image and output stay in the L2 cache."""
        return self._reach(0, rows) * self.block_width <= most and self.traffic(rows) <= _BAND_BYTES

    def traffic(self, rows: int) -> int:
        """Bytes that a band of so many output rows reads and writes, and those that the next one adds."""
        work = self.workload
        pixels = work.conv_size[1] * rows + work.width * (self._reach(0, rows) + rows * work.strides[0])
        return pixels * work.channels * 4

    def _split(self, most: int) -> list[_Columns]:
        """The columns in cells of ``most`` tiles at most, of about the same width."""
        width, tile = self.workload.conv_size[1], self.tile[1]
        whole = width // tile
        count = -(-whole // most)
        bounds = [whole * i // count for i in range(count + 1)]
        cells = [_Columns(a * tile, b * tile, b - a, -1) for a, b in pairwise(bounds)]
        if width % tile:
            cells[-1] = cells[-1]._replace(end=width, last=width - tile)
        return cells

    def _groups(self) -> int:
        """Groups of blocks that threads share where there are few bands."""
        bands, blocks = -(-self.workload.conv_size[0] // self.rows), self.workload.channels // BLOCK
        enough = [count for count in range(1, _TASKS + 1) if blocks % count == 0 and bands * count >= _TASKS]
        return enough[0] if enough and self.workload.channels % BLOCK == 0 else 1

    def _micro(self, rows: int) -> Depthwise:
        work = self.workload
        tile = (rows, self.tile[1])
        steps = tuple(step.op for step in work.epilogue)
        size = (work.channels, self.block_width, work.conv_size[1])
        return Depthwise(*size, work.kernel, work.strides, work.dilation, tile, steps, self.fetches)

    @property
    def cycles(self) -> float:
        """Cycles of a vector of channels when every load hits; infinite where a tile does not fit the registers."""
        try:
            heights = self._tile_rows(self.workload.conv_size[0])
            width = sum(columns.tiles + (columns.last >= 0) for columns in self.columns)
            return sum(count * width * self._micro(rows).cycles for rows, count in heights)
        except ValueError:
            return math.inf

    def _tile_rows(self, rows: int) -> list[tuple[int, int]]:
        """Heights of the tiles of ``rows`` rows, and how many there are of each."""
        whole, left = divmod(rows, self.tile[0])
        return [(self.tile[0], whole)] * bool(whole) + [(left, 1)] * bool(left)

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), (_, _), *operands, (out_shape, out_dtype) = work.shapes
        sources = tuple(range(2, 2 + len(operands)))
        self.operand_rows = sum(steps_a53.OPERANDS[step.op] for step in work.epilogue)
        rows = (max(1, work.channels * self.operand_rows),)
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (work.kernel[0] * work.kernel[1] * work.channels,), "float32", _pack),
            Argument(sources, rows, "float32", self._pack_operands) if sources else Constant(self._pack_operands(())),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.operands = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self._body(data, out)
        tile = "x".join(map(str, self.tile))
        notes = f"depthwise, tiles of {tile} pixels x {LANES} channels, cells of {self.rows} rows"
        return Kernel(builder.get(), tuple(arguments), tuple(self.used.values()), notes)

    def _pack_operands(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Operands of the steps, [vector][row][4]."""
        rows = steps_a53.operand_rows(self.workload.epilogue, arrays, self.workload.channels)
        if not len(rows):
            return np.zeros(1, "float32")
        return np.ascontiguousarray(rows.reshape(len(rows), -1, LANES).transpose(1, 0, 2)).ravel()

    def _body(self, data: Any, out: Any) -> None:
        work = self.workload
        size = math.prod(work.conv_size) * work.channels
        self.image = loops.flat(data, work.height * work.width * work.channels)
        self.result = loops.flat(out, size) if self.straight else T.alloc_buffer((size,), "float32")
        whole, left = divmod(work.conv_size[0], self.rows)
        with T.parallel((whole + bool(left)) * self.groups) as task:
            band, group = task // self.groups, task % self.groups
            if whole:
                with T.If(band < whole), T.Then():
                    self._band(band * self.rows, self.rows, group)
            if left:
                with T.If(band >= whole), T.Then():
                    self._band(whole * self.rows, left, group)
        if not self.straight:
            loops.finish(work, self.result, out)

    def _band(self, y: Any, rows: int, group: Any) -> None:
        """The cells of ``rows`` output rows from row ``y`` on, in the channels of ``group``."""
        width, channels = self.workload.conv_size[1], self.workload.channels
        if self.groups == 1:
            loops.claim(self.result, y * width * channels, rows * width * channels)
        block = T.alloc_buffer((self._reach(0, rows) * self.block_width * BLOCK,), "float32")
        blocks, left = divmod(channels, BLOCK)
        each = blocks // self.groups
        for columns in self.columns:
            self._border(block, y, rows, columns)
            if each:
                with T.serial(each) as index:
                    self._cell(block, y, rows, columns, (group * each + index) * BLOCK, BLOCK)
            if left:
                self._cell(block, y, rows, columns, blocks * BLOCK, left)

    def _inside(self, columns: _Columns) -> tuple[int, int, int]:
        """Columns of a cell's block that are zeros left of the image, its first image column, and how many there are."""
        work = self.workload
        left = columns.start * work.strides[1] - work.padding[1]
        right = left + self._reach(1, columns.end - columns.start)
        first = max(left, 0)
        return first - left, first, min(right, work.width) - first

    def _row_inside(self, y: Any, row: Any) -> tuple[Any, Any]:
        """The image row that a block's ``row`` is, for a cell from output row ``y`` on, and whether the image has it."""
        at = y * self.workload.strides[0] - self.workload.padding[0] + row
        return at, tirx.all(at >= 0, at < self.workload.height)

    def _border(self, block: Any, y: Any, rows: int, columns: _Columns) -> None:
        """Zeros around the image; the same for all blocks of channels."""
        before, _, count = self._inside(columns)
        pitch = self.block_width * BLOCK
        with T.serial(self._reach(0, rows)) as row, T.If(self._row_inside(y, row)[1]):
            with T.Then():
                loops.fill(block, row * pitch, before * BLOCK)
                loops.fill(block, row * pitch + (before + count) * BLOCK, pitch - (before + count) * BLOCK)
            with T.Else():
                loops.fill(block, row * pitch, pitch)

    def _cell(self, block: Any, y: Any, rows: int, columns: _Columns, channel: Any, lanes: int) -> None:
        """``lanes`` channels from ``channel`` on of one cell."""
        work = self.workload
        gather = Gather(work.channels, lanes // LANES)
        self.used[gather.symbol] = gather
        before, first, count = self._inside(columns)
        with T.serial(self._reach(0, rows)) as row:
            at, inside = self._row_inside(y, row)
            with T.If(inside), T.Then():
                to = T.address_of(block[(row * self.block_width + before) * BLOCK])
                source = T.address_of(self.image[(at * work.width + first) * work.channels + channel])
                T.evaluate(T.call_extern("int32", gather.symbol, to, source, T.int64(count)))
        done = 0
        for height, many in self._tile_rows(rows):
            with T.serial(many) as index:
                self._tile_row(block, (y, done + index * height), height, columns, (channel, lanes))
            done += height * many

    def _tile_row(
        self, block: Any, rows: tuple[Any, Any], height: int, columns: _Columns, channels: tuple[Any, int]
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
        columns: _Columns,
        x: int,
        count: int,
        channels: tuple[Any, int],
    ) -> None:
        """``count`` tiles from output column ``x`` on; the arguments are those of ``Depthwise``."""
        work, (channel, lanes) = self.workload, channels
        micro = self._micro(height)
        self.used[micro.symbol] = micro
        within = rows[1] * work.strides[0] * self.block_width + (x - columns.start) * work.strides[1]
        # The image's rows below this band, evenly spread over the band's tiles.
        below = (rows[0] + self.rows) * work.strides[0] - work.padding[0] + self._reach(0, 1) - work.strides[0]
        share = channel // BLOCK * self.rows + rows[1]
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
                T.address_of(self.image[tirx.min(fetched, last) if self.fetches else 0]),
                T.int64(count),
                T.int64(lanes // LANES),
            )
        )


def _pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights [C, kh, kw, 1] as [vector][kh][kw][4]."""
    weights = arrays[0].reshape(arrays[0].shape[0] // LANES, LANES, -1)
    return np.ascontiguousarray(weights.transpose(0, 2, 1)).ravel()
