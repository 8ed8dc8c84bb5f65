"""Layers computed depth first on the Cortex-A53: some rows of the image go through all of them while in the L2 cache.

A strip is one row of the depthwise layer's tiles. What it reads lies in a ring of as many rows of the image as it reaches;
each strip replaces the oldest rows by the next ones, so that nothing is computed or copied twice. The first layer writes its
panels of channels where the depthwise micro-kernel wants its blocks; without a first layer rows of the image are copied there.
Results of the depthwise layer wait as [pixel][channel] for the last one, or are the result.

A last strip that is not whole begins earlier: some rows of the result are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import depthwise_a53, direct, tiles
from bitkiln.schedules.conv2d.depthwise_geometry import Columns
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.tiles import SLACK, Taps, Tile, Tiles, at_least, pack_panels
from bitkiln.schedules.depth_first.strips import Strips
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel, size_of
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.depthwise import LANES, Gather
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES
from bitkiln.schedules.workload import Conv2d, DepthFirst
from bitkiln.targets import Target

#: The fewest pixels of a tile of products.
LEAST = 3


def emit(workload: DepthFirst, tile: str, target: Target, threads: int = 1) -> Kernel:
    """The implementation with depthwise tiles of ``tile`` output pixels, in cells for so many threads."""
    return _Emitter(workload, tile, target, threads).kernel()


class _Emitter:
    """Writes the kernel of ``workload``."""

    def __init__(self, workload: DepthFirst, tile: str, target: Target, threads: int) -> None:
        kernels = kernel_set(target)
        self.workload = workload
        self.strips = strips = Strips(workload, tile, kernels, threads)
        self.expand = _Expand(strips, kernels.product) if strips.roles.expand else _Copy(strips)
        self.project = _Project(strips, target) if strips.roles.project else None
        self.work = strips.work
        self.arguments: list[Argument | Constant] = [Argument((0,), workload.shapes[0][0], "float32")]

    def kernel(self) -> Kernel:
        out_shape, out_dtype = self.workload.shapes[-1]
        places = [self._add(self.expand.arguments, self.strips.roles.expand), self._add(self._depthwise, self.work)]
        places += [self._add(self.project.arguments, self.strips.roles.project)] if self.project else []
        with IRBuilder() as builder, T.prim_func():
            T.func_name("depth_first")
            T.func_attr({"tirx.noalias": True})
            data, *constants = loops.parameters(self.arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            bound = [constants[start - 1 : end - 1] for start, end in places]
            self.image = loops.flat(data, math.prod(self.workload.shapes[0][0]))
            self.result = loops.flat(out, math.prod(out_shape))
            self.weights, self.numbers, self.rows = bound[1]
            self.expand.bind(bound[0])
            if self.project:
                self.project.bind(bound[2])
            self._cells()
        return Kernel(builder.get(), tuple(self.arguments), self._microkernels(), self._notes())

    def _microkernels(self) -> tuple[MicroKernel, ...]:
        last = self.project.microkernels if self.project else ()
        used: tuple[MicroKernel, ...] = (*self.expand.microkernels, self.strips.micro, *last)
        return tuple({each.symbol: each for each in used}.values())

    def _notes(self) -> str:
        size = f"{self.strips.tile[0]}x{self.strips.tile[1]}"
        cells = len(self.strips.parts) * len(self.strips.columns)
        return f"depth first, {cells} cells, tiles of {size} pixels, ring of {self.strips.ring} rows"

    def _add(self, describe: Any, layer: Conv2d | None) -> tuple[int, int]:
        """Adds the arguments that ``describe`` makes of the places of ``layer``'s weight and operands; where they are."""
        start, at = len(self.arguments), 1
        for each in self.workload.layers:
            count = len(each.shapes) - 2
            if each is layer:
                break
            at += count
        self.arguments += describe(range(at, at + count) if layer else range(0))
        return start, len(self.arguments)

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
            self.project.begin(self.result, start, columns)
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
                with T.If(strip + 1 < count):
                    with T.Then():
                        self.project.strip(between, self.result, y, columns, after)
                    with T.Else():
                        self.project.strip(between, self.result, y, columns, None)

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
                T.address_of(self.image[self._fetched(y, block, x, count, vectors)]),
                T.int64(count),
                T.int64(vectors),
                T.address_of(self.rows[slot * strips.ring]),
            )
        )

    def _fetched(self, y: Any, block: Any, x: int, count: int, vectors: int) -> Any:
        """Where in the image the lines are that tiles fetch: those of the next strip, evenly spread over this one's."""
        strips, work = self.strips, self.work
        lines = strips.micro.fetched
        if not lines:
            return 0
        below = y * work.strides[0] - work.padding[0] + strips.ring
        tiles_before = block * (work.conv_size[1] // strips.tile[1]) + x // strips.tile[1]
        last = work.height * work.width * work.channels - count * vectors * lines * 16
        return tirx.min(below * work.width * work.channels + tiles_before * (vectors * lines * 16), last)


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


class _Copy:
    """No first layer: rows of the image into the ring."""

    def __init__(self, strips: Strips) -> None:
        self.strips = strips
        self.gather = Gather(strips.work.channels, strips.block // LANES, strips.block)
        self.microkernels: tuple[MicroKernel, ...] = (self.gather,)

    def arguments(self, places: range) -> list[Argument | Constant]:
        return []

    def bind(self, buffers: Sequence[Any]) -> None:
        pass

    def row(self, image: Any, ring: Any, to: Any, y: Any, columns: Columns) -> None:
        """Row ``y`` of the image, its blocks from ``to`` on."""
        strips, work = self.strips, self.strips.work
        before, first, count = strips.inside(columns)
        with T.serial(work.channels // strips.block) as block:
            T.evaluate(
                T.call_extern(
                    "int32",
                    self.gather.symbol,
                    T.address_of(ring[to + (block * strips.block_width + before) * strips.block]),
                    T.address_of(image[(y * work.width + first) * work.channels + block * strips.block]),
                    T.int64(count),
                )
            )


class _Project:
    """The last layer: a product of the depthwise layer's pixels."""

    def __init__(self, strips: Strips, target: Target) -> None:
        assert strips.roles.project
        self.strips, self.work = strips, strips.roles.project
        kernels = kernel_set(target)
        self.size = size_of(direct.default(self.work, target)["tile"])
        early = tiles.finished(self.work.epilogue)
        self.early, self.late = self.work.epilogue[:early], self.work.epilogue[early:]
        self.finish = tiles.finish_of(self.early)
        self.tiles = Tiles(self.early, self.finish, kernels.product)
        self.panels = split(self.work.out_channels, self.size[1], kernels.channels)

    @property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        return self.tiles.microkernels

    def arguments(self, places: range) -> list[Argument | Constant]:
        """Weights in panels, operands, places of pixels for each number of them that a tile may have, of rows of taps."""
        work = self.work
        shapes = work.shapes[2:-1]
        size = work.channels * sum(run.count * run.size for run in self.panels) + AHEAD_BYTES // 4
        pixels = [np.minimum(np.arange(self.size[0]), used - 1) for used in range(1, self.size[0] + 1)]
        return [
            Argument((places[0],), (size,), "float32", self._pack),
            *(Argument((at,), *spec) for at, spec in zip(places[1:], shapes, strict=True)),
            Constant((np.concatenate(pixels) * (4 * work.channels)).astype("int32")),
            Constant(np.zeros(2, "int32")),
        ]

    def bind(self, buffers: Sequence[Any]) -> None:
        self.weights, *self.operands, self.pixels, self.rows = buffers

    def begin(self, result: Any, y: int, columns: Columns) -> None:
        """Claims the first strip's results."""
        for at, _, pixels in self._runs(y, columns):
            loops.claim(result, at * self.work.out_channels, pixels * self.work.out_channels)

    def strip(self, between: Any, result: Any, y: Any, columns: Columns, after: Any) -> None:
        """The results of the strip from row ``y`` on; claims those of the one from row ``after`` on, if there is one."""
        self.tiles.bind(between, self.weights, self.pixels, self.rows, self.operands)
        claims = self._runs(after if after is not None else y, columns)
        for (to, start, count), (claimed, _, _) in zip(self._runs(y, columns), claims, strict=True):
            for run in (at_least(run, LEAST) for run in split(count, self.size[0])):
                with T.serial(run.count) as index:
                    pixel = run.first + index * run.size
                    ahead = claimed + pixel if after is not None else None
                    self._tile(result, start + pixel, to + pixel, run, ahead)
            if self.late:
                size = (self.work.conv_size[1], self.work.out_channels)
                operands = tiles.operands_behind(self.work.epilogue, len(self.early), self.operands)
                loops.apply_late(result, to * size[1], to, count, size, self.late, operands)

    def _runs(self, y: Any, columns: Columns) -> list[tuple[Any, int, int]]:
        """Runs of neighbouring pixels of a strip: the first one's number in the result and in what is read, how many."""
        strips, width = self.strips, self.work.conv_size[1]
        if len(strips.columns) == 1:
            return [(y * width, 0, strips.rows * width)]
        count = columns.end - columns.start
        return [((y + row) * width + columns.start, row * strips.width, count) for row in range(strips.rows)]

    def _tile(self, result: Any, pixel: Any, to: Any, run: Run, ahead: Any) -> None:
        """A tile of the pixels from ``pixel`` on, by all panels; beside it pixels ``ahead`` of the result are claimed."""
        work = self.work
        one = run.used == run.size
        for panels in self.panels:
            together = one and panels.used == panels.size and self.finish is not None
            inside = panels.count if together else 1
            with T.serial(panels.count // inside) as panel:
                channel = panels.first + panel * panels.size
                claimed = None
                if ahead is not None and together:
                    claimed = T.address_of(result[ahead * work.out_channels + channel * run.used])
                tile = Tile(
                    Run(0, 1, run.size, run.used),
                    panels,
                    (run.used - 1) * self.size[0],
                    image=pixel * work.channels,
                    weights=channel * work.channels,
                    to=to * work.out_channels + channel,
                    pitch=work.out_channels,
                    channel=channel,
                    at=lambda m: ((to + m) // work.conv_size[1], (to + m) % work.conv_size[1]),
                    count=inside,
                    reach=True,
                    claimed=claimed,
                )
                self.tiles.emit(tile, result, Taps(0, 1, work.channels))

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        weights = pack_panels(arrays[0].reshape(self.work.out_channels, -1), self.panels)
        return np.concatenate([weights, np.zeros(AHEAD_BYTES // 4, "float32")])
