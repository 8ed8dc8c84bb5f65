"""How the depthwise schedule for the Cortex-A53 cuts a layer: bands of rows, cells of them, tiles of a cell."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from bitkiln.schedules.kernel import size_of
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.depthwise import BLOCK, Depthwise
from bitkiln.schedules.workload import Conv2d

#: A block of the image takes at most so much of the L1 cache: the rest is for weights, the output and what is fetched.
_BLOCK_BYTES = 16 * 1024
#: A band's share of the L2 cache: what it reads and writes, and what is fetched for the next one.
_BAND_BYTES = 320 * 1024
#: So much of a band of overlapping rows is bearable before a flatter tile, which reads them more often, is better.
_OVERLAPPING_BYTES = 400 * 1024
#: A cell's share of it, where several threads each have one.
_CELL_BYTES = 96 * 1024
#: An image as small as this is in the L2 cache when it is needed.
IN_CACHE = 128 * 1024
#: Tasks that keep four threads busy.
_TASKS = 4


class Columns(NamedTuple):
    """A cell's output columns: ``tiles`` whole tiles from ``start`` on, and the ``last`` tile's start, or -1."""

    start: int
    end: int
    tiles: int
    last: int


def in_registers(workload: Conv2d) -> Conv2d:
    """``workload`` with as much of its epilogue as a micro-kernel does in registers."""
    return replace(workload, epilogue=tuple(itertools.takewhile(steps_a53.by_channel, workload.epilogue)))


def split_columns(width: int, tile: int, count: int) -> list[Columns]:
    """``width`` output columns in ``count`` cells of about as many tiles of ``tile`` columns."""
    whole = width // tile
    bounds = [whole * i // count for i in range(count + 1)]
    cells = [Columns(a * tile, b * tile, b - a, -1) for a, b in pairwise(bounds)]
    if width % tile:
        cells[-1] = cells[-1]._replace(end=width, last=width - tile)
    return cells


def reach(workload: Conv2d, axis: int, outputs: int) -> int:
    """Image rows or columns, zeros included, that ``outputs`` neighbouring outputs read."""
    return (outputs - 1) * workload.strides[axis] + (workload.kernel[axis] - 1) * workload.dilation[axis] + 1


def inside(workload: Conv2d, columns: Columns) -> tuple[int, int, int]:
    """What output ``columns`` read: columns of zeros left of the image, the first image column, and how many there are."""
    left = columns.start * workload.strides[1] - workload.padding[1]
    right = left + reach(workload, 1, columns.end - columns.start)
    first = max(left, 0)
    return first - left, first, min(right, workload.width) - first


class Cells:
    """The bands, cells and tiles of ``workload``. A cell is as wide as caches allow, then as high.

    ``tile`` is rows x columns of output pixels, ``rows`` the output rows of a band, ``columns`` the cells across, whose blocks
    are ``block_width`` pixels wide. Threads share cells, and ``groups`` of blocks of channels; ``fetches``: the image is too
    large to be in the L2 cache already.
    """

    def __init__(self, workload: Conv2d, tile: str, kernels: KernelSet, threads: int = 1) -> None:
        self.workload, self.set = workload, kernels
        height, width = workload.conv_size
        rows, columns = size_of(tile)
        self.tile = min(rows, height), min(columns, width)
        most = _BLOCK_BYTES // (BLOCK * 4)
        self.fetches = workload.height * workload.width * workload.channels * 4 > IN_CACHE
        across = (most // reach(self.workload, 0, self.tile[0]) - reach(self.workload, 1, 1)) // (
            self.tile[1] * workload.strides[1]
        )
        while threads > 1 and self.fetches and across > 1 and self._cell_bytes(across * self.tile[1]) > _CELL_BYTES:
            across -= 1
        self.columns = split_columns(width, self.tile[1], -(-(width // self.tile[1]) // max(across, 1)))
        self.block_width = max(reach(self.workload, 1, columns.end - columns.start) for columns in self.columns)
        self.rows = self.tile[0]
        while self.rows < height and self._fits(self.rows + self.tile[0], most):
            self.rows += self.tile[0]
        self.rows = min(self.rows, height)
        self.groups = self._groups() if threads > 1 else 1
        #: Whether a group of channels meets all of the image before the next one does.
        self.by_channels = self.beyond_cache and max(workload.dilation) > 1 and workload.channels % BLOCK == 0
        if self.by_channels:
            blocks, each = workload.channels // BLOCK, workload.height * workload.width * BLOCK * 4
            fitting = [
                count for count in range(1, blocks + 1) if blocks % count == 0 and blocks // count * each <= _BAND_BYTES
            ]
            self.groups, self.fetches = fitting[0] if fitting else blocks, False

    @property
    def beyond_cache(self) -> bool:
        """Whether even a band of one row of tiles is more than the L2 cache holds."""
        most = _OVERLAPPING_BYTES if self.workload.strides == (1, 1) else _BAND_BYTES
        return self._traffic(self.tile[0]) > most

    @property
    def cycles(self) -> float:
        """Cycles of a vector of channels when every load hits; infinite where a tile does not fit the registers."""
        try:
            heights = self.tile_rows(self.workload.conv_size[0])
            width = sum(columns.tiles + (columns.last >= 0) for columns in self.columns)
            return sum(count * width * self.micro(rows).cycles for rows, count in heights)
        except ValueError:
            return math.inf

    def tile_rows(self, rows: int) -> list[tuple[int, int]]:
        """Heights of the tiles of ``rows`` rows, and how many there are of each."""
        whole, left = divmod(rows, self.tile[0])
        return [(self.tile[0], whole)] * bool(whole) + [(left, 1)] * bool(left)

    def micro(self, rows: int) -> Depthwise:
        """The micro-kernel of tiles of so many rows."""
        work = self.workload
        tile = (rows, self.tile[1])
        steps = tuple(step.op for step in work.epilogue)
        size = (work.channels, self.block_width, work.conv_size[1])
        assert self.set.depthwise_tile
        return self.set.depthwise_tile(*size, work.kernel, work.strides, work.dilation, tile, steps, self.fetches)

    def _fits(self, rows: int, most: int) -> bool:
        """Whether a block of so many output rows has ``most`` pixels, and a band's image and output stay in the L2 cache."""
        return reach(self.workload, 0, rows) * self.block_width <= most and self._traffic(rows) <= _BAND_BYTES

    def _traffic(self, rows: int) -> int:
        """Bytes that a band of so many output rows reads and writes, and those that the next one adds."""
        work = self.workload
        pixels = work.conv_size[1] * rows + work.width * (reach(self.workload, 0, rows) + rows * work.strides[0])
        return pixels * work.channels * 4

    def _cell_bytes(self, columns: int) -> int:
        """Bytes that a cell of one row of tiles and so many output columns reads and writes."""
        pixels = reach(self.workload, 0, self.tile[0]) * reach(self.workload, 1, columns) + self.tile[0] * columns
        return pixels * self.workload.channels * 4

    def _groups(self) -> int:
        """Groups of blocks that threads share where there are few bands."""
        bands, blocks = -(-self.workload.conv_size[0] // self.rows) * len(self.columns), self.workload.channels // BLOCK
        enough = [count for count in range(1, _TASKS + 1) if blocks % count == 0 and bands * count >= _TASKS]
        return enough[0] if enough and self.workload.channels % BLOCK == 0 else 1
