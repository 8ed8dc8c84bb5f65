"""Transposed convolution as its phases: each a convolution of stride 1 on register tiles, stored ``strides`` pixels apart.

A tile is neighbouring pixels of one row of one phase. All phases read one image, with a border where their taps reach over it.
Weights are packed phase by phase, [phase][group][panel][row][k][tile_n]. Two loop orders:

- ``rows``: a strip of ``tile_m`` input pixels meets all weights; the result's rows and columns that come of it are claimed,
  then written phase by phase while they are in the L1 cache.
- ``panels``: each panel of weights meets the whole image: for weights that do not stay in the L2 cache beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.packing import pack_panels
from bitkiln.schedules.conv2d.tiles import CLAIM_FLOATS, Taps, Tile, Tiles, at_least
from bitkiln.schedules.conv2d_transpose.phases import Phase, border, phases
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.workload import ConvTranspose2d
from bitkiln.targets import Target

#: What comes first.
ORDERS = ("rows", "panels")
#: Pixels of the smallest micro-kernel.
_LEAST = 3
#: Cycles that begin and end a tile.
_ENDS = 100


def default(workload: ConvTranspose2d, target: Target) -> dict[str, int | str]:
    """The tile that a row of the image wastes least of; panels first where weights stream from memory."""
    cache = target.cpu["l2_kib"] * 1024
    weights = 4 * math.prod(workload.shapes[1][0])
    images = 4 * (math.prod(workload.shapes[0][0]) + math.prod(workload.shapes[-1][0]))
    panels = weights > cache * 3 // 4 and images < cache * 3 // 4
    tile = min(kernel_set(target).sgemm, key=lambda size: _row_cycles(workload, *size))
    return {"tile": size_text(tile), "order": "panels" if panels else "rows"}


def emit(workload: ConvTranspose2d, tile: tuple[int, int], order: str, target: Target) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels)."""
    return _Tiled(workload, tile, order, kernel_set(target)).kernel()


