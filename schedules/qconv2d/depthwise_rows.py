"""Depthwise convolution of whole numbers with windows of other sizes than 3x3, a block of channels at a time.

A block is a cache line of channels at most. Its part of the image, some rows of it, is copied with its border into the L1
cache, pixel by pixel, where every row of results then finds it; threads share blocks and strips of rows. Weights are packed
[block][panel][row][column][channel].
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
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.microkernels.a53.idepthwise_rows import MOST_COLUMNS, WholeDepthwiseRows
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES
from bitkiln.schedules.qconv2d import tables
from bitkiln.schedules.workload import QConv2d

#: Results of a tile, at most; panels of channels that are a cache line; bytes of an image's part that stay in the L1 cache.
_TILE, _LINE, _PART = 7, 8, 20 * 1024
#: Results of a tile where it is narrower.
_NARROW = 4


def applies(workload: QConv2d) -> bool:
    """Whether the micro-kernel computes it: a panel of channels at least, equal strides, a window that is not too wide."""
    window = workload.kernel[1] <= MOST_COLUMNS and workload.dilation == (1, 1)
    steps = workload.strides in ((1, 1), (2, 2))
    return workload.depthwise and window and steps and workload.channels >= CHANNELS


def emit(workload: QConv2d) -> Kernel:
    """The implementation."""
    return _Blocks(workload).kernel()


class _Blocks:
    def __init__(self, workload: QConv2d) -> None:
        self.workload = workload
        self.height, self.width = workload.out_size
        self.stride = workload.strides[0]
        tile = min(self.width, min((_TILE, 6, 5, _NARROW), key=lambda each: -(-self.width // each) * (each + 1)))
        self.micro = WholeDepthwiseRows(workload.kernel, self.stride, tile, self.width % tile, tables.limited(workload))
        self.tiles = -(-self.width // tile)
        panels = workload.channels // CHANNELS
        self.blocks = -(-panels // _LINE)
        self.panels = -(-panels // self.blocks)
        self.bytes = self.panels * CHANNELS
        if self.blocks * self.bytes < workload.channels:
            self.blocks += 1
        self.row = (workload.padding[1] + workload.width + workload.padding[3]) * self.bytes
        rows = max(self.stride, _PART // self.row - workload.kernel[0])
        self.strips = -(-self.height // max(1, min(self.height, rows // self.stride)))
        self.rows = -(-self.height // self.strips)
        self.size = workload.kernel[0] * workload.kernel[1] * CHANNELS

    def kernel(self) -> Kernel:
        (data_shape, _), *_, (out_shape, _) = self.workload.shapes
        panels = self.blocks * self.panels
        arguments = (
            Argument((0,), data_shape, "int8"),
            Argument((1,), (panels * self.size,), "int16", self.pack),
            Argument((1, 2, 3), (panels * TABLE_BYTES,), "int8", self.tables),
        )
        with IRBuilder() as builder, T.prim_func():
            T.func_name("qconv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.table = loops.parameters(arguments)
            self.out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), math.prod(out_shape), "int8")
            self.image = loops.flat(data, math.prod(data_shape), "int8")
            with T.parallel(self.blocks * self.strips) as task:
                self._part(task % self.blocks, task // self.blocks)
        notes = f"tiles of {self.micro.tile} pixels x {CHANNELS} channels, {self.bytes} channels at a time"
        return Kernel(builder.get(), arguments, (self.micro,), notes)

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels."""
        taps = arrays[0].reshape(self.workload.channels, -1).astype(np.int16)
        return np.concatenate([taps[first : first + CHANNELS].T.ravel() for first in self._firsts()])

    def tables(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What the sums of each panel end with."""
        return tables.of(self.workload, arrays, self._firsts())

    def _firsts(self) -> list[int]:
        """The first channel of each panel of each block; the last block repeats some of the one before."""
        blocks = [min(block * self.bytes, self.workload.channels - self.bytes) for block in range(self.blocks)]
        return [first + panel * CHANNELS for first in blocks for panel in range(self.panels)]

    def _part(self, block: Any, strip: Any) -> None:
        """The results of a block of channels in a strip of rows."""
        work = self.workload
        rows = (self.rows - 1) * self.stride + work.kernel[0]
        part = T.alloc_buffer((rows * self.row,), "int8")
        channel = T.bind(tirx.min(block * self.bytes, work.channels - self.bytes))
        begin = T.bind(tirx.min(strip * self.rows, self.height - self.rows))
        with T.serial(rows) as row:
            self._copy(part, row * self.row, begin * self.stride + row, channel)
        with T.serial(self.panels) as panel, T.serial(self.rows) as y:
            self._results(part, block * self.panels + panel, channel + panel * CHANNELS, panel * CHANNELS, begin, y)

    def _copy(self, part: Any, to: Any, y: Any, channel: Any) -> None:
        """Row ``y``, counted with the border, of a block of channels."""
        work = self.workload
        top, left, _, right = work.padding
        zero = tirx.const(work.zero, "int8")

        def fill(start: Any, extent: int) -> None:
            loops.sweep(extent, lambda i: T.buffer_store(part, zero, [start + i]))

        with T.If(tirx.all(y >= top, y < top + work.height)):
            with T.Then():
                fill(to, left * self.bytes)
                with T.serial(work.width) as x:
                    pixel = ((y - top) * work.width + x) * work.channels + channel
                    at = to + (left + x) * self.bytes
                    loops.sweep(self.bytes, lambda i: T.buffer_store(part, self.image[pixel + i], [at + i]))
                fill(to + (left + work.width) * self.bytes, right * self.bytes)
            with T.Else():
                fill(to, self.row)

    def _results(self, part: Any, panel: Any, channel: Any, at: Any, begin: Any, y: Any) -> None:
        work = self.workload
        T.evaluate(
            T.call_extern(
                "int32",
                self.micro.symbol,
                T.address_of(self.out[(begin + y) * (self.width * work.channels) + channel]),
                T.int64(work.channels),
                T.address_of(part[y * (self.stride * self.row) + at]),
                T.int64(self.row),
                T.int64(self.bytes),
                T.address_of(self.weights[panel * self.size]),
                T.address_of(self.table[panel * TABLE_BYTES]),
                T.int64(self.tiles),
            )
        )
