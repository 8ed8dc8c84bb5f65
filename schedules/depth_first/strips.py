"""How layers computed depth first are cut: cells that threads share, and strips of rows of a cell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from bitkiln.schedules.conv2d.depthwise_geometry import Columns, inside, reach, split_columns
from bitkiln.schedules.kernel import size_of
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.depthwise import Depthwise
from bitkiln.schedules.workload import Conv2d, DepthFirst

#: What all threads together may keep of the L2 cache: the rest is for weights, the image and the result.
_KEPT_BYTES = 336 * 1024
#: Cells that keep several threads busy.
_CELLS = 4
#: Channels of a block of the ring: those of a panel of the first product.
_PANELS = (12, 8)
#: About what a tile of products takes beside its sums and loads.
_ENDS = 60


@dataclass(frozen=True)
class Roles:
    """The layers by what they do: a product of pixels; the depthwise one; a product of its pixels, or none."""

    expand: Conv2d
    depthwise: Conv2d
    project: Conv2d | None


def roles(workload: DepthFirst) -> Roles:
    """The layers of ``workload``, which begins with a product."""
    expand, depthwise, *project = workload.layers
    return Roles(expand, depthwise, project[0] if project else None)


class Strips:
    """The cells and strips of ``workload``.

    ``tile`` is rows x columns of output pixels of the depthwise layer; a strip has its rows. A cell is ``columns`` by one of
    ``parts``, ranges of rows. What a strip reads is in a *ring* of ``ring`` rows [block][pixel][channel], rows of blocks of
    ``block`` channels of ``block_width`` pixels.
    """

    def __init__(self, workload: DepthFirst, tile: str, kernels: KernelSet, threads: int = 1) -> None:
        self.roles = roles(workload)
        self.work = work = self.roles.depthwise
        height, width = work.conv_size
        rows, columns = size_of(tile)
        self.tile = min(rows, height), min(columns, width)
        self.ring = reach(work, 0, self.tile[0])
        self.threads = threads
        most = min(_CELLS, width // self.tile[1]) if threads > 1 else _CELLS
        for across in range(1, min(most, width // self.tile[1]) + 1):
            self.columns = split_columns(width, self.tile[1], across)
            if self.fits and (threads == 1 or _CELLS % across == 0):
                break
        self.parts = self._parts(height, max(1, _CELLS // len(self.columns)) if threads > 1 else 1)
        self.pixels, self.block = self._products(kernels)

    @property
    def rows(self) -> int:
        """Output rows of a strip."""
        return self.tile[0]

    @property
    def fits(self) -> bool:
        """Whether what lies between the layers stays in the L2 cache."""
        return self.cell_bytes * (_CELLS if self.threads > 1 else 1) <= _KEPT_BYTES

    @property
    def block_width(self) -> int:
        """Pixels of a row of the ring, zeros included."""
        return max(reach(self.work, 1, columns.end - columns.start) for columns in self.columns)

    @property
    def width(self) -> int:
        """Output columns of the widest cell."""
        return max(columns.end - columns.start for columns in self.columns)

    @property
    def row_floats(self) -> int:
        """Floats of a row of the ring."""
        return self.block_width * self.work.channels

    @cached_property
    def micro(self) -> Depthwise:
        """The micro-kernel of the depthwise layer."""
        work = self.work
        steps = tuple(step.op for step in work.epilogue)
        width = self.width if self.roles.project else work.conv_size[1]
        size = (work.channels, self.block_width, width)
        window = (work.kernel, work.strides, work.dilation)
        return Depthwise(*size, *window, self.tile, steps, False, self.block, scattered=True)

    @property
    def cycles(self) -> float:
        """Cycles of a vector of channels when every load hits; infinite where a tile does not fit the registers."""
        try:
            strips = sum(-(-(end - start) // self.rows) for start, end in self.parts)
            return strips * sum(each.tiles + (each.last >= 0) for each in self.columns) * self.micro.cycles
        except ValueError:
            return math.inf

    def inside(self, columns: Columns) -> tuple[int, int, int]:
        """Pixels of a row of the ring that are zeros left of the image, the first image column, and how many there are."""
        return inside(self.work, columns)

    @property
    def cell_bytes(self) -> int:
        """Bytes of the ring and of what the last layer reads."""
        between = self.rows * self.width if self.roles.project else 0
        return 4 * self.work.channels * (self.ring * self.block_width + between)

    def _parts(self, height: int, count: int) -> list[tuple[int, int]]:
        """``height`` output rows in at most ``count`` ranges of whole strips."""
        strips = max(1, height // self.rows)
        count = min(count, strips)
        bounds = [strips * i // count * self.rows for i in range(count)]
        return list(zip(bounds, [*bounds[1:], height], strict=True))

    def _products(self, kernels: KernelSet) -> tuple[int, int]:
        """Pixels and channels of a tile of the first product: those that take least time."""
        widths = [self.inside(columns)[2] for columns in self.columns]

        def cycles(size: tuple[int, int]) -> float:
            pixels, channels = min(size[0], *widths), size[1]
            loop = self.roles.expand.channels / 4 * (pixels * channels + pixels + channels + 4)
            return sum(-(-width // pixels) for width in widths) / channels * (loop + _ENDS + pixels * channels / 4)

        fitting = [size for size in kernels.sgemm if size[1] in _PANELS and self.work.channels % size[1] == 0]
        best = min(fitting, key=cycles)
        return min(best[0], *widths), best[1]


def divides(channels: int) -> bool:
    """Whether ``channels`` are whole panels of a first product."""
    return any(channels % panel == 0 for panel in _PANELS)
