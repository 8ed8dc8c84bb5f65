"""Transposed depthwise convolution, such as the upsampling of segmentation networks: phase by phase, vectors of channels.

Few multiplications for each value that is read and written: the result's rows are made in order, pixel by pixel.
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
from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.conv2d_transpose.phases import Phase, border, phases
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.workload import ConvTranspose2d


def applies(workload: ConvTranspose2d) -> bool:
    """Whether each group has one input and one output channel."""
    return workload.groups == workload.channels == workload.out_channels and workload.groups > 1


def emit(workload: ConvTranspose2d) -> Kernel:
    """The implementation."""
    return _Depthwise(workload).kernel()


class _Depthwise:
    def __init__(self, workload: ConvTranspose2d) -> None:
        self.workload = workload
        self.border = border(workload)
        self.pitch = (self.border[1] + workload.width + self.border[3]) * workload.channels

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), (weight_shape, _), *operands, (out_shape, _) = work.shapes
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (math.prod(weight_shape),), "float32", pack),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d_transpose")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, *self.operands = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, "float32"))
            size = (work.height, work.width, work.channels)
            image = loops.flat(data, math.prod(size))
            self.image = tiles.padded_image(image, size, self.border, 0) if any(self.border) else image
            self.result = loops.flat(out, math.prod(out_shape))
            for y_phase in phases(work, 0):
                with T.parallel(y_phase.count) as y:
                    self._row(y_phase, y)
        return Kernel(builder.get(), tuple(arguments), (), "depthwise, phase by phase")

    def _row(self, y_phase: Phase, y: Any) -> None:
        columns = phases(self.workload, 1)
        common = min(phase.count for phase in columns)
        with T.serial(common) as x:
            for phase in columns:
                self._pixel(y_phase, y, phase, x)
        for phase in columns:
            if phase.count > common:
                self._pixel(y_phase, y, phase, common)

    def _pixel(self, y_phase: Phase, y: Any, x_phase: Phase, x: Any) -> None:
        work, channels = self.workload, self.workload.channels
        row, column = y * work.strides[0] + y_phase.first, x * work.strides[1] + x_phase.first
        to = (row * work.out_size[1] + column) * channels
        taps = [
            (
                (y + dy + self.border[0]) * self.pitch + (x + dx + self.border[1]) * channels,
                (ky * work.kernel[1] + kx) * channels,
            )
            for dy, ky in zip(y_phase.places, y_phase.taps, strict=True)
            for dx, kx in zip(x_phase.places, x_phase.taps, strict=True)
        ]

        def element(c: Any) -> None:
            total: Any = None
            for place, weight in taps:
                product = self.image[place + c] * self.weights[weight + c]
                total = product if total is None else total + product
            T.buffer_store(self.result, tirx.const(0, "float32") if total is None else total, [to + c])

        loops.sweep(channels, element, 4)
        if work.epilogue:
            loops.apply_epilogue(
                self.result, to, self.result, to, channels, work.epilogue, self.operands, (row, column), 0
            )


def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights [C, kh, kw, 1] as [kh][kw][C]."""
    return np.ascontiguousarray(arrays[0][..., 0].transpose(1, 2, 0)).ravel()
