"""First layers of 7x7 and 8x8 kernels with stride 2, by Winograd's minimal filtering.

The even and the odd rows and columns of the image, four *phases*, each meet a quarter of the taps, with stride 1: the layer is
a 4x4 convolution of an image of half the size and four times the channels. F(4x4, 4x4) makes 16 outputs of it with 49
multiplications for each of these channels, where the direct sum has 147 to 192 for each output.

A strip is a row of tiles. The seven rows of phases that it needs are laid out [row][column][phase][channel] in a buffer that
stays in the caches; then come the steps of ``conv2d_winograd``. A 3x3 maximum of stride 2 follows strip by strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops, pool2d
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.stem_image import ImageRows
from bitkiln.schedules.conv2d.winograd import Winograd
from bitkiln.schedules.conv2d.winograd_transforms import FOUR_TAPS
from bitkiln.schedules.kernel import Kernel
from bitkiln.schedules.workload import Conv2d, Pool

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


def emit(workload: Conv2d, tile: tuple[int, int], block: int) -> Kernel:
    """The implementation with register ``tile`` (Winograd tiles, channels), ``block`` groups of them at a time."""
    return _Phases(workload, tile, block).kernel()


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

    def __init__(self, workload: Conv2d, tile: tuple[int, int], block: int) -> None:
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
        super().__init__(phases, (_OUTPUTS, _OUTPUTS), tile, block)
        self.layer = workload
        self.rows_in = ImageRows(workload)
        self.data_shape, self.out_spec = workload.shapes[0][0], workload.shapes[-1]
        operands = len(workload.shapes) - 3 - workload.shift
        self.tables = [self.rows_in.shift_argument(2 + operands)] if workload.shift else []
        #: Columns of the phases that a strip's tiles reach.
        self.columns = _OUTPUTS * self.tiles[1] + _TAPS - 1

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI, divided by phases, transformed and in panels."""
        weights, side = arrays[0], _STRIDE * _TAPS
        count, height, width, channels = weights.shape
        full = np.zeros((count, side, side, channels), weights.dtype)
        full[:, :height, :width] = weights
        taps = full.reshape(count, _TAPS, _STRIDE, _TAPS, _STRIDE, channels).transpose(0, 1, 3, 2, 4, 5)
        return super().pack([taps.reshape(count, _TAPS, _TAPS, -1)])

    def _body(self) -> None:
        self.shift = self.table_buffers[0] if self.layer.shift else None
        if self.overlapping:
            self._pooled_body()
            return
        self.result = loops.flat(self.out, self.size[0] * self.size[1] * self.layer.out_channels)
        with T.parallel(self.tiles[0]) as strip:
            self._strip(strip)

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
            self._join(seams, part - 1, part * strips // parts * (_OUTPUTS // _STRIDE))

    def _strip(self, strip: Any) -> None:
        """The convolution's rows of a strip."""
        phases, points = self.workload.channels, self.points[0]
        self.image = T.alloc_buffer((points * self.columns * phases,), "float32")
        self._phases(strip)
        for run in split(self.tiles[1], self.block):
            with T.serial(run.count) as block:
                self._block(strip * self.tiles[1] + run.first + block * run.size, run.used, T.serial)

    def _phases(self, strip: Any) -> None:
        """Lays out the image's rows: pairs of adjacent pixels are adjacent in the phases too."""
        pair, phases = _STRIDE * self.layer.channels, self.workload.channels
        used = self.columns * pair
        line = T.alloc_buffer((max(used, self.rows_in.pitch),), "float32")
        loops.fill(line, self.rows_in.pitch, used - self.rows_in.pitch)
        data = loops.flat(self.data, self.layer.height * self.layer.width * self.layer.channels)
        with T.serial(self.points[0]) as row, T.serial(_STRIDE) as odd:
            y = (strip * _OUTPUTS + row) * _STRIDE + odd - self.layer.padding[0]
            self.rows_in.fill(line, 0, data, y, 0, self.shift)
            with T.serial(self.columns) as column:
                to = (row * self.columns + column) * phases + odd * pair
                loops.copy(self.image, to, line, column * pair, pair)

    def _transform_data(self, data: Any, to: Any, tile: Any) -> None:
        phases = self.workload.channels
        start = tile % self.tiles[1] * (_OUTPUTS * phases)
        self._transform_patch(data, to, self.image, start, self.columns * phases)

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
            self.micro += pool2d.emit_row(self.out, y, self.result, size, window, channels, row)

    def _join(self, seams: Any, part: int, y: int) -> None:
        """Row ``y`` of the result, whose windows begin in the last row of ``part``."""

        def store(x: Any, channel: Any, value: Any) -> None:
            T.buffer_store(self.out, tirx.max(self.out[0, y, x, channel], value), [0, y, x, channel])

        pool2d.pool_row(seams, self._window(1, 1), part, store)
