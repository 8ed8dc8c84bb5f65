"""How a depthwise layer that reads its image in place is cut into *patches*, whose results stay in the L1 cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby

from bitkiln.schedules.conv2d.depthwise_geometry import IN_CACHE, Columns, in_registers, reach, split_columns
from bitkiln.schedules.kernel import size_of, size_text
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.depthwise_in_place import InPlace
from bitkiln.schedules.workload import Conv2d

#: Results that a patch holds: half of the L1 cache.
_PATCH_BYTES = 16 * 1024
#: Patches of a strip, or as many strips, that threads work on at a time: what they fetch is for the next ones.
_ABREAST = 4
#: The L1 cache: its sets and ways, and bytes of a line.
_SETS, _WAYS, _LINE = 128, 4, 64
#: Cycles for a vector of channels, measured of 3x3 and 5x5 layers of 32 to 1024 channels with strides 1 and 2: what lines take
#: that crowd a set, at most as many as all of a tile's do that come from the L2 cache each time; for a pixel, each row that a
#: tile reads: its page, and where several threads share that cache and memory waiting for these.
_CROWDED, _MISSED, _ROW, _ROW_OF_MANY = 7, 12, 1, 11


@dataclass(frozen=True)
class Strip:
    """``count`` strips of ``rows`` output rows each from row ``y`` on, whose taps miss as many rows of the image."""

    y: int
    count: int
    rows: int
    above: int
    below: int


@dataclass(frozen=True)
class Call:
    """``count`` tiles from output column ``x`` of a patch on, whose taps miss as many columns of the image."""

    x: int
    count: int
    left: int
    right: int


@dataclass(frozen=True)
class Across:
    """``count`` neighbouring patches of ``width`` output columns from column ``x`` on, each of these ``calls``."""

    x: int
    count: int
    width: int
    calls: tuple[Call, ...]


class Patches:
    """The patches of what registers finish of ``work``; ``tile`` is rows x columns of its results.

    A patch is high as a tile and as wide as the L1 cache allows, or so that several ``threads`` share a strip. Rows that are
    left over make a flatter strip; the last tile of a row overlaps the one before where the width is no multiple of a tile's.
    """

    def __init__(self, work: Conv2d, tile: str, threads: int = 1) -> None:
        self.work, self.threads = in_registers(work), threads
        height, width = self.work.conv_size
        rows, columns = size_of(tile)
        self.tile = min(rows, height), min(columns, width)
        tiles = width // self.tile[1]
        most = max(1, _PATCH_BYTES // (4 * self.work.channels * self.tile[0] * self.tile[1]))
        across = -(-tiles // most)
        if threads > 1:
            across = min(tiles, -(-across // _ABREAST) * _ABREAST)
        self.columns = split_columns(width, self.tile[1], across)
        #: Strips that threads work on at a time.
        self.abreast = -(-_ABREAST // across) if threads > 1 else 1
        self.fetches = 4 * self.work.height * self.work.width * self.work.channels > IN_CACHE

    @property
    def count(self) -> int:
        """Of patches."""
        return sum(strip.count for strip in self.strips) * len(self.columns)

    @cached_property
    def strips(self) -> list[Strip]:
        """From top to bottom, alike ones together."""
        height = self.work.conv_size[0]
        found = []
        for y in range(0, height, self.tile[0]):
            rows = min(self.tile[0], height - y)
            found.append(Strip(y, 1, rows, *_missing(self.work, 0, y, rows)))
        same = groupby(found, lambda strip: (strip.rows, strip.above, strip.below))
        return [replace(alike[0], count=len(alike)) for alike in (list(group) for _, group in same)]

    @cached_property
    def across(self) -> list[Across]:
        """From left to right, alike ones together."""
        found = [Across(each.start, 1, each.end - each.start, tuple(self._calls(each))) for each in self.columns]
        same = groupby(found, lambda patch: (patch.width, patch.calls))
        return [replace(alike[0], count=len(alike)) for alike in (list(group) for _, group in same)]

    def _calls(self, columns: Columns) -> Iterator[Call]:
        starts = [columns.start + index * self.tile[1] for index in range(columns.tiles)]
        starts += [columns.last] if columns.last >= 0 else []
        follows = {start: start - index * self.tile[1] for index, start in enumerate(starts)}
        for (_, left, right), group in groupby(
            starts, lambda x: (follows[x], *_missing(self.work, 1, x, self.tile[1]))
        ):
            alike = list(group)
            yield Call(alike[0] - columns.start, len(alike), left, right)

    def micro(self, strip: Strip, patch: Across, call: Call, result: tuple[int, int] | None = None) -> InPlace:
        """The micro-kernel of ``call``; ``result``: pixels from row to row of the result, floats from pixel to pixel."""
        work = self.work
        width, pitch = result or (patch.width, work.channels)
        return InPlace(
            work.channels,
            work.width,
            width,
            work.kernel,
            work.strides,
            work.dilation,
            (strip.rows, self.tile[1]),
            tuple(step.op for step in work.epilogue),
            self.fetches,
            pitch=work.channels,
            missing=(strip.above, call.left, strip.below, call.right),
            out_pitch=pitch,
        )

    @cached_property
    def cycles(self) -> float:
        """Cycles of a vector of channels when every load hits; infinite where a tile does not fit the registers."""
        try:
            return sum(
                strip.count * patch.count * call.count * self.micro(strip, patch, call).cycles
                for strip in self.strips
                for patch in self.across
                for call in patch.calls
            )
        except ValueError:
            return math.inf

    @cached_property
    def estimate(self) -> float:
        """Cycles, roughly, for a vector of channels; infinite where a tile does not fit the registers."""
        rows, columns = (reach(self.work, axis, self.tile[axis]) for axis in (0, 1))
        waits = min(_CROWDED * self.crowd, _MISSED * rows * columns) / math.prod(self.tile)
        waits += rows * (_ROW if self.threads == 1 else _ROW_OF_MANY)
        # The last patches leave threads idle.
        idle = 0 if self.threads == 1 else _ABREAST / self.count
        return (1 + idle) * (self.cycles + math.prod(self.work.conv_size) * waits)

    @cached_property
    def crowd(self) -> int:
        """How far lines that a tile needs at a time crowd the sets of the L1 cache: the squares of those beyond half a set."""
        work = self.work
        rows, columns = (reach(work, axis, self.tile[axis]) for axis in (0, 1))
        pixel = 4 * work.channels
        lines = (pixel * (row * work.width + column) // _LINE for row in range(rows) for column in range(columns))
        return sum(max(0, count - _WAYS // 2) ** 2 for count in Counter(line % _SETS for line in lines).values())


def _missing(work: Conv2d, axis: int, start: int, count: int) -> tuple[int, int]:
    """Rows or columns that the taps of ``count`` outputs from ``start`` on reach before the image and behind it."""
    first = start * work.strides[axis] - work.padding[axis]
    end = first + reach(work, axis, count)
    return max(0, -first), max(0, end - (work.height, work.width)[axis])


@cache
def tiles(work: Conv2d, kernels: KernelSet, threads: int = 1) -> tuple[str, ...]:
    """The tiles whose values fit the registers, the best first; none where the set has no such micro-kernel."""
    offered = map(size_text, kernels.depthwise if kernels.in_place else ())
    estimates = {tile: Patches(work, tile, threads).estimate for tile in offered}
    return tuple(sorted((tile for tile in estimates if estimates[tile] < math.inf), key=lambda tile: estimates[tile]))
