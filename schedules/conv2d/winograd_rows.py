"""Winograd's algorithm along x alone, F(1 x m, 3x3), with weights as they are in memory: for weights that it gives too slowly.

Along y it is the plain sum over three rows, which a call of the micro-kernel makes: stored weights (``winograd_lean``) do not
grow at all, and the taps share the rows of V. V is [part of the channels][x][row][tile of a row][channel]. A panel's products
[x][tile][output channel] grow part by part: what a part needs of V, and its weights, stored and made, fit the L1 cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.packing import Chunk, Packing
from bitkiln.schedules.conv2d.winograd import GAP, THREADS, Part, four_from, through
from bitkiln.schedules.conv2d.winograd_lean import LeanWinograd
from bitkiln.schedules.conv2d.winograd_transforms import POINT, STORED, TRANSFORMS, UNFOLDED, Transform, weight_sums
from bitkiln.schedules.kernel import Kernel, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES, REACH_BYTES, STEP, Finish
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Outputs of a tile.
OUTPUTS = (1, 4)
#: Rows of taps, and the most channels of a part: of 32 stored and made weights take 15 KB.
_TAPS, _PART = 3, 32
#: What defaults choose among: the register tile, and groups of tiles in a block.
_TILE, _BLOCKS = (8, 8), (1, 2, 4, 8, 0)
#: As measured of layers of 64 to 512 channels on four simulated cores: products a cycle, cycles to begin and end a call, and to
#: make what is made of the weights of an input and an output channel; the most of the L2 cache that V may take; the share of
#: memory's time that is waited for; and how long it takes at least, of that time.
_PACE, _CALL, _MADE, _SHARE, _WAITED_FOR, _LEAST_WAIT = 3.0, 150, 18, 0.9, 0.15, 1.2


def estimate(workload: Conv2d, cycles_per_byte: float, target: Target) -> float:
    """Cycles of all threads together, roughly."""
    work, moved = _costs(workload, _block(workload, target))
    return max(work + _WAITED_FOR * moved * cycles_per_byte, _LEAST_WAIT * moved * cycles_per_byte)


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """The largest block whose V stays in the L2 cache."""
    return {"tile": size_text(_TILE), "block": _block(workload, target)}


def emit(workload: Conv2d, tile: tuple[int, int], block: int, target: Target, threads: int) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels), for so many ``threads``."""
    return RowWinograd(workload, OUTPUTS, tile, block, kernels=kernel_set(target), threads=threads).kernel()


def _block(workload: Conv2d, target: Target) -> int:
    most = target.cpu["l2_kib"] * 1024 * _SHARE

    def fits(block: int) -> bool:
        across, rows = _rows(workload, block)
        return 4 * TRANSFORMS[OUTPUTS[1]].points * workload.channels * across * (rows + _TAPS - 1) <= most

    # 0 is all tiles.
    return next((block for block in reversed(_BLOCKS) if fits(block)), _BLOCKS[0])


