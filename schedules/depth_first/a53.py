"""Layers computed depth first on the Cortex-A53: some rows of the image go through all of them while in the L2 cache.

A strip is one row of the depthwise layer's tiles. What it reads lies in a ring of as many rows of the image as it reaches;
each strip replaces the oldest rows by the next ones, so that nothing is computed twice. The first layer writes its panels of
channels where the depthwise micro-kernel wants its blocks. Results of the depthwise layer wait as [pixel][channel] for the last
one, or are the result.

A last strip that is not whole begins earlier: some rows of the result are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import depthwise_a53, direct, tiles
from bitkiln.schedules.conv2d.depthwise_geometry import Columns
from bitkiln.schedules.conv2d.geometry import Run
from bitkiln.schedules.conv2d.packing import pack_panels
from bitkiln.schedules.conv2d.tiles import SLACK, Taps, Tile, Tiles
from bitkiln.schedules.depth_first.project import Pixels, Project, places
from bitkiln.schedules.depth_first.strips import Strips
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel, size_of
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.depthwise import LANES
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES
from bitkiln.schedules.workload import DepthFirst
from bitkiln.targets import Target


def emit(workload: DepthFirst, tile: str, target: Target, threads: int = 1) -> Kernel:
    """The implementation with depthwise tiles of ``tile`` output pixels, in cells for so many threads."""
    return _Emitter(workload, tile, target, threads).kernel()


class _Emitter:
    """Writes the kernel of ``workload``."""

    def __init__(self, workload: DepthFirst, tile: str, target: Target, threads: int) -> None:
        kernels = kernel_set(target)
        self.workload = workload
        self.strips = strips = Strips(workload, tile, kernels, threads)
        self.expand = _Expand(strips, kernels.product)
        project = strips.roles.project
        size = size_of(direct.default(project, target)["tile"]) if project else (0, 0)
        self.project = Project(project, size, kernels, project.channels) if project else None
        self.work = strips.work

    def kernel(self) -> Kernel:
        out_shape, out_dtype = self.workload.shapes[-1]
        layers = self.workload.layers
        kinds = [self.expand.arguments, self._depthwise, *([self.project.arguments] if self.project else [])]
        parts = [describe(places(layers, number)) for number, describe in enumerate(kinds)]
        arguments = [Argument((0,), *self.workload.shapes[0]), *(each for part in parts for each in part)]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("depth_first")
            T.func_attr({"tirx.noalias": True})
            data, *constants = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            ends = list(accumulate(map(len, parts)))
            bound = [constants[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]
            self.image = loops.flat(data, math.prod(self.workload.shapes[0][0]))
            self.result = loops.flat(out, math.prod(out_shape))
            self.weights, self.numbers, self.rows = bound[1]
            self.expand.bind(bound[0])
            if self.project:
                self.project.bind(bound[2])
            self._cells()
        return Kernel(builder.get(), tuple(arguments), self._microkernels(), self._notes())

    def _microkernels(self) -> tuple[MicroKernel, ...]:
        last = self.project.microkernels if self.project else ()
        used: tuple[MicroKernel, ...] = (*self.expand.microkernels, self.strips.micro, *last)
        return tuple({each.symbol: each for each in used}.values())

    def _notes(self) -> str:
        size = f"{self.strips.tile[0]}x{self.strips.tile[1]}"
        cells = len(self.strips.parts) * len(self.strips.columns)
        return f"depth first, {cells} cells, tiles of {size} pixels, ring of {self.strips.ring} rows"

    def _depthwise(self, places: range) -> list[Argument | Constant]:
        work, strips = self.work, self.strips
        size = work.kernel[0] * work.kernel[1] * work.channels
        # For each slot of the ring: where the rows lie that follow the one in it.
        slots = np.add.outer(np.arange(strips.ring), np.arange(strips.ring)) % strips.ring
        return [
            Argument((places[0],), (size,), "float32", depthwise_a53.pack),
            depthwise_a53.numbers(work, places[1:]),
            Constant((slots * (strips.row_floats * 4)).astype("int32").ravel()),
        ]

    def _cells(self) -> None:
        strips = self.strips
        across = len(strips.columns)
        with loops.one_by_one(len(strips.parts) * across) as cell:
            for index, columns in enumerate(strips.columns):
                for part, (start, end) in enumerate(strips.parts):
                    with T.If(cell == part * across + index), T.Then():
                        self._cell(start, end, columns)

    def _cell(self, start: int, end: int, columns: Columns) -> None:
        """Output rows ``start`` to ``end`` of ``columns``."""
        strips, work = self.strips, self.work
        ring = T.alloc_buffer((strips.ring * strips.row_floats + SLACK,), "float32")
        between = self.result
        if self.project:
            between = T.alloc_buffer((strips.rows * strips.width * work.channels + SLACK,), "float32")
            self.project.claim(self.result, self._runs(start, columns))
        self._border(ring, columns)
        first = start * work.strides[0] - work.padding[0]
        count = -(-(end - start) // strips.rows)
        with T.serial(count) as strip:
            y = tirx.min(start + strip * strips.rows, end - strips.rows)
            below = y * work.strides[0] - work.padding[0] + strips.ring
            step = strips.rows * work.strides[0]
            above = tirx.Select(strip == 0, first, first + strips.ring + (strip - 1) * step)
            with T.serial(below - above) as row:
                self._row(ring, above + row, (above + row - first) % strips.ring, columns)
            slot = (y * work.strides[0] - work.padding[0] - first) % strips.ring
            self._strip(between, ring, y, slot, columns)
            if self.project:
                after = tirx.min(start + (strip + 1) * strips.rows, end - strips.rows)
                runs = self._runs(y, columns)
                with T.If(strip + 1 < count):
                    with T.Then():
                        self.project.emit(between, self.result, runs, self._runs(after, columns))
                    with T.Else():
                        self.project.emit(between, self.result, runs)

    def _runs(self, y: Any, columns: Columns) -> list[Pixels]:
        """Runs of neighbouring pixels of the strip from row ``y`` on."""
        strips, width = self.strips, self.work.conv_size[1]
        if len(strips.columns) == 1:
            return [Pixels(y * width, 0, strips.rows * width)]
        count = columns.end - columns.start
        return [Pixels((y + row) * width + columns.start, row * strips.width, count) for row in range(strips.rows)]

    def _border(self, ring: Any, columns: Columns) -> None:
        """Zeros left and right of the image, in all rows of the ring."""
        strips = self.strips
        before, _, count = strips.inside(columns)
        row = strips.block_width * strips.block
        with T.serial(strips.ring * strips.row_floats // row) as index:
            loops.fill(ring, index * row, before * strips.block)
            loops.fill(ring, index * row + (before + count) * strips.block, row - (before + count) * strips.block)

    def _row(self, ring: Any, y: Any, slot: Any, columns: Columns) -> None:
        """Row ``y`` of what the depthwise layer reads, into ``slot`` of the ring."""
        work, floats = self.work, self.strips.row_floats
        with T.If(tirx.all(y >= 0, y < work.height)):
            with T.Then():
                self.expand.row(self.image, ring, slot * floats, y, columns)
            with T.Else():
                loops.fill(ring, slot * floats, floats)

    def _strip(self, between: Any, ring: Any, y: Any, slot: Any, columns: Columns) -> None:
        """The depthwise layer's output rows from ``y`` on; the first row that they read is in ``slot``."""
        strips, work = self.strips, self.work
        if not self.project:
            with T.serial(strips.rows) as row:
                at = ((y + row) * work.conv_size[1] + columns.start) * work.channels
                loops.claim(self.result, at, (columns.end - columns.start) * work.channels)
        with T.serial(work.channels // strips.block) as block:
            for x, count in ((columns.start, columns.tiles), (columns.last, 1)):
                if count and x >= 0:
                    self._tiles(between, ring, y, slot, block, x, count, columns)

    def _tiles(self, out: Any, ring: Any, y: Any, slot: Any, block: Any, x: int, count: int, columns: Columns) -> None:
        """``count`` tiles from output column ``x`` on; the arguments are those of ``Depthwise``."""
        strips, work = self.strips, self.work
        pixel = x - columns.start if self.project else y * work.conv_size[1] + x
        within = (x - columns.start) * work.strides[1]
        channel = block * strips.block
        vectors = strips.block // LANES
        T.evaluate(
            T.call_extern(
                "int32",
                strips.micro.symbol,
                T.address_of(out[pixel * work.channels + channel]),
                T.address_of(ring[(block * strips.block_width + within) * strips.block]),
                T.address_of(self.weights[channel * (work.kernel[0] * work.kernel[1])]),
                T.address_of(self.numbers[channel * depthwise_a53.number_rows(work)]),
                T.address_of(self.image[0]),
                T.int64(count),
                T.int64(vectors),
                T.address_of(self.rows[slot * strips.ring]),
            )
        )


class _Expand:
    """The first layer: rows of its results into the ring."""

    def __init__(self, strips: Strips, product: Any) -> None:
        assert strips.roles.expand
        self.strips, self.work = strips, strips.roles.expand
        finish = tiles.finish_of(self.work.epilogue)
        self.tiles = Tiles(self.work.epilogue, finish, product)
        self.panels = Run(0, self.work.out_channels // strips.block, strips.block, strips.block)
        self.ahead, self.evenly = direct.fetched(strips.pixels, self.work.channels, self.panels.count)

    @property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        return self.tiles.microkernels

    def arguments(self, places: range) -> list[Argument | Constant]:
        """Weights in panels, operands, places of pixels and of rows of taps."""
        work = self.work
        size = work.channels * work.out_channels + AHEAD_BYTES // 4
        return [
            Argument((places[0],), (size,), "float32", self._pack),
            *(Argument((at,), (work.out_channels,), "float32") for at in places[1:]),
            Constant(np.arange(self.strips.pixels, dtype="int32") * (4 * work.channels)),
            Constant(np.zeros(2, "int32")),
        ]

    def bind(self, buffers: Sequence[Any]) -> None:
        self.weights, *self.operands, self.pixels, self.rows = buffers

    def row(self, image: Any, ring: Any, to: Any, y: Any, columns: Columns) -> None:
        """Row ``y`` of the layer's result, its blocks from ``to`` on."""
        self.tiles.bind(image, self.weights, self.pixels, self.rows, self.operands)
        last = y == self.work.height - 1
        with T.If(last):
            with T.Then():
                self._tiles(ring, to, y, columns, reach=False)
            with T.Else():
                self._tiles(ring, to, y, columns, reach=True)

    def _tiles(self, ring: Any, to: Any, y: Any, columns: Columns, reach: bool) -> None:
        """All tiles of a row; the last one overlaps the one before where the width is no multiple of a tile's."""
        before, first, count = self.strips.inside(columns)
        size = self.strips.pixels
        with T.serial(count // size) as index:
            self._tile(ring, to, y, first, before, index * size, reach)
        if count % size:
            self._tile(ring, to, y, first, before, count - size, reach)

    def _tile(self, ring: Any, to: Any, y: Any, first: int, before: int, x: Any, reach: bool) -> None:
        strips, work = self.strips, self.work
        pixels = Run(0, 1, strips.pixels, strips.pixels)
        tile = Tile(
            pixels,
            self.panels,
            0,
            image=(y * work.width + first + x) * work.channels,
            weights=0,
            to=to + (before + x) * strips.block,
            pitch=strips.block,
            channel=0,
            at=lambda m: (y, first + x + m),
            count=self.panels.count,
            reach=reach,
            ahead=self.ahead,
            evenly=self.evenly,
            panel_pitch=strips.block_width * strips.block,
        )
        self.tiles.emit(tile, ring, Taps(0, 1, work.channels))

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        weights = pack_panels(arrays[0].reshape(self.work.out_channels, -1), [self.panels])
        return np.concatenate([weights, np.zeros(AHEAD_BYTES // 4, "float32")])
