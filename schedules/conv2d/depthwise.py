"""Depthwise convolution for any machine: each channel on its own, vectors of channels, a few neighbouring pixels at a time.

The input is read in place. Which taps fall on the border's zeros is known for each row and each group of pixels when the
kernel is emitted, so those taps are left out instead of padding the image. Weights are packed [ky][kx][channel].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.steps import expression
from bitkiln.schedules.workload import Conv2d

#: Channels of a vector.
_LANES = 4
#: Output pixels whose sums are held together; neighbours share taps, which LLVM then loads once.
PIXELS = (2, 4, 6)


def applies(workload: Conv2d) -> bool:
    """Whether ``workload`` is depthwise with one output channel for each input channel."""
    return workload.depthwise and workload.out_channels == workload.channels


def emit(workload: Conv2d, pixels: int) -> Kernel:
    """The implementation with ``pixels`` output pixels at a time."""
    return _Depthwise(workload, pixels).kernel()


class _Depthwise:
    def __init__(self, workload: Conv2d, pixels: int) -> None:
        self.workload = workload
        self.pixels = pixels
        self.straight = not workload.pool and workload.out == "float32"

    def kernel(self) -> Kernel:
        (data_shape, _), _, *operands, (out_shape, out_dtype) = self.workload.shapes
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument(
                (1,), (self.workload.kernel[0] * self.workload.kernel[1] * self.workload.channels,), "float32", pack
            ),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, *self.operands = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self._body(data, out)
        return Kernel(builder.get(), tuple(arguments), (), f"depthwise, {self.pixels} pixels at a time")

    def _body(self, data: Any, out: Any) -> None:
        work = self.workload
        size = work.conv_size[0] * work.conv_size[1] * work.channels
        self.image = loops.flat(data, work.height * work.width * work.channels)
        self.result = loops.flat(out, size) if self.straight else T.alloc_buffer((size,), "float32")
        for first, count in runs([taps_inside(self.workload, y, 0) for y in range(work.conv_size[0])]):
            with T.parallel(count) as index:
                self._row(first + index, taps_inside(self.workload, first, 0))
        if not self.straight:
            loops.finish(work, self.result, out)

    def _row(self, y: Any, rows: Sequence[int]) -> None:
        """An output row whose taps in y are ``rows``."""
        width = self.workload.conv_size[1]
        groups = [range(first, min(first + self.pixels, width)) for first in range(0, width, self.pixels)]
        taps = [tuple(taps_inside(self.workload, x, 1) for x in group) for group in groups]
        for first, count in runs(taps):
            with T.serial(count) as index:
                self._group(y, groups[first].start + index * self.pixels, rows, taps[first])

    def _group(self, y: Any, x: Any, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        """Pixels from ``x`` on, whose taps in x are ``columns``."""
        channels = self.workload.channels
        whole = channels // _LANES * _LANES
        if whole:
            with T.serial(whole // _LANES) as vector:
                self._pixels(y, x, rows, columns, vector * _LANES, _LANES)
        if channels > whole:
            with T.serial(channels - whole) as channel:
                self._pixels(y, x, rows, columns, whole + channel, 1)

    def _pixels(
        self, y: Any, x: Any, rows: Sequence[int], columns: Sequence[Sequence[int]], channel: Any, lanes: int
    ) -> None:
        work = self.workload

        def lane(index: Any) -> Any:
            return T.ramp(index, 1, lanes) if lanes > 1 else index

        zero = tirx.const(0, "float32")
        sums = [T.bind(T.broadcast(zero, lanes) if lanes > 1 else zero) for _ in columns]
        top = y * work.strides[0] - work.padding[0]
        left = x * work.strides[1] - work.padding[1]
        for ky in rows:
            for kx in range(work.kernel[1]):
                weight = T.bind(self.weights[lane((ky * work.kernel[1] + kx) * work.channels + channel)])
                for m, taps in enumerate(columns):
                    if kx in taps:
                        row, column = top + ky * work.dilation[0], left + m * work.strides[1] + kx * work.dilation[1]
                        value = self.image[lane((row * work.width + column) * work.channels + channel)]
                        sums[m] = T.bind(T.fma(value, weight, sums[m]))
        for m, value in enumerate(sums):
            final = expression(work.epilogue, value, self.operands, (y, x + m, lane(channel)))
            T.buffer_store(self.result, final, [lane((y * work.conv_size[1] + x + m) * work.channels + channel)])


def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights [C, kh, kw, 1] as [kh][kw][C]."""
    return np.ascontiguousarray(arrays[0][..., 0].transpose(1, 2, 0)).ravel()


def taps_inside(workload: Conv2d, at: int, axis: int) -> tuple[int, ...]:
    """Taps along ``axis`` that lie inside the image for output position ``at``."""
    start = at * workload.strides[axis] - workload.padding[axis]
    extent = (workload.height, workload.width)[axis]
    return tuple(k for k in range(workload.kernel[axis]) if 0 <= start + k * workload.dilation[axis] < extent)


def runs(items: Sequence[Any]) -> list[tuple[int, int]]:
    """Runs of equal neighbours: first index and count."""
    starts = [i for i, item in enumerate(items) if i == 0 or item != items[i - 1]]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(items)], strict=True)]