def _rows(workload: Conv2d, block: int) -> tuple[int, int]:
    """Tiles of a row, and rows of a block."""
    height, width = workload.conv_size
    across = -(-width // OUTPUTS[1])
    return across, min(height, max(1, block * _TILE[0] // across)) if block else height


def _costs(workload: Conv2d, block: int) -> tuple[float, float]:
    """Cycles of work, and bytes that pass through memory."""
    points = TRANSFORMS[OUTPUTS[1]].points
    (across, rows), height = _rows(workload, block), workload.conv_size[0]
    blocks = -(-height // rows)
    both = workload.channels * workload.out_channels
    groups = blocks * -(-rows * across // _TILE[0])
    calls = points * groups * -(-workload.channels // _PART) * -(-workload.out_channels // _TILE[1])
    lines = across * (height + (_TAPS - 1) * blocks) * workload.channels
    transforms = 2.5 * points * (lines + across * height * workload.out_channels)
    products = points * _TAPS * groups * _TILE[0] * both / _PACE
    moved = 4 * (_TAPS * STORED * both * blocks + workload.height * workload.width * workload.channels)
    moved += 4 * (points * lines + math.prod(workload.conv_size) * workload.out_channels)
    return products + transforms + _CALL * calls + _MADE * both * blocks, moved


class RowWinograd(LeanWinograd):
    """The kernel under construction."""

    transforms: ClassVar[Mapping[int, Transform]] = {**TRANSFORMS, 1: POINT}

    def _cut_channels(self, cache_bytes: int, threads: int) -> None:
        work = self.workload
        self.chunk_runs = split(work.out_channels, self.tile_n, self.set.channels)
        self.by_panels = True
        self.unfolded = UNFOLDED[self.outputs[1]]
        self.part = next(size for size in range(_PART, 0, -STEP) if work.channels % size == 0)
        self.parts = work.channels // self.part
        self.order = (0, self.points[1] - 1, *range(1, self.points[1] - 1))
        self.packed = _TAPS * STORED * work.channels * work.out_channels + AHEAD_BYTES // 4
        # Tiles of a block are whole rows.
        rows = min(self.tiles[0], max(1, self.block // self.tiles[1]))
        self.block = rows * self.tiles[1]
        self.data_pitch = self.part
        #: Floats of V of a part at a position.
        self.region = (self.block + (_TAPS - 1) * self.tiles[1]) * self.part + GAP
        row = self.tiles[1] * self.part * 4
        self.row_offsets = np.array([0, row, 2 * row, 0], "int32")

    def _position(self, py: int, px: int) -> int:
        return self.order.index(px) * self.region

    @property
    def packing(self) -> Packing:
        """Weights OHWI as [panel][part][stored][row of taps][channel][output channel]."""
        work, count = self.workload, _TAPS * _TAPS
        # Taps of each part of the channels, and of each what is stored of a row.
        taps = tuple(tap * work.channels + part * self.part for part in range(self.parts) for tap in range(count))
        rows = weight_sums(self.unfolded.stored[[0, -1, 1]], np.eye(1))
        sums = tuple(
            tuple((part * count + row * _TAPS + tap, factor) for tap, factor in terms)
            for part in range(self.parts)
            for terms in rows
            for row in range(_TAPS)
        )
        cut = (Chunk(run, tuple(split(run.used, run.size, self.set.channels))) for run in self.chunk_runs)
        pitch, spare = count * work.channels, AHEAD_BYTES // 4
        return Packing(work.out_channels, self.part, pitch, taps, sums, tuple(cut), spare, zero=0.0)

    def _transform_image(self, data: Any, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        with loop(tiles + (_TAPS - 1) * self.tiles[1]) as tile:
            for buffer, piece in self.images:
                begin = 0
                while begin < piece.count:
                    part, within = divmod(piece.begin + begin, self.part)
                    count = min(self.part - within, piece.count - begin)
                    to = part * (self.points[1] * self.region) + within
                    one = Part(buffer, piece.width, piece.first + begin, to, count)
                    self._transform_data(data, tile * self.data_pitch, first + tile, [one])
                    begin += count

    def _block(self, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        groups = [Run(run.first, run.count, max(run.size, 3), run.used) for run in split(tiles, self.tile_m)]
        self.room = groups[-1].first + groups[-1].count * groups[-1].size
        # The last group may read tiles that are not there.
        room = self.parts * self.points[1] * self.region + 3 * self.part + REACH_BYTES // 4
        data = T.alloc_buffer((room,), "float32")
        self._transform_image(data, first, tiles, loop)
        for run in self.chunk_runs:
            with loops.one_by_one(run.count) as index:
                products = T.alloc_buffer((self.points[1] * self.room * run.size,), "float32")
                made = T.alloc_buffer((2 * _TAPS * self.part * run.size + AHEAD_BYTES // 4,), "float32")
                channel = run.first + index * run.size
                loops.fill(products, 0, self.points[1] * self.room * run.size)
                with T.serial(self.parts) as part:
                    self._add_part(products, data, made, (channel, run.size), groups, part)
                with T.serial(tiles) as tile:
                    self._transform_result(products, tile * run.size, first + tile, channel, run.used)
        if self.late:
            with loop(tiles) as tile, T.serial(self.outputs[0]) as dy:
                self._late(first + tile, dy)

    def _add_part(
        self, products: Any, data: Any, made: Any, panel: tuple[Any, int], groups: Sequence[Run], part: Any
    ) -> None:
        """Adds what a part of the channels gives to the products of a panel, its first channel and its width."""
        channel, width = panel
        size = _TAPS * self.part * width
        begin = T.bind(channel * (_TAPS * STORED * self.workload.channels) + part * (STORED * size))
        # Behind the last part that is the panel that a thread will probably take next, as threads take them in order.
        skipped = tirx.Select(part == self.parts - 1, (THREADS - 1) * self.parts * STORED * size, 0)
        following = T.bind(begin + STORED * size + skipped)
        image = T.bind(part * (self.points[1] * self.region))

        def add(number: int, own: tuple[Any, Any]) -> None:
            self._add_position(products, data, own, width, groups, (image, number), following)

        self._positions(begin, made, size, add)

    def _add_position(
        self,
        products: Any,
        data: Any,
        weights: tuple[Any, Any],
        width: int,
        groups: Sequence[Run],
        place: tuple[Any, int],
        following: Any,
    ) -> None:
        """The same at a position, by its number in the order; ``place``: where V of the part begins, and that number."""
        (image, number), calls = place, sum(group.count for group in groups)
        steps = self.part // STEP
        iterations = _TAPS * steps
        ahead = -(-4 * STORED * _TAPS * self.part * width // (calls * self.points[1] * iterations) // 4) * 4
        done = number * calls
        for group in groups:
            # A call reads two more rows of tiles than it has sums.
            evenly = -(-(group.size + (_TAPS - 1) * self.tiles[1]) * STEP * 4 // _TAPS // 4) * 4
            finish = Finish(goes_on=True)
            kernel = self._product(group.size, width, ahead, 4 * self.region, evenly, finish)
            with T.serial(group.count) as index:
                tile = group.first + index * group.size
                sums = products[(number * self.room + tile) * width]
                fetched = tirx.min(following + (done + index) * (iterations * ahead // 4), self.packed - 1)
                pixels = data[image + number * self.region + tile * self.part]
                pointers = [pixels, self.pixels[0], weights[0][weights[1]], self.rows[0]]
                arguments = [T.address_of(sums), T.int64(width * 4), *map(T.address_of, pointers)]
                arguments += [T.int64(_TAPS), T.int64(steps), T.int64(1), T.int64(0), T.address_of(sums), T.int64(0)]
                T.evaluate(T.call_extern("int32", kernel.symbol, *arguments, T.address_of(self.weights[fetched])))
            done += group.count

    def _outputs(self, products: Any, at: Any, pitch: int) -> list[list[Any]]:
        places = [at + self.order.index(px) * (self.room * pitch) for px in range(self.points[1])]
        return [through(self.along[1].result, [T.bind(products[four_from(place)]) for place in places])]
