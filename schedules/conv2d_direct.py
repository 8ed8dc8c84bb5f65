"""Direct convolution: tiles of output pixels x output channels, the whole sum in registers.

The input is read in place, or from a copy with a zero border. A tile's pixels are pointers into it, so that a tile may span
rows and every stride works; the taps are rows at offsets common to all pixels. Weights are packed in panels of ``tile_n``
output channels, [panel][row][k][tile_n], rows filled up with zeros to whole steps of the micro-kernel.

Loops: blocks of ``block`` pixel tiles; panels; pixel tiles of the block. A small block reads the input once and the weights
again for each block; one block of all tiles reads the weights once, which suits weights that stream from DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d_geometry import Run, geometry, split
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel
from bitkiln.schedules.microkernels.sgemm_a53 import AHEAD_BYTES, STEP, Sgemm
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Tiles (pixels, channels) that the micro-kernels are fast at, and those for plain loops.
TILES = {64: ("8x8", "8x12", "7x12", "11x8", "6x12", "6x16", "4x16", "4x20"), 32: ("4x8", "2x8", "4x4")}


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """The register tile, and the pixel tiles of a block (0: all)."""
    return {"tile": list(TILES[target.bits]), "block": [1, 2, 4, 8, 0]}


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """A square tile; weights that do not stay in the cache are read once."""
    weights = 4 * workload.out_channels * workload.kernel[0] * workload.kernel[1] * workload.channels // workload.groups
    stays = weights < target.cpu["l2_kib"] * 1024 * 3 // 4
    return {"tile": TILES[target.bits][0], "block": 1 if stays else 0}


def estimate(workload: Conv2d, cycles_per_byte: float) -> float:
    """Cycles, roughly: arithmetic near the micro-kernels' pace, or weights from memory at ``cycles_per_byte``."""
    weights = 4 * workload.out_channels * workload.kernel[0] * workload.kernel[1] * workload.channels // workload.groups
    return max(workload.macs / 2.8, weights * cycles_per_byte)


