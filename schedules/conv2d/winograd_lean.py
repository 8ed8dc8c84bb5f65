"""Winograd's algorithm with weights that are transformed along y alone in memory, for weights that memory gives too slowly.

A row of positions has three values in memory, [panel][y][stored][channel][tile_n]: the weights of its first and its last
position, and one more. Those of the others are made of all three by the thread that multiplies, two positions at a time, in the
L1 cache. So F(4x4)'s weights grow twofold instead of fourfold, those of F(2x2) and F(2x4) by a third.

A thread takes a panel of output channels through all tiles of a block, one row of positions after the other. The row's products
are transformed back along x at once and added to the sums of each output, which fit the L1 cache, so that only V and weights
compete for L2. V is [y][x][tile][channel]: the tiles of a call lie side by side, and so do those of the next call, which are
fetched beside its products. Every other round of panels goes through the rows backwards: what was last is still in L2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.packing import Packing
from bitkiln.schedules.conv2d.winograd import GAP, LANES, THREADS, Winograd, four_from, through
from bitkiln.schedules.conv2d.winograd_transforms import STORED, TRANSFORMS, UNFOLDED, Stage, matrix, weight_sums
from bitkiln.schedules.kernel import Kernel, MicroKernel, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES, FOLLOWING, POINTERS, REACH_BYTES, STEP, Finish
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Floats that are made at a time: a cache line of each stored value.
_AT_ONCE = 16
#: Sums of the smallest tile that fetches what later calls need.
_LEAST = 32
_NO_FINISH = Finish()
#: What defaults choose among: the register tile, and groups of tiles in a block.
_TILE, _BLOCKS = (8, 8), (1, 2, 4, 8)
#: As measured of layers of 48 to 256 channels on four simulated cores: products a cycle; cycles for what is made of the weights
#: of an input and an output channel in a row of positions; how often V passes through memory, where it takes up to the first,
#: up to the second or more of these shares of the L2 cache; and the share of memory's time that is waited for.
_PACE, _MADE, _SHARES, _PASSES, _WAITED_FOR = 2.8, 6, (0.4, 0.65), (3, 6, 10), 0.55


def applies(outputs: tuple[int, int], target: Target) -> bool:
    """Whether tiles of ``outputs`` can be computed so, where the algorithm itself applies."""
    return kernel_set(target).stacks and all(m in UNFOLDED for m in outputs)


def estimate(workload: Conv2d, outputs: tuple[int, int], cycles_per_byte: float, target: Target) -> float:
    """Cycles of all threads together, roughly: work, and the share of the time of memory that is waited for."""
    return min(_cycles(workload, outputs, block, cycles_per_byte, target) for block in _BLOCKS)


def default(workload: Conv2d, outputs: tuple[int, int], cycles_per_byte: float, target: Target) -> dict[str, int | str]:
    """The block that trades best what is made and read again for each block against what of V leaves the L2 cache."""
    block = min(_BLOCKS, key=lambda block: _cycles(workload, outputs, block, cycles_per_byte, target))
    return {"tile": size_text(_TILE), "block": block}


def _cycles(workload: Conv2d, outputs: tuple[int, int], block: int, cycles_per_byte: float, target: Target) -> float:
    points = [TRANSFORMS[m].points for m in outputs]
    tiles = math.prod(-(-size // m) for size, m in zip(workload.conv_size, outputs, strict=True))
    channels, both = workload.channels, workload.channels * workload.out_channels
    groups = -(-tiles // _TILE[0])
    blocks = -(-groups // block)
    products = math.prod(points) * groups * _TILE[0] * both / _PACE
    transforms = 2.5 * math.prod(points) * tiles * (channels + workload.out_channels)
    made = _MADE * points[0] * both * blocks
    image = 4 * math.prod(points) * channels * min(tiles, block * _TILE[0])
    passes = _PASSES[sum(image > target.cpu["l2_kib"] * 1024 * share for share in _SHARES)]
    moved = 4 * STORED * points[0] * both * blocks + passes * image * blocks
    moved += 4 * (workload.height * workload.width * channels + math.prod(workload.out_size) * workload.out_channels)
    return products + transforms + made + _WAITED_FOR * moved * cycles_per_byte


def emit(
    workload: Conv2d, outputs: tuple[int, int], tile: tuple[int, int], block: int, target: Target, threads: int
) -> Kernel:
    """The implementation with ``outputs`` (my, mx) and register ``tile`` (pixels, channels), for so many ``threads``."""
    return LeanWinograd(workload, outputs, tile, block, kernels=kernel_set(target), threads=threads).kernel()


class LeanWinograd(Winograd):
    """The kernel under construction."""

    title: ClassVar[str] = "lean Winograd"

    def _cut_channels(self, cache_bytes: int, threads: int) -> None:
        work = self.workload
        self.chunk_runs = split(work.out_channels, self.tile_n, self.set.channels)
        self.by_panels = True
        self.unfolded = UNFOLDED[self.outputs[1]]
        # Positions of a row in the order of V: those first whose weights are in memory.
        self.order = (0, self.points[1] - 1, *range(1, self.points[1] - 1))
        self.kept = self.outputs[0] * self.outputs[1]
        self.packed = self.points[0] * STORED * work.channels * work.out_channels + AHEAD_BYTES // 4
        # V of a position has all tiles of a block; the gap keeps positions from the same sets of the L1 cache.
        self.data_pitch, self.region = work.channels, self.block * work.channels + GAP
        self.result_pitch = self.kept * self.tile_n

    def _position(self, py: int, px: int) -> int:
        return (py * self.points[1] + self.order.index(px)) * self.region

    @property
    def packing(self) -> Packing:
        """Weights OHWI in panels, with what is stored of each row of positions."""
        sums = weight_sums(self.along[0].weight, self.unfolded.stored[[0, -1, 1]])
        return self._packing_of(sums, [split(run.used, run.size, self.set.channels) for run in self.chunk_runs])

    def _block(self, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        groups = [Run(run.first, run.count, max(run.size, 3), run.used) for run in split(tiles, self.tile_m)]
        data = T.alloc_buffer((self.positions * self.region + REACH_BYTES // 4,), "float32")
        self._transform_image(data, first, tiles, loop)
        for run in self.chunk_runs:
            with loops.one_by_one(run.count) as index:
                sums = T.alloc_buffer((tiles * self.result_pitch,), "float32")
                channel = run.first + index * run.size
                self._sum(sums, data, (channel, run.used), groups, index // THREADS % 2)
                with T.serial(tiles) as tile:
                    self._transform_result(sums, tile * self.result_pitch, first + tile, channel, run.used)
        if self.late:
            with loop(tiles) as tile, T.serial(self.outputs[0]) as dy:
                self._late(first + tile, dy)

    def _sum(self, sums: Any, data: Any, panel: tuple[Any, int], groups: Sequence[Run], backwards: Any) -> None:
        """The outputs of all tiles in a panel, its first channel and how many there are, before their epilogue."""
        (channel, width), (points_y, points_x) = panel, self.points
        tiles = groups[-1].first + groups[-1].count * groups[-1].size
        size = width * self.workload.channels
        made = T.alloc_buffer((2 * size + AHEAD_BYTES // 4,), "float32")
        products = T.alloc_buffer((tiles * points_x * width,), "float32")
        used = groups[-1].first + groups[-1].count * groups[-1].used
        loops.fill(sums, 0, used * self.result_pitch)
        with T.serial(points_y) as step:
            py = T.bind(step + backwards * (points_y - 1 - 2 * step))
            row = T.bind((channel * points_y + py * width) * (STORED * self.workload.channels))
            following = T.bind(self._following(panel, step, py, backwards))
            self._multiply_row(products, data, (row, made), width, groups, py, following)
            self._add_row(sums, products, width, used, py)

    def _following(self, panel: tuple[Any, int], step: Any, py: Any, backwards: Any) -> Any:
        """The weights that a thread needs after those of row ``py`` of a panel.

        Behind the last row that is the panel that it will probably take next, as threads take them in order.
        """
        (channel, width), points_y = panel, self.points[0]
        last = step == points_y - 1
        begin = (channel + tirx.Select(last, THREADS * width, 0)) * points_y
        # The next round goes the other way.
        row = py + tirx.Select(last, 0, 1 - 2 * backwards)
        return (begin + row * width) * (STORED * self.workload.channels)

    def _multiply_row(
        self,
        products: Any,
        data: Any,
        weights: tuple[Any, Any],
        width: int,
        groups: Sequence[Run],
        py: Any,
        following: Any,
    ) -> None:
        """Products of a row of positions, [tile][x][channel]; ``weights``: where they begin, and room for two positions."""
        (row, made), size = weights, width * self.workload.channels

        def multiply(number: int, own: tuple[Any, Any]) -> None:
            self._multiply_position(products, data, own, width, groups, (py, number), following)

        self._positions(row, made, size, multiply)

    def _positions(self, begin: Any, made: Any, size: int, multiply: Callable[[int, tuple[Any, Any]], None]) -> None:
        """``multiply`` of each position of a row, by its number in the order: the buffer of its weights, and where they begin.

        Stored ones begin at ``begin``, ``size`` floats for each position; ``made`` has room for two.
        """
        multiply(0, (self.weights, begin))
        multiply(1, (self.weights, begin + size))
        for number, stages in enumerate(self.unfolded.made):
            self._make(made, begin, size, stages)
            for which in range(2):
                multiply(2 + 2 * number + which, (made, which * size))

    def _make(self, made: Any, begin: Any, size: int, stages: Sequence[Stage]) -> None:
        """Weights of two positions, ``size`` floats each, of the stored ones from ``begin`` on."""
        with T.serial(size // _AT_ONCE) as line:
            at = line * _AT_ONCE
            first, last, between = (
                T.bind(self.weights[T.ramp(begin + which * size + at, 1, _AT_ONCE)]) for which in range(STORED)
            )
            for which, value in enumerate(through(stages, (first, between, last), _AT_ONCE)):
                T.buffer_store(made, value, [T.ramp(which * size + at, 1, _AT_ONCE)])

    def _multiply_position(
        self,
        products: Any,
        data: Any,
        weights: tuple[Any, Any],
        width: int,
        groups: Sequence[Run],
        place: tuple[Any, int],
        following: Any,
    ) -> None:
        """Products of a position, ``place`` in its row and in its order; ``weights``: the buffer and where they begin."""
        channels, points_x = self.workload.channels, self.points[1]
        (py, number), calls = place, sum(group.count for group in groups)
        iterations = channels // STEP
        ahead = -(-4 * STORED * channels * width // (calls * points_x * iterations) // 4) * 4
        done = number * calls
        for group in groups:
            kernel = self._product(group.size, width, ahead, self.tile_m * channels * 4, group.size * STEP * 4)
            with T.serial(group.count) as index:
                tile = group.first + index * group.size
                result = products[(tile * points_x + self.order[number]) * width]
                image = data[(py * points_x + number) * self.region + tile * channels]
                fetched = tirx.min(following + (done + index) * (iterations * ahead // 4), self.packed - 1)
                pointers = [image, self.pixels[0], weights[0][weights[1]], self.rows[0]]
                image_at, pixels, weights_at, rows = map(T.address_of, pointers)
                arguments = [T.address_of(result), T.int64(points_x * width * 4), image_at, pixels, weights_at, rows]
                arguments += [T.int64(1), T.int64(iterations), T.int64(1), T.int64(0), weights_at, T.int64(0)]
                T.evaluate(T.call_extern("int32", kernel.symbol, *arguments, T.address_of(self.weights[fetched])))
            done += group.count

    def _product(
        self, tile_m: int, width: int, ahead: int, distance: int, evenly: int, finish: Finish = _NO_FINISH
    ) -> MicroKernel:
        """The micro-kernel; each iteration fetches ``ahead`` bytes of the weights that follow, and ``evenly`` of V.

        What it fetches of V begins ``distance`` bytes behind what the call reads.
        """
        assert self.set.product
        # A register that the largest tiles point to pixels with holds what is fetched; the smallest have no time for it.
        if tile_m > POINTERS.index(int(FOLLOWING[1:])) or tile_m * width < _LEAST:
            kernel = self.set.product(tile_m, width, finish, reach=True)
        else:
            fetches = {"ahead": distance, "evenly": evenly, "following": ahead, "afar": True}
            kernel = self.set.product(tile_m, width, finish, reach=True, **fetches)
        self.kernels[kernel.symbol] = kernel
        return kernel

    def _add_row(self, sums: Any, products: Any, width: int, tiles: int, py: Any) -> None:
        """Transforms a row of products along x and adds it, as the transform along y has it, to the outputs."""
        points_x, (outputs_y, outputs_x) = self.points[1], self.outputs
        factors = [T.bind(T.broadcast(_chosen(row, py), LANES)) for row in matrix(self.along[0].result, self.points[0])]
        with T.serial(tiles) as tile, T.serial(width // LANES) as vector:
            at = tile * (points_x * width) + vector * LANES
            values = [T.bind(products[four_from(at + px * width)]) for px in range(points_x)]
            values = through(self.along[1].result, values)
            for y, x in np.ndindex(outputs_y, outputs_x):
                place = four_from(tile * self.result_pitch + (y * outputs_x + x) * width + vector * LANES)
                T.buffer_store(sums, T.fma(values[x], factors[y], sums[place]), [place])

    def _outputs(self, products: Any, at: Any, pitch: int) -> list[list[Any]]:
        outputs_y, outputs_x = self.outputs
        places = [[at + (y * outputs_x + x) * pitch for x in range(outputs_x)] for y in range(outputs_y)]
        return [[T.bind(products[four_from(place)]) for place in row] for row in places]


def _chosen(values: Sequence[float], index: Any) -> Any:
    """``values[index]``."""
    chosen = tirx.const(float(values[0]), "float32")
    for number, value in enumerate(values[1:], 1):
        chosen = tirx.Select(index == number, tirx.const(float(value), "float32"), chosen)
    return chosen