def _row_cycles(workload: ConvTranspose2d, tile_m: int, tile_n: int) -> float:
    """Cycles, roughly, of a row of one phase and group."""
    depth = workload.channels // workload.groups * math.prod(workload.kernel) / math.prod(workload.strides)
    panels = [run for run in split(workload.out_channels // workload.groups, tile_n, 4) for _ in range(run.count)]
    pixels = [at_least(run, _LEAST) for run in split(workload.width, tile_m) for _ in range(run.count)]
    return sum(depth / 4 * (m.size * n.size + n.size + m.size + 6) + _ENDS for m in pixels for n in panels)


@dataclass(frozen=True)
class _Part:
    """A phase along both axes: its rows of taps, and where its weights begin."""

    y: Phase
    x: Phase
    rows: tuple[int, ...]
    taps: Taps
    weights: int
    depth: int


class _Tiled:
    def __init__(self, workload: ConvTranspose2d, tile: tuple[int, int], order: str, kernels: KernelSet) -> None:
        assembly = kernels.assembly
        self.workload = workload
        self.order = order
        self.per_group = workload.channels // workload.groups
        self.out_per_group = workload.out_channels // workload.groups
        self.least = _LEAST if assembly else 1
        self.tile_m = max(min(tile[0], workload.width), self.least)
        self.panels = split(self.out_per_group, tile[1], kernels.channels)
        self.border = border(workload)
        self.padded = (
            workload.height + self.border[0] + self.border[2],
            workload.width + self.border[1] + self.border[3],
            workload.channels,
        )
        self.parts: list[_Part] = []
        self.weight_floats = 0
        for y in phases(workload, 0):
            for x in phases(workload, 1):
                self._add(y, x, assembly)
        #: The different numbers of pixels in a row of a phase.
        self.counts = sorted({part.x.count for part in self.parts})
        count = tiles.finished(workload.epilogue) if kernels.finishes else len(workload.epilogue)
        early, self.late = workload.epilogue[:count], workload.epilogue[count:]
        self.after = Late(self.late, kernels)
        self.tiles = Tiles(early, tiles.finish_of(early) if kernels.finishes else None, kernels.product)
        whole_rows = all(part.taps.length == self._length(part.x)[0] for part in self.parts if part.rows)
        # Rows that are filled up read beyond the last pixel.
        self.copies = any(self.border) or not whole_rows

    def _length(self, x: Phase) -> tuple[int, bool]:
        """The floats of a row of taps, and whether it is all taps of a row of the kernel."""
        neighbours = all(b - a == 1 for a, b in zip(x.places, x.places[1:], strict=False))
        together = self.workload.groups == 1 and neighbours
        return (len(x.places) if together else 1) * self.per_group, together

    def _add(self, y: Phase, x: Phase, assembly: bool) -> None:
        pitch, channels = self.padded[1] * self.padded[2], self.padded[2]
        floats, together = self._length(x)
        columns = x.places[:1] if together else x.places
        rows = [(dy + self.border[0]) * pitch + (dx + self.border[1]) * channels for dy in y.places for dx in columns]
        length = tiles.row_length(floats, assembly)
        first = sum(len(part.rows) + 1 for part in self.parts)
        depth = len(rows) * length
        part = _Part(y, x, tuple(rows), Taps(first, len(rows), length), self.weight_floats, depth)
        self.parts.append(part)
        self.weight_floats += self.workload.groups * self._group_floats(part)

    def _group_floats(self, part: _Part) -> int:
        return part.depth * sum(run.count * run.size for run in self.panels)

    def kernel(self) -> Kernel:
        (data_shape, _), _, *operands, (out_shape, _) = self.workload.shapes
        # One row more than each part has: it is loaded from ahead.
        rows = [row for part in self.parts for row in (*part.rows, *(part.rows[:1] or (0,)))]
        arguments: list[Argument | Constant] = [
            Argument((0,), data_shape, "float32"),
            tiles.Storage(self.weight_floats).argument(self.pack),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(self._pixel_table()),
            Constant((np.array(rows) * 4).astype("int32")),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d_transpose")
            T.func_attr({"tirx.noalias": True})
            data, weights, *operand_buffers, table, row_table = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, "float32"))
            self.tiles.bind(self._image(data), weights, table, row_table, operand_buffers)
            self.result = loops.flat(out, math.prod(out_shape))
            early = len(self.workload.epilogue) - len(self.late)
            self.late_operands = tiles.operands_behind(self.workload.epilogue, early, operand_buffers)
            if self.order == "rows":
                self._rows_first()
            else:
                self._panels_first()
        notes = f"{len(self.parts)} phases, tiles of {self.tile_m} pixels x {self.panels[0].size}, {self.order} first"
        return Kernel(builder.get(), tuple(arguments), (*self.tiles.microkernels, *self.after.microkernels), notes)

    def _pixel_table(self) -> np.ndarray:
        """Byte offsets of the pixels of a row, for each length of one; the last is repeated where a tile is filled up."""
        tables = [np.minimum(np.arange(count + self.tile_m), count - 1) for count in self.counts]
        return (np.concatenate(tables) * self.workload.channels * 4).astype("int32")

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels, phase by phase."""
        pieces = []
        for part in (part for part in self.parts if part.rows):
            own = arrays[0][:, part.y.taps][:, :, part.x.taps]
            own = own.reshape(self.workload.groups, self.out_per_group, len(part.rows), -1)
            filled = np.zeros((*own.shape[:3], part.taps.length), "float32")
            filled[..., : own.shape[3]] = own
            pieces += [pack_panels(group.reshape(self.out_per_group, -1), self.panels) for group in filled]
        return np.concatenate(pieces)

    def _image(self, data: Any) -> Any:
        size = (self.workload.height, self.workload.width, self.workload.channels)
        image = loops.flat(data, math.prod(size))
        return tiles.padded_image(image, size, self.border) if self.copies else image

    def _rows_first(self) -> None:
        """Strips of input pixels in parallel rows; a phase may have a row or a column less than another."""
        common = min(part.x.count for part in self.parts)
        with T.parallel(max(part.y.count for part in self.parts)) as y:
            for run in split(common, self.tile_m):
                with T.serial(run.count) as index:
                    x = run.first + index * run.size
                    self._claim(y, x, run.used)
                    for part in self.parts:
                        self._in_rows(part, y, x, run)
            for part in self.parts:
                if part.x.count > common:
                    self._in_rows(part, y, common, Run(common, 1, part.x.count - common, part.x.count - common))
            for first in range(min(self.workload.strides[0], self.workload.out_size[0])):
                self._late(y, first)

    def _in_rows(self, part: _Part, y: Any, x: Any, pixels: Run) -> None:
        together = pixels.used >= self.least and self.tiles.finish is not None and part.rows
        with self._where(y, part.y.count), T.serial(self.workload.groups) as group:
            for run in self.panels:
                inside = run.count if together and run.used == run.size else 1
                with T.serial(run.count // inside) as panel:
                    self._tile(part, (y, x), pixels, group, run, run.first + panel * run.size, inside)

    def _panels_first(self) -> None:
        for run in self.panels:
            with T.parallel(self.workload.groups * run.count) as piece:
                group, channel = piece // run.count, run.first + piece % run.count * run.size
                for part in self.parts:
                    with T.serial(part.y.count) as y:
                        for pixels in split(part.x.count, self.tile_m):
                            with T.serial(pixels.count) as index:
                                x = pixels.first + index * pixels.size
                                self._tile(part, (y, x), pixels, group, run, channel, 1)

        if self.late:
            with T.parallel(self.workload.out_size[0]) as row:
                self._late_row(row)

    def _late(self, y: Any, first: int) -> None:
        """The steps that the micro-kernel left, on the row of the phase from ``first`` on."""
        if self.late:
            stride, height = self.workload.strides[0], self.workload.out_size[0]
            with self._where(y, -(-(height - first) // stride)):
                self._late_row(y * stride + first)

    def _late_row(self, row: Any) -> None:
        width = self.workload.out_size[1]
        size = (width, self.workload.out_channels)
        self.after.apply(self.result, row * width * size[1], row * width, width, size, self.late_operands)

    @contextmanager
    def _where(self, y: Any, count: int) -> Iterator[None]:
        """Guards what only the first ``count`` rows of a phase have."""
        if count == max(part.y.count for part in self.parts):
            yield
            return
        with T.If(y < count), T.Then():
            yield

    def _claim(self, y: Any, x: Any, pixels: int) -> None:
        """Claims what a strip of input pixels makes, row by row."""
        (stride_y, stride_x), (height, width) = self.workload.strides, self.workload.out_size
        floats = pixels * stride_x * self.workload.out_channels
        if floats < CLAIM_FLOATS:
            return
        for dy in range(min(stride_y, height)):
            with self._where(y, -(-(height - dy) // stride_y)):
                start = ((y * stride_y + dy) * width + x * stride_x) * self.workload.out_channels
                loops.claim(self.result, start, floats)

    def _tile(
        self, part: _Part, pixel: tuple[Any, Any], pixels: Run, group: Any, panels: Run, channel: Any, count: int
    ) -> None:
        """A tile of pixels of ``part`` from ``pixel`` on, for ``count`` panels from ``channel`` of the group on."""
        work, (y, x) = self.workload, pixel
        row, column = y * work.strides[0] + part.y.first, x * work.strides[1] + part.x.first
        width, own = work.out_size[1], group * self.out_per_group + channel
        tile = Tile(
            at_least(pixels, self.least),
            panels,
            first=sum(count + self.tile_m for count in self.counts if count < part.x.count) + x,
            image=y * self.padded[1] * self.padded[2] + group * self.per_group,
            weights=part.weights + group * self._group_floats(part) + channel * part.depth,
            to=(row * width + column) * work.out_channels + own,
            pitch=work.strides[1] * work.out_channels,
            channel=own,
            at=lambda m: (row, column + m * work.strides[1]),
            count=count,
            reach=self.copies,
        )
        self.tiles.emit(tile, self.result, part.taps)