def emit(workload: Conv2d, tile: tuple[int, int], block: int, target: Target) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels)."""
    return _Direct(workload, tile, block, target.bits == 64).kernel()


class _Direct:
    def __init__(self, workload: Conv2d, tile: tuple[int, int], block: int, assembly: bool) -> None:
        tile_m, tile_n = tile
        self.workload = workload
        self.assembly = assembly
        self.geometry = geometry(workload)
        self.groups = workload.groups
        self.out_per_group = workload.out_channels // workload.groups
        pixels = len(self.geometry.pixels)
        # The micro-kernels begin at 3 pixels.
        self.tile_m = min(tile_m, max(pixels, 3))
        self.pixel_runs = [_at_least(run, 3 if assembly else 1) for run in split(pixels, self.tile_m)]
        self.panel_runs = split(self.out_per_group, tile_n, 4)
        self.block = block or max(1, pixels // self.tile_m)
        self.row_length = -(-self.geometry.row_length // STEP) * STEP if assembly else self.geometry.row_length
        self.depth = len(self.geometry.rows) * self.row_length
        self.panel_floats = self.depth * sum(run.count * run.size for run in self.panel_runs)
        # Rows that are filled up read beyond the last pixel.
        self.copies = any(workload.padding) or self.row_length != self.geometry.row_length

    def kernel(self) -> Kernel:
        (data_shape, _), _, *operands, (out_shape, out_dtype) = self.workload.shapes
        packed = self.panel_floats * self.groups + AHEAD_BYTES // 4
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (packed,), "float32", self.pack),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(self._pixel_table()),
            Constant(np.array([*self.geometry.rows, self.geometry.rows[0]], "int32") * 4),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            self.data, self.weights, *self.operands, self.pixels, self.rows = loops.parameters(arguments)
            self.out = T.arg("out", T.buffer(out_shape, out_dtype))
            self._body()
        notes = f"direct, tiles of {self.tile_m} pixels x {self.panel_runs[0].size} channels, {self.block} a block"
        return Kernel(builder.get(), tuple(arguments), self.microkernels, notes)

    @cached_property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        if not self.assembly:
            return ()
        sizes = {(pixels.size, panels.size) for pixels in self.pixel_runs for panels in self.panel_runs}
        return tuple(Sgemm(*size) for size in sorted(sizes))

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels."""
        rows, length = len(self.geometry.rows), self.geometry.row_length
        weights = np.zeros((self.groups, self.out_per_group, rows, self.row_length), "float32")
        weights[..., :length] = arrays[0].reshape(self.groups, self.out_per_group, rows, length)
        parts = [pack_panels(group.reshape(self.out_per_group, -1), self.panel_runs) for group in weights]
        return np.concatenate([*parts, np.zeros(AHEAD_BYTES // 4, "float32")])

    def _pixel_table(self) -> np.ndarray:
        """Byte offsets of the pixels; the last is repeated where a tile is filled up."""
        pixels, last = self.geometry.pixels, self.pixel_runs[-1]
        return np.pad(pixels, (0, last.size - last.used), "edge").astype("int32") * 4

    def _body(self) -> None:
        work = self.workload
        self.image = self._image(loops.flat(self.data, work.height * work.width * work.channels))
        straight = not work.pool and work.out == "float32"
        conv = work.conv_size[0] * work.conv_size[1] * work.out_channels
        self.result = loops.flat(self.out, conv) if straight else T.alloc_buffer((conv,), "float32")
        blocks = split(len(self.geometry.pixels), self.tile_m * self.block)
        if self.block * self.tile_m * 4 <= len(self.geometry.pixels):
            self._blocks_in_parallel(blocks)
        else:
            self._panels_in_parallel(blocks)
        if not straight:
            loops.finish(work, self.result, self.out)

    def _blocks_in_parallel(self, blocks: Sequence[Run]) -> None:
        for run in blocks:
            with T.parallel(run.count) as block, T.serial(self.groups) as group:
                for panels in self.panel_runs:
                    with T.serial(panels.count) as panel:
                        self._tiles(run.first + block * run.size, run.used, group, panels, panel)

    def _panels_in_parallel(self, blocks: Sequence[Run]) -> None:
        for panels in self.panel_runs:
            with T.parallel(self.groups * panels.count) as piece:
                for run in blocks:
                    with T.serial(run.count) as block:
                        group, panel = piece // panels.count, piece % panels.count
                        self._tiles(run.first + block * run.size, run.used, group, panels, panel)

    def _tiles(self, first: Any, pixels: int, group: Any, panels: Run, panel: Any) -> None:
        """The tiles of a block of ``pixels``, for one panel."""
        for run in [_at_least(run, 3 if self.assembly else 1) for run in split(pixels, self.tile_m)]:
            with T.serial(run.count) as tile:
                self._tile(first + run.first + tile * run.size, run, group, panels.first + panel * panels.size, panels)

    def _image(self, data: Any) -> Any:
        """The image with its border, or the input itself."""
        if not self.copies:
            return data
        work = self.workload
        height, width, channels = self.geometry.padded
        padded = T.alloc_buffer((self.geometry.size + STEP,), "float32")
        with T.parallel(height) as y:
            loops.pad_row(padded, y * width * channels, data, y, (work.height, work.width, channels), work.padding)
        loops.fill(padded, self.geometry.size, STEP)
        return padded

    def _tile(self, first: Any, pixels: Run, group: Any, channel_in_group: Any, panels: Run) -> None:
        work = self.workload
        channel = group * self.out_per_group + channel_in_group
        weights = group * self.panel_floats + channel_in_group * self.depth
        to = first * work.out_channels + channel
        whole = pixels.used == pixels.size and panels.used == panels.size
        if self.assembly and whole and not work.epilogue:
            self._call(self.result, to, work.out_channels, first, pixels.size, group, weights, panels.size)
            return
        sums = T.alloc_buffer((pixels.size * panels.size,), "float32", scope="local")
        compute = self._call if self.assembly else self._plain
        compute(sums, 0, panels.size, first, pixels.size, group, weights, panels.size)
        with T.serial(pixels.used) as m:
            at = ((first + m) // work.conv_size[1], (first + m) % work.conv_size[1])
            start, end = m * panels.size, to + m * work.out_channels
            loops.apply_epilogue(self.result, end, sums, start, panels.used, work.epilogue, self.operands, at, channel)

    def _call(
        self, out: Any, to: Any, pitch: int, first: Any, tile_m: int, group: Any, weights: Any, tile_n: int
    ) -> None:
        """The sums of a tile by its micro-kernel; the arguments are those of ``Sgemm``."""
        per_group = self.workload.channels // self.groups
        T.evaluate(
            T.call_extern(
                "int32",
                Sgemm(tile_m, tile_n).symbol,
                T.address_of(out[to]),
                T.int64(pitch * 4),
                T.address_of(self.image[group * per_group]),
                T.address_of(self.pixels[first]),
                T.address_of(self.weights[weights]),
                T.address_of(self.rows[0]),
                T.int64(len(self.geometry.rows)),
                T.int64(self.row_length // STEP),
                T.int64(1),
                T.int64(0),
            )
        )

    def _plain(
        self, out: Any, to: Any, pitch: int, first: Any, tile_m: int, group: Any, weights: Any, tile_n: int
    ) -> None:
        """The sums of a tile by loops that any machine runs."""
        per_group = self.workload.channels // self.groups
        for m in range(tile_m):
            loops.fill(out, to + m * pitch, tile_n)
        with T.serial(len(self.geometry.rows)) as row, T.serial(self.row_length) as k:
            at = group * per_group + self.rows[row] // 4 + k
            weight = weights + (row * self.row_length + k) * tile_n
            for m in range(tile_m):
                tap = self.image[at + self.pixels[first + m] // 4]
                with T.vectorized(tile_n) as n:
                    index = to + m * pitch + n
                    T.buffer_store(out, out[index] + tap * self.weights[weight + n], [index])


def pack_panels(weights: np.ndarray, panels: Sequence[Run]) -> np.ndarray:
    """``weights`` [channels][k] as [panel][k][size], one panel after the other, filled up with zeros."""
    parts = []
    for run in panels:
        rows = np.zeros((run.count * run.size, weights.shape[1]), "float32")
        rows[: min(len(rows), len(weights) - run.first)] = weights[run.first : run.first + run.count * run.size]
        parts.append(rows.reshape(run.count, run.size, -1).transpose(0, 2, 1).ravel())
    return np.concatenate(parts)


def _at_least(run: Run, size: int) -> Run:
    return Run(run.first, run.count, max(run.size, size), run.used)
