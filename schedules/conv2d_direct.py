"""Direct convolution: tiles of output pixels x output channels, the whole sum in registers.

The input is read in place, or from a copy with a zero border. A tile's pixels are pointers into it, so that a tile may
span rows and every stride works; the taps of the kernel are *rows*: contiguous runs of input channels (of a whole kernel
row where taps are adjacent) at an offset common to all pixels. Weights are packed in panels of ``tile_n`` output channels,
[panel][row][k][tile_n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Constant, Kernel, Knobs
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target


@dataclass(frozen=True)
class Run:
    """``count`` equal pieces of ``size`` elements, one after the other from ``first`` on; ``used`` of each are real."""

    first: int
    count: int
    size: int
    used: int


@dataclass(frozen=True)
class Geometry:
    """Where the elements of a convolution lie. Offsets are in floats.

    ``padded``: height, width and channels of the image that is read; ``rows``: offset of each row of taps from the
    pixel's first; ``row_length``: floats in a row; ``pixels``: offset of each output pixel's first tap.
    """

    padded: tuple[int, int, int]
    rows: tuple[int, ...]
    row_length: int
    pixels: np.ndarray

    @property
    def size(self) -> int:
        """Floats of the image that is read."""
        return self.padded[0] * self.padded[1] * self.padded[2]


def geometry(workload: Conv2d) -> Geometry:
    """Where the taps of ``workload`` lie."""
    top, left, bottom, right = workload.padding
    height, width, channels = workload.height + top + bottom, workload.width + left + right, workload.channels
    (kernel_y, kernel_x), (step_y, step_x) = workload.kernel, workload.dilation
    per_group = channels // workload.groups
    pitch = width * channels
    if workload.groups == 1 and (step_x == 1 or kernel_x == 1):
        rows, length = [y * step_y * pitch for y in range(kernel_y)], kernel_x * channels
    else:
        rows = [y * step_y * pitch + x * step_x * channels for y in range(kernel_y) for x in range(kernel_x)]
        length = per_group
    y, x = np.mgrid[0 : workload.conv_size[0], 0 : workload.conv_size[1]]
    pixels = y * (workload.strides[0] * pitch) + x * (workload.strides[1] * channels)
    return Geometry((height, width, channels), tuple(rows), length, pixels.ravel())


def split(extent: int, tile: int) -> list[Run]:
    """``extent`` as whole tiles and one rest."""
    runs = [Run(0, extent // tile, tile, tile)] if extent >= tile else []
    rest = extent % tile
    return [*runs, Run(extent - rest, 1, rest, rest)] if rest else runs


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """Tile sizes: output pixels and output channels held in registers."""
    return {"tile_m": [2, 4, 8], "tile_n": [4, 8]}


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """Half of the registers hold sums."""
    return {"tile_m": 4, "tile_n": 8}


def emit(workload: Conv2d, knobs: Knobs, target: Target) -> Kernel:
    """The implementation at one point of the space."""
    return _Emitter(workload, int(knobs["tile_m"]), int(knobs["tile_n"])).kernel()


class _Emitter:
    def __init__(self, workload: Conv2d, tile_m: int, tile_n: int) -> None:
        self.workload = workload
        self.geometry = geometry(workload)
        self.out_per_group = workload.out_channels // workload.groups
        self.pixel_runs = split(len(self.geometry.pixels), tile_m)
        self.panel_runs = _panels(self.out_per_group, tile_n)
        self.depth = len(self.geometry.rows) * self.geometry.row_length

    def kernel(self) -> Kernel:
        (data_shape, _), (_, _), *operand_shapes, (out_shape, out_dtype) = self.workload.shapes
        per_group = self.depth * sum(run.count * run.size for run in self.panel_runs)
        self.weights_per_group = per_group
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (per_group * self.workload.groups,), "float32", self._pack),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operand_shapes)),
            Constant(self.geometry.pixels.astype("int32")),
            Constant(np.array(self.geometry.rows, "int32")),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = [
                T.arg(f"a{i}", T.buffer(arg.shape, arg.dtype))
                if isinstance(arg, Argument)
                else T.arg(f"a{i}", T.buffer(arg.array.shape, str(arg.array.dtype)))
                for i, arg in enumerate(arguments)
            ]
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self._body(buffers[0], buffers[1], buffers[2:-2], buffers[-2], buffers[-1], out)
        return Kernel(builder.get(), tuple(arguments), (), f"direct, tile {self.pixel_runs[0].size}")

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        groups, rows, length = self.workload.groups, len(self.geometry.rows), self.geometry.row_length
        weights = arrays[0].reshape(groups, self.out_per_group, rows * length)
        panels = []
        for group in weights:
            for run in self.panel_runs:
                for first in range(run.first, run.first + run.count * run.size, run.size):
                    panel = np.zeros((run.size, self.depth), "float32")
                    panel[: run.used] = group[first : first + run.used]
                    panels.append(panel.T.ravel())
        return np.concatenate(panels)

    def _body(self, data: Any, weights: Any, operands: Sequence[Any], pixels: Any, rows: Any, out: Any) -> None:
        work = self.workload
        image = self._padded(loops.flat(data, work.height * work.width * work.channels))
        direct_to_out = not work.pool and work.out == "float32"
        conv_height, conv_width = work.conv_size
        conv_size = conv_height * conv_width * work.out_channels
        flat_out = loops.flat(out, int(np.prod(out.shape)), str(out.dtype)) if direct_to_out else None
        result = flat_out if direct_to_out else T.alloc_buffer((conv_size,), "float32")
        for run in self.pixel_runs:
            with T.parallel(run.count) as tile, T.serial(work.groups) as group:
                first_pixel = run.first + tile * run.size
                for panels in self.panel_runs:
                    with T.serial(panels.count) as panel:
                        self._tile(
                            image, weights, operands, pixels, rows, result, run, first_pixel, group, panels, panel
                        )
        if not direct_to_out:
            self._finish(result, out)

    def _padded(self, data: Any) -> Any:
        work = self.workload
        if not any(work.padding):
            return data
        height, width, channels = self.geometry.padded
        padded = T.alloc_buffer((self.geometry.size,), "float32")
        with T.parallel(height) as y:
            loops.pad_row(padded, y * width * channels, data, y, (work.height, work.width, channels), work.padding)
        return padded

    def _tile(
        self,
        image: Any,
        weights: Any,
        operands: Sequence[Any],
        pixels: Any,
        rows: Any,
        result: Any,
        run: Run,
        first_pixel: Any,
        group: Any,
        panels: Run,
        panel: Any,
    ) -> None:
        work, tile_m, tile_n = self.workload, run.size, panels.size
        acc = T.alloc_buffer((tile_m * tile_n,), "float32", scope="local")
        channel_in_group = panels.first + panel * tile_n
        weight = group * self.weights_per_group + channel_in_group * self.depth
        per_group = work.channels // work.groups
        for m in range(tile_m):
            loops.fill(acc, m * tile_n, tile_n)
        with T.serial(len(self.geometry.rows)) as row, T.serial(self.geometry.row_length) as k:
            at = group * per_group + rows[row] + k
            w = weight + (row * self.geometry.row_length + k) * tile_n
            for m in range(tile_m):
                source = image[at + pixels[first_pixel + m]]
                with T.vectorized(tile_n) as j:
                    index = m * tile_n + j
                    T.buffer_store(acc, acc[index] + source * weights[w + j], [index])
        channel = group * self.out_per_group + channel_in_group
        for m in range(tile_m):
            pixel = first_pixel + m
            at_pixel = (pixel // work.conv_size[1], pixel % work.conv_size[1])
            to = pixel * work.out_channels + channel
            loops.apply_epilogue(result, to, acc, m * tile_n, panels.used, work.epilogue, operands, at_pixel, channel)

    def _finish(self, result: Any, out: Any) -> None:
        work = self.workload
        channels = work.out_channels
        out_height, out_width = work.out_size
        out_bytes = int(np.prod(out.shape))
        flat_out = loops.flat(out, out_bytes, str(out.dtype))
        with T.parallel(out_height) as y, T.serial(out_width) as x:
            pixel = y * out_width + x
            if work.pool and work.out == "float32":
                loops.pool_pixel(flat_out, pixel * channels, result, (*work.conv_size, channels), work.pool, (y, x))
            elif work.pool:
                pooled = T.alloc_buffer((channels,), "float32")
                loops.pool_pixel(pooled, 0, result, (*work.conv_size, channels), work.pool, (y, x))
                loops.pack_signs(flat_out, pixel * -(-channels // 8), pooled, 0, channels, work.sign_zero)
            else:
                loops.pack_signs(
                    flat_out, pixel * -(-channels // 8), result, pixel * channels, channels, work.sign_zero
                )


def _panels(channels: int, tile: int) -> list[Run]:
    """Output channels of a group in panels; the last is filled up with zero weights to a multiple of 4."""
    runs = split(channels, tile)
    if runs[-1].size % 4:
        last = runs[-1]
        runs[-1] = Run(last.first, 1, -(-last.size // 4) * 4, last.size)
    return runs
