"""First layers of 7x7 and 8x8 kernels with stride 2, by Winograd's minimal filtering.

The even and the odd rows and columns of the image, four *phases*, each meet a quarter of the taps, with stride 1: the layer is
a 4x4 convolution of an image of half the size and four times the channels. F(4x4, 4x4) makes 16 outputs of it with 49
multiplications for each of these channels, where the direct sum has 147 to 192 for each output.

A strip is a row of tiles, some of which are a block. The seven rows of phases that a block needs are laid out
[row][column][phase][channel] in a buffer that stays in the caches, beside those of other threads; then come the steps of
``conv2d_winograd``. A 3x3 maximum of stride 2 follows strip by strip. Where tiles
begin where its windows do, a tile adds what it knows to the maxima it takes part in: the strip's results, which four threads'
share of the L2 cache would not hold, are never in memory. Signs beside the result are those of rows that are in the caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops, pool2d
from bitkiln.schedules.binarize.beside import Beside, outputs
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.stem_image import ImageRows
from bitkiln.schedules.conv2d.winograd import Patch, Winograd, four_from
from bitkiln.schedules.conv2d.winograd_transforms import FOUR_TAPS
from bitkiln.schedules.kernel import Kernel
from bitkiln.schedules.microkernels import KernelSet, a53
from bitkiln.schedules.microkernels.a53.binarize import BATCH
from bitkiln.schedules.steps import commutes_with_maximum, expression
from bitkiln.schedules.workload import Conv2d, Pool, argument_specs, result_spec

#: Outputs of a tile along an axis, and taps of a phase.
_OUTPUTS, _TAPS = FOUR_TAPS.outputs, FOUR_TAPS.weight.shape[1]
_STRIDE = 2
_MOST_CHANNELS = 4
#: Parts into which pooled rows are divided: one for each core that any of our boards has.
_PARTS = 4


def applies(workload: Conv2d) -> bool:
    """Whether this schedule can compute ``workload``."""
    if (
        workload.binary
        or workload.whole
        or workload.groups > 1
        or workload.dilation != (1, 1)
        or workload.out != "float32"
    ):
        return False
    kernels = all(_STRIDE * (_TAPS - 1) < size <= _STRIDE * _TAPS for size in workload.kernel)
    if not kernels or workload.strides != (_STRIDE, _STRIDE):
        return False
    if workload.channels > _MOST_CHANNELS or workload.out_channels % 8:
        return False
    return min(workload.conv_size) >= _OUTPUTS and _pools(workload)


def emit(workload: Conv2d, kernels: KernelSet = a53.SET, threads: int = 1) -> Kernel:
    """The implementation for so many threads: a row has a multiple of seven tiles in the networks we know."""
    tile = min(kernels.sgemm_sevens[0], 7), 8
    return _Phases(workload, tile, kernels, threads).kernel()


def _pools(workload: Conv2d) -> bool:
    return workload.pool in (None, Pool((2, 2), (2, 2))) or _overlaps(workload)


def _overlaps(workload: Conv2d) -> bool:
    """Whether a 3x3 maximum of stride 2 follows that begins a row above each strip and ends with it."""
    pool, (height, _) = workload.pool, workload.conv_size
    if pool is None or (pool.kind, pool.kernel, pool.strides, pool.padding[0]) != ("max", (3, 3), (2, 2), 1):
        return False
    return height % _OUTPUTS == 0 and workload.out_size[0] * 2 == height


class _Phases(Winograd):
    transforms: ClassVar = {_OUTPUTS: FOUR_TAPS}
    taps: ClassVar = _TAPS

    def __init__(self, workload: Conv2d, tile: tuple[int, int], kernels: KernelSet, threads: int) -> None:
        self.overlapping = workload.pool if _overlaps(workload) else None
        height, width = workload.conv_size
        phases = Conv2d(
            height + _TAPS - 1,
            width + _TAPS - 1,
            _STRIDE * _STRIDE * workload.channels,
            workload.out_channels,
            (_TAPS, _TAPS),
            epilogue=workload.epilogue,
            pool=None if self.overlapping else workload.pool,
        )
        super().__init__(phases, (_OUTPUTS, _OUTPUTS), tile, block=1, kernels=kernels)
        self.layer = workload
        self.rows_in = ImageRows(workload)
        self.sources, self.out_spec = images.arguments(workload), result_spec(workload)
        pool, columns = self.overlapping, workload.conv_size[1]
        #: Whether tiles add their results to the maxima that follow, each window of which begins with a tile or within one.
        aligned = columns % _OUTPUTS == 0 and workload.out_size[1] * 2 == columns
        self.joining = pool is not None and pool.padding[1] == 1 and aligned and not self.late
        #: Whether each thread takes a block of every strip: what it keeps in the L2 cache is then as narrow as that.
        self.by_columns = self.joining and threads > 1 and self.tiles[1] == _PARTS * self.block
        #: Pixels at a seam whose signs are packed once more: a batch, for those behind the first are read for nothing else.
        self.seam_pixels = min(-(-BATCH // workload.out_channels), workload.out_size[1] // _PARTS)
        least = self.seam_pixels if self.by_columns else workload.out_size[1]
        self.beside = Beside(workload, least, kernels.binarize)
        shift = [self.rows_in.shift_argument(len(argument_specs(workload)) - 1)] if workload.shift else []
        self.tables = [*shift, *self.beside.arguments]
        self.micro += self.beside.microkernels
        #: Tiles whose phases are laid out together: fewer, twice as often at seams, where threads share the L2 cache.
        self.together = self.block if threads > 1 else self.tiles[1]
        #: Columns of the phases that these reach.
        self.columns = _OUTPUTS * self.together + _TAPS - 1

    @property
    def packer(self) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        """Weights OHWI, divided by phases, transformed and in panels."""
        return self._pack

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        weights, side = arrays[0], _STRIDE * _TAPS
        count, height, width, channels = weights.shape
        full = np.zeros((count, side, side, channels), weights.dtype)
        full[:, :height, :width] = weights
        taps = full.reshape(count, _TAPS, _STRIDE, _TAPS, _STRIDE, channels).transpose(0, 1, 3, 2, 4, 5)
        return self.packing([taps.reshape(count, _TAPS, _TAPS, -1)])

    def _body(self) -> None:
        self.shift = self.table_buffers[0] if self.layer.shift else None
        self.bits = outputs(self.layer)
        self.floats = loops.flat(self.out, math.prod(self.out_spec[0]))
        if self.by_columns:
            self._columns_body()
            return
        if self.joining:
            self._joining_body()
            return
        if self.overlapping:
            self._pooled_body()
            return
        self.result = self.floats
        with T.parallel(self.tiles[0]) as strip:
            self._strip(strip)
            first = strip * self.results[0]
            self._signs(first, tirx.min(first + self.results[0], self.size[0]) - first)

    def _signs(self, row: Any, rows: Any) -> None:
        """The signs of ``rows`` rows of the result from ``row`` on, which are done."""
        width = self.layer.out_size[1]
        self._signs_of_pixels(row * width, rows * width)

    def _signs_of_pixels(self, first: Any, pixels: Any) -> None:
        """The signs of ``pixels`` neighbours from pixel ``first`` of the result on, which are done."""
        tables = self.table_buffers[int(self.layer.shift) :]
        self.beside.emit_run(self.floats, first * self.layer.out_channels, first, pixels, tables, self.bits)

    def _pooled_body(self) -> None:
        """A part of the strips for each thread. Windows at the parts' seams get their first row when all are done."""
        row = self.size[1] * self.layer.out_channels
        strips = self.tiles[0]
        parts = min(_PARTS, strips)
        seams = T.alloc_buffer((1, parts, *self.size[1:], self.layer.out_channels), "float32")
        self.seams = loops.flat(seams, parts * row)
        with T.parallel(parts) as part:
            self.result = T.alloc_buffer(((_OUTPUTS + 1) * row,), "float32")
            begin, end = (bound * strips // parts for bound in (part, part + 1))
            # A maximum does not see what lies outside.
            loops.fill(self.result, 0, row, float(np.finfo("float32").min))
            with T.serial(begin, end) as strip:
                self.first_row = strip * _OUTPUTS
                self._strip(strip)
                self._pool(strip)
                loops.copy(self.result, 0, self.result, _OUTPUTS * row, row)
            loops.copy(self.seams, part * row, self.result, 0, row)
        for part in range(1, parts):
            y = part * strips // parts * (_OUTPUTS // _STRIDE)
            self._join(seams, part - 1, y)
            self._signs(y, 1)

    def _joining_body(self) -> None:
        """A part of the strips for each thread. A strip adds to two rows of maxima, and to the first one of the next strip."""
        row = self.layer.out_size[1] * self.layer.out_channels
        strips, least = self.tiles[0], float(np.finfo("float32").min)
        parts = min(_PARTS, strips)
        self.result = result = self.floats
        seams = T.alloc_buffer((parts * row,), "float32")
        with T.parallel(parts) as part:
            self.next_row = T.alloc_buffer((row,), "float32")
            begin, end = (bound * strips // parts for bound in (part, part + 1))
            loops.fill(self.next_row, 0, row, least)
            with T.serial(begin, end) as strip:
                self.first_row = strip * 2
                loops.copy(self.result, self.first_row * row, self.next_row, 0, row)
                loops.fill(self.result, (self.first_row + 1) * row, row, least)
                loops.fill(self.next_row, 0, row, least)
                self.windows = 0, self.layer.out_size[1]
                self._strip(strip)
                self._signs(self.first_row, 2)
            loops.copy(seams, part * row, self.next_row, 0, row)
        for part in range(1, parts):
            first = part * strips // parts * (2 * row)

            def join(i: Any, first: int = first, seam: int = (part - 1) * row) -> None:
                T.buffer_store(result, tirx.max(result[first + i], seams[seam + i]), [first + i])

            loops.sweep(row, join)
            self._signs(part * strips // parts * 2, 1)

    def _columns_body(self) -> None:
        """As ``_joining_body``; a part is a quarter of all strips. What its last tiles add to the next one's maxima waits."""
        (height, width), channels = self.layer.out_size, self.layer.out_channels
        row, part_row, least = width * channels, width // _PARTS * channels, float(np.finfo("float32").min)
        self.result = result = self.floats
        # A row more than there are: the last strip adds to it.
        seam = (height + 1) * channels
        self.seams = T.alloc_buffer((_PARTS * seam,), "float32")
        with T.parallel(_PARTS) as part:
            self.next_row = T.alloc_buffer((part_row,), "float32")
            self.seam = part * seam
            loops.fill(self.seams, self.seam, seam, least)
            loops.fill(self.next_row, 0, part_row, least)
            with T.serial(self.tiles[0]) as strip:
                self.first_row = strip * 2
                begin = self.first_row * row + part * part_row
                loops.copy(self.result, begin, self.next_row, 0, part_row)
                loops.fill(self.result, begin + row, part_row, least)
                loops.fill(self.next_row, 0, part_row, least)
                self.windows = part * (width // _PARTS), width // _PARTS
                self._of_block(strip, part)
                for number in range(2):
                    self._signs_of_pixels((self.first_row + number) * width + self.windows[0], self.windows[1])
        for part in range(_PARTS - 1):
            with T.parallel(height) as y:

                def join(i: Any, part: int = part, y: Any = y) -> None:
                    at = y * row + (part + 1) * part_row + i
                    T.buffer_store(result, tirx.max(result[at], self.seams[part * seam + y * channels + i]), [at])

                loops.sweep(channels, join)
                self._signs_of_pixels(y * width + (part + 1) * (width // _PARTS), self.seam_pixels)

    def _of_block(self, strip: Any, block: Any) -> None:
        """A block of a strip, the number of which is the part's."""
        self._allocate()
        self.first_tile = block * self.block
        for number in range(_PARTS):
            with T.If(block == number), T.Then():
                self._phases(strip, number * self.block)
        self._block(strip * self.tiles[1] + self.first_tile, self.block, T.serial)

    def _store(self, outputs: list[list[Any]], pixel: tuple[Any, Any], channel: Any) -> None:
        """Four channels of a tile's results, or of the maxima over its rows and columns 0 and 1, 1 to 3, and 3."""
        if not self.joining:
            super()._store(outputs, pixel, channel)
            return
        steps, width = self.left, self.layer.out_size[1]
        where = (pixel[0], pixel[1], four_from(channel))
        after = all(map(commutes_with_maximum, steps))
        if not after:
            whole = range(_OUTPUTS)
            outputs = [[T.bind(self._final(outputs, pixel, (dy, dx), channel)) for dx in whole] for dy in whole]
        by_rows = _joined(outputs, lambda one, two: [T.bind(tirx.max(a, b)) for a, b in zip(one, two, strict=True)])
        for place_y, rows in enumerate(by_rows):
            for place_x, value in enumerate(_joined(rows, lambda one, two: T.bind(tirx.max(one, two)))):
                x, channels = pixel[1] // _STRIDE + place_x, self.layer.out_channels
                maxima, pixels = self.result, (self.first_row + place_y) * width + x
                if place_y == 2:
                    maxima, pixels = self.next_row, x - self.windows[0]

                def join(maxima: Any = maxima, value: Any = value, at: Any = pixels * channels) -> None:
                    final = expression(steps, value, self.left_operands, where) if after else value
                    at = four_from(at + channel)
                    T.buffer_store(maxima, tirx.max(maxima[at], final), [at])

                if place_x < 2:
                    join()
                    continue
                with T.If(x < self.windows[0] + self.windows[1]):
                    with T.Then():
                        join()
                    if self.by_columns:
                        with T.Else():
                            join(self.seams, at=self.seam + (self.first_row + place_y) * channels)

    def _strip(self, strip: Any) -> None:
        """The convolution's rows of a strip."""
        self._allocate()
        self.first_tile = 0
        apart = self.together < self.tiles[1]
        if not apart:
            self._phases(strip, 0)
        for run in split(self.tiles[1], self.block):
            with T.serial(run.count) as block:
                first = run.first + block * run.size
                if apart:
                    self.first_tile = first
                    for number in range(run.count):
                        with T.If(block == number), T.Then():
                            self._phases(strip, run.first + number * run.size)
                self._block(strip * self.tiles[1] + first, run.used, T.serial)

    def _allocate(self) -> None:
        """Room for phases."""
        self.image = T.alloc_buffer((self.points[0] * self.columns * self.workload.channels,), "float32")

    def _phases(self, strip: Any, first_tile: int) -> None:
        """Lays out the rows of the image for a block: pairs of adjacent pixels are adjacent in the phases too."""
        pair, phases = _STRIDE * self.layer.channels, self.workload.channels
        first, pixels = _STRIDE * _OUTPUTS * first_tile, _STRIDE * self.columns
        line = T.alloc_buffer((self.columns * pair,), "float32")
        data = loops.flat(self.data[0], self.layer.height * self.layer.width * self.layer.channels)
        with T.serial(self.points[0]) as row, T.serial(_STRIDE) as odd:
            y = (strip * _OUTPUTS + row) * _STRIDE + odd - self.layer.padding[0]
            self.rows_in.fill_pixels(line, 0, data, y, first, pixels, self.shift)
            with T.serial(self.columns) as column:
                to = (row * self.columns + column) * phases + odd * pair
                loops.copy(self.image, to, line, column * pair, pair)

    def _transform_image(self, data: Any, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        phases = self.workload.channels
        with loop(tiles) as tile:
            within = tile % self.side
            start = ((first + tile) % self.tiles[1] - self.first_tile) * (_OUTPUTS * phases)
            patch = Patch(self.image, start, self.columns * phases, phases)
            self._transform_patch(data, (tile - within) * self.data_pitch + within, patch, 0, phases)

    def _claim(self, first: Any, tiles: int) -> None:
        if not self.overlapping:
            super()._claim(first, tiles)

    def _place(self, y: Any, x: Any) -> Any:
        if self.overlapping:
            y = y - self.first_row + 1
        return super()._place(y, x)

    def _window(self, rows: int, step: int) -> Pool:
        """The pool's window over ``rows`` rows, without what reaches beyond the top and the bottom."""
        assert self.overlapping
        _, left, _, right = self.overlapping.padding
        return Pool((rows, 3), (step, 2), (0, left, 0, right))

    def _pool(self, strip: Any) -> None:
        """The strip's rows of the result."""
        size, channels = (_OUTPUTS + 1, self.size[1]), self.layer.out_channels
        window = self._window(3, 2)
        with T.serial(_OUTPUTS // _STRIDE) as row:
            y = strip * (_OUTPUTS // _STRIDE) + row
            self.micro += pool2d.emit_row(self.out, y, self.result, size, window, channels, row, self.set)
            self._signs(y, 1)

    def _join(self, seams: Any, part: int, y: int) -> None:
        """Row ``y`` of the result, whose windows begin in the last row of ``part``."""

        def store(x: Any, channel: Any, value: Any) -> None:
            T.buffer_store(self.out, tirx.max(self.out[0, y, x, channel], value), [0, y, x, channel])

        pool2d.pool_row(seams, self._window(1, 1), part, store)


def _joined(values: Sequence[Any], largest: Callable[[Any, Any], Any]) -> list[Any]:
    """Of four in a row the larger of 0 and 1, the largest of 1 to 3, and 3: parts of three windows, two apart."""
    zero, one, two, three = values
    return [largest(zero, one), largest(largest(one, two), three), three]
