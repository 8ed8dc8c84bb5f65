"""Depthwise 3x3 convolution of whole numbers: rows of the image with their border in a ring, results row by row.

Threads take strips of result rows. A strip keeps three rows of the image, with what its border holds, in the L1 cache; every
row of results is computed 8 channels at a time. Weights are packed [panel][row][column][channel].
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
from bitkiln.schedules.microkernels.a53.idepthwise import TAPS, TILE, WholeDepthwise
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES
from bitkiln.schedules.qconv2d import tables
from bitkiln.schedules.qconv2d.plain import Bordered
from bitkiln.schedules.workload import QConv2d

#: Rows of a ring: those that a row of results reads.
_RING = TAPS
#: Strips that threads share: as many as any of our boards has cores.
_STRIPS = 4


def applies(workload: QConv2d) -> bool:
    """Whether the micro-kernel computes it: 3x3, stride 1 or 2, a panel of channels and a tile of results at least."""
    window = workload.kernel == (TAPS, TAPS) and workload.dilation == (1, 1) and workload.strides in ((1, 1), (2, 2))
    return workload.depthwise and window and workload.channels >= CHANNELS and workload.out_size[1] >= TILE


def emit(workload: QConv2d) -> Kernel:
    """The implementation."""
    return _Depthwise(workload).kernel()


class _Depthwise:
    def __init__(self, workload: QConv2d) -> None:
        self.workload = workload
        self.height, self.width = workload.out_size
        self.stride = workload.strides[0]
        self.micro = WholeDepthwise(self.stride, self.width % TILE, tables.limited(workload))
        self.panels = len(tables.firsts(workload.channels))
        self.row = (workload.padding[1] + workload.width + workload.padding[3]) * workload.channels

    def kernel(self) -> Kernel:
        (data_shape, _), *_, (out_shape, _) = self.workload.shapes
        arguments = (
            Argument((0,), data_shape, "int8"),
            Argument((1,), (self.panels * TAPS * TAPS * CHANNELS,), "int16", self.pack),
            Argument((1, 2, 3), (self.panels * TABLE_BYTES,), "int8", self.tables),
        )
        with IRBuilder() as builder, T.prim_func():
            T.func_name("qconv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.table = loops.parameters(arguments)
            self.out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), math.prod(out_shape), "int8")
            self.image = loops.flat(data, math.prod(data_shape), "int8")
            strips = min(self.height, _STRIPS)
            with T.parallel(strips) as strip:
                self._strip(strip * self.height // strips, (strip + 1) * self.height // strips)
        return Kernel(builder.get(), arguments, (self.micro,), f"tiles of {TILE} pixels x {CHANNELS} channels")

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels."""
        taps = arrays[0].reshape(self.workload.channels, -1)
        starts = tables.firsts(self.workload.channels)
        return np.concatenate([taps[first : first + CHANNELS].T.astype(np.int16).ravel() for first in starts])

    def tables(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What the sums of each panel end with."""
        return tables.of(self.workload, arrays)

    def _strip(self, begin: Any, end: Any) -> None:
        """Rows of results from ``begin`` to ``end``."""
        ring = T.alloc_buffer((_RING * self.row,), "int8")
        bordered = Bordered(self.workload, self.image)
        known = TAPS - self.stride
        with T.serial(known) as row:
            bordered.copy_row(ring, (begin * self.stride + row) % _RING * self.row, begin * self.stride + row)
        with T.serial(begin, end) as y:
            with T.serial(self.stride) as more:
                row = y * self.stride + known + more
                bordered.copy_row(ring, row % _RING * self.row, row)
            with T.serial(self.panels) as panel:
                self._panel(ring, y, panel)

    def _panel(self, ring: Any, y: Any, panel: Any) -> None:
        work = self.workload
        channel = tirx.min(panel * CHANNELS, work.channels - CHANNELS)
        # While a row of results is computed, the rows of the image that the next one reads first are fetched.
        done = (y + 1) * self.stride + TAPS - self.stride - work.padding[0]
        ahead = tirx.max(done * work.width, 0) * work.channels + panel * (-(-self.width // TILE) * self.micro.fetched)
        rows = [(y * self.stride + row) % _RING * self.row + channel for row in range(TAPS)]
        T.evaluate(
            T.call_extern(
                "int32",
                self.micro.symbol,
                T.address_of(self.out[y * self.width * work.channels + channel]),
                T.int64(work.channels),
                *(T.address_of(ring[row]) for row in rows),
                T.address_of(self.weights[panel * (TAPS * TAPS * CHANNELS)]),
                T.address_of(self.table[panel * TABLE_BYTES]),
                T.int64(-(-self.width // TILE)),
                T.address_of(self.image[tirx.min(ahead, math.prod(work.shapes[0][0][1:]) - 1)]),
            )
        )
