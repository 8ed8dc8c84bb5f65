"""Convolution of whole numbers by plain loops, for what no micro-kernel serves and for CPUs that have none.

Weights are packed [group][tap][channel of the group][output channel of the group]; sums have 32 bits. A pixel's sums are a
buffer in the L1 cache, along whose channels loops are vectorised.
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
from bitkiln.schedules.qconv2d.tables import shifted_bias
from bitkiln.schedules.workload import QConv2d

#: Bytes handled at once where an image is copied.
_BYTES = 64


def rescaled(workload: QConv2d, total: tirx.PrimExpr, factor: tirx.PrimExpr) -> tirx.PrimExpr:
    """The result of a sum with its bias, int32 -> int8."""
    value = tirx.nearbyint(total.astype("float32") * factor) + tirx.const(workload.out_zero, "float32")
    bounds = (tirx.const(each, "float32") for each in (workload.low, workload.high))
    low, high = bounds
    return tirx.min(tirx.max(value, low), high).astype("int8")


class Bordered:
    """An image int8, flat, as it looks with its border of ``zero``; rows are counted with the border."""

    def __init__(self, workload: QConv2d, data: Any) -> None:
        self._workload, self._data = workload, data
        top, left, bottom, right = workload.padding
        self.rows = top + workload.height + bottom
        self.row = (left + workload.width + right) * workload.channels

    def copy_row(self, target: Any, to: Any, y: Any) -> None:
        """Writes row ``y`` to ``target`` from ``to`` on."""
        work = self._workload
        top, left, bottom, right = work.padding
        pitch = work.width * work.channels

        def inside() -> None:
            self.fill(target, to, left * work.channels)
            start, source = to + left * work.channels, (y - top) * pitch
            loops.sweep(pitch, lambda i: T.buffer_store(target, self._data[source + i], [start + i]), _BYTES)
            self.fill(target, start + pitch, right * work.channels)

        if not (top or bottom):
            inside()
            return
        with T.If(tirx.all(y >= top, y < top + work.height)):
            with T.Then():
                inside()
            with T.Else():
                self.fill(target, to, self.row)

    def fill(self, target: Any, to: Any, extent: int) -> None:
        """Writes ``extent`` bytes of border."""
        value = tirx.const(self._workload.zero, "int8")
        loops.sweep(extent, lambda i: T.buffer_store(target, value, [to + i]), _BYTES)


def padded_image(workload: QConv2d, data: Any, slack: int = 0) -> Any:
    """A copy of the flat image with its border, and ``slack`` more bytes behind it."""
    bordered = Bordered(workload, data)
    size = bordered.rows * bordered.row
    padded = T.alloc_buffer((size + slack,), "int8")
    with T.parallel(bordered.rows) as y:
        bordered.copy_row(padded, y * bordered.row, y)
    bordered.fill(padded, size, slack)
    return padded


def emit(workload: QConv2d) -> Kernel:
    """The implementation."""
    return _Plain(workload).kernel()


class _Plain:
    def __init__(self, workload: QConv2d) -> None:
        self.workload = workload
        self.ins, self.outs = workload.channels // workload.groups, workload.out_channels // workload.groups

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), (weight_shape, _), *_, (out_shape, _) = work.shapes
        arguments = (
            Argument((0,), data_shape, "int8"),
            Argument((1,), (math.prod(weight_shape),), "int16", self.pack),
            Argument((1, 2), (work.out_channels,), "int32", lambda arrays: shifted_bias(work, *arrays)),
            Argument((3,), (work.out_channels,), "float32"),
        )
        with IRBuilder() as builder, T.prim_func():
            T.func_name("qconv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.bias, self.factor = loops.parameters(arguments)
            self.out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), math.prod(out_shape), "int8")
            flat = loops.flat(data, math.prod(data_shape), "int8")
            self.image = padded_image(work, flat) if any(work.padding) else flat
            height, width = work.out_size
            with T.parallel(height) as y, T.serial(width) as x:
                self._pixel(y, x)
        return Kernel(builder.get(), arguments, notes="plain, sums of 32 bits")

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI, flat; depthwise ones as [tap][channel]."""
        work = self.workload
        if work.depthwise:
            return np.ascontiguousarray(arrays[0].reshape(work.channels, -1).T).ravel()
        grouped = arrays[0].reshape(work.groups, self.outs, -1)
        return np.ascontiguousarray(grouped.transpose(0, 2, 1)).ravel()

    def _pixel(self, y: Any, x: Any) -> None:
        work = self.workload
        sums = T.alloc_buffer((work.out_channels,), "int32")
        loops.sweep(work.out_channels, lambda o: T.buffer_store(sums, self.bias[o], [o]))
        pitch = (work.padding[1] + work.width + work.padding[3]) * work.channels
        with T.serial(work.kernel[0]) as ry, T.serial(work.kernel[1]) as rx:
            row = y * work.strides[0] + ry * work.dilation[0]
            at = row * pitch + (x * work.strides[1] + rx * work.dilation[1]) * work.channels
            tap = ry * work.kernel[1] + rx
            if work.depthwise:
                self._add(sums, 0, work.channels, lambda c: self.image[at + c], tap * work.channels)
            else:
                self._tap(sums, at, tap)
        to = (y * work.out_size[1] + x) * work.out_channels
        loops.sweep(
            work.out_channels,
            lambda o: T.buffer_store(self.out, rescaled(work, sums[o], self.factor[o]), [to + o]),
        )

    def _tap(self, sums: Any, at: Any, tap: Any) -> None:
        work = self.workload
        with T.serial(work.groups) as group, T.serial(self.ins) as channel:
            value = T.bind(self.image[at + group * self.ins + channel].astype("int16"))
            taps = work.kernel[0] * work.kernel[1]
            weights = ((group * taps + tap) * self.ins + channel) * self.outs
            self._add(sums, group * self.outs, self.outs, lambda _: value, weights)

    def _add(self, sums: Any, to: Any, extent: int, value: Any, weights: Any) -> None:
        """sums[to + o] += value(o) * weight o, for ``extent`` outputs."""

        def element(o: Any) -> None:
            product = value(o).astype("int32") * self.weights[weights + o].astype("int32")
            T.buffer_store(sums, sums[to + o] + product, [to + o])

        loops.sweep(extent, element)
