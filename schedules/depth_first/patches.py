"""How a depthwise layer with a 1x1 layer behind it is cut into *patches*, whose depthwise results stay in the L1 cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from bitkiln.schedules.conv2d.depthwise_geometry import IN_CACHE, Columns, reach, split_columns
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.tiles import at_least
from bitkiln.schedules.depth_first.project import LEAST
from bitkiln.schedules.kernel import size_of
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.depthwise_in_place import InPlace
from bitkiln.schedules.workload import Conv2d, DepthFirst

#: Results of the depthwise layer that a patch holds: half of the L1 cache.
_PATCH_BYTES = 16 * 1024
#: Patches of a strip, or as many strips, that threads work on at a time: what they fetch is for the next ones.
_ABREAST = 4
#: Floats between pixels, a cache line.
_GAP = 16
#: About what a tile of products takes beside its sums and loads.
_ENDS = 60


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
    """The patches of ``workload``, a depthwise layer and a 1x1 layer; ``tile`` is rows x columns of the first one's results.

    A patch is high as a tile and as wide as the L1 cache allows, or so that several ``threads`` share a strip. Rows that are
    left over make a flatter strip; the last tile of a row overlaps the one before where the width is no multiple of a tile's.
    """

    def __init__(self, workload: DepthFirst, tile: str, kernels: KernelSet, threads: int = 1) -> None:
        self.work, self.project = workload.layers
        self.kernels = kernels
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
        #: Floats from pixel to pixel of what is between: a power of two apart they would share few sets of the L1 cache.
        self.pitch = self.work.channels + _GAP
        self.fetches = 4 * self.work.height * self.work.width * self.work.channels > IN_CACHE

    @property
    def count(self) -> int:
        """Of patches."""
        return sum(strip.count for strip in self.strips) * len(self.columns)

    @property
    def rows_read(self) -> int:
        """Rows of the image that a tile reads."""
        return reach(self.work, 0, self.tile[0])

    @property
    def lines(self) -> int:
        """Cache lines that a tile needs at a time."""
        return self.rows_read * reach(self.work, 1, self.tile[1])

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

    def micro(self, strip: Strip, patch: Across, call: Call) -> InPlace:
        """The micro-kernel of ``call``."""
        work = self.work
        return InPlace(
            work.channels,
            work.width,
            patch.width,
            work.kernel,
            work.strides,
            work.dilation,
            (strip.rows, self.tile[1]),
            tuple(step.op for step in work.epilogue),
            self.fetches,
            pitch=work.channels,
            missing=(strip.above, call.left, strip.below, call.right),
            out_pitch=self.pitch,
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
    def product(self) -> tuple[int, int]:
        """Pixels and channels of a tile of the 1x1 layer: those that take least time."""
        rows = [patch.width for patch in self.across for _ in range(patch.count)]

        def cycles(size: tuple[int, int]) -> float:
            pixels = [at_least(run, LEAST) for row in rows for run in split(row, size[0])]
            panels = split(self.project.out_channels, size[1], self.kernels.channels)
            return sum(
                m.count * n.count * _tile_cycles(m.size, n.size, self.work.channels) for m in pixels for n in panels
            )

        return min(self.kernels.sgemm, key=cycles)


def _tile_cycles(pixels: int, channels: int, depth: int) -> float:
    """Cycles of a tile of products of ``depth`` values each."""
    return depth / 4 * (pixels * channels + pixels + channels + 4) + _ENDS + pixels * channels / 4


def _missing(work: Conv2d, axis: int, start: int, count: int) -> tuple[int, int]:
    """Rows or columns that the taps of ``count`` outputs from ``start`` on reach before the image and behind it."""
    first = start * work.strides[axis] - work.padding[axis]
    end = first + reach(work, axis, count)
    return max(0, -first), max(0, end - (work.height, work.width)[axis])
