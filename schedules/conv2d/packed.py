"""Direct convolution with packed pixels: for micro-kernels whose registers hold no pointer to each pixel.

A tile of pixels is packed, values side by side, [row of taps][k][pixel], and then meets every panel of weights,
[panel][row][k][channel]. The image is read in place, or from a copy with a zero border; a tile may span rows of it.

Loops: blocks of ``block`` tiles (0: all), which are packed and then meet panel after panel. A block of one reads the image once
and the weights for each tile; beside its products lines are fetched of the next tile, and those claimed that it will store. A
larger block reads the weights less often, which suits those that do not stay in the L2 cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import images, tiles
from bitkiln.schedules.conv2d.geometry import Run, geometry, geometry_of_pieces, split
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Packing, panels_alone
from bitkiln.schedules.conv2d.tiles import CLAIM_FLOATS, operands_behind
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES, STEP, Finish
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Tiles of a block.
BLOCKS = (1, 2, 4, 8, 16)
#: Strips of blocks that threads share: as many as any of our boards has cores; more where there are many blocks.
_STRIPS, _MANY_STRIPS, _MANY_BLOCKS = 4, 16, 64
#: The share of the L2 cache that weights may take and yet stay there; and that of packed pixels beside weights that do not.
_RESIDENT, _PIXELS_SHARE = 3 / 4, 1 / 2
#: Steps of a part of a sum, where threads share the panels: a panel's weights of it, which meet all tiles, are half of the L1
#: cache.
_PART_STEPS = 64


def applies(workload: Conv2d, target: Target) -> bool:
    """Whether ``workload`` can be computed so: a group of channels, and pixels for a tile."""
    panels = kernel_set(target).panels
    pixels = math.prod(workload.conv_size)
    return panels is not None and workload.groups == 1 and pixels >= panels.tile_m and not workload.whole


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """A tile a block, unless weights come from memory: then as many as stay in the L2 cache."""
    panels, cache = kernel_set(target).panels, target.cpu["l2_kib"] * 1024
    assert panels
    depth = 4 * workload.kernel[0] * workload.kernel[1] * workload.channels
    block = 1
    if depth * workload.out_channels > cache * _RESIDENT:
        block = max([1, *(count for count in BLOCKS if count * panels.tile_m * depth <= cache * _PIXELS_SHARE)])
        block = 0 if math.prod(workload.conv_size) * depth <= cache * _PIXELS_SHARE else block
    return {"tile": size_text(kernel_set(target).sgemm[0]), "block": block}


def emit(workload: Conv2d, block: int, target: Target) -> Kernel:
    """The implementation with blocks of so many tiles."""
    return _Packed(workload, block, kernel_set(target)).kernel()


@dataclass(frozen=True)
class _Part:
    """``steps`` of the steps of all sums, ``of_all``, from step ``begin`` on; ``sums``: where they wait, [pixel][channel]."""

    begin: int
    steps: int
    of_all: int
    sums: Any

    @property
    def last(self) -> bool:
        """Whether the sums are complete behind it."""
        return self.begin + self.steps == self.of_all

    def of(self, finish: Finish) -> Finish:
        """What it does of ``finish``: the first part adds the bias, the last one has the activation."""
        early = Finish(bias=finish.bias) if self.begin == 0 else Finish(goes_on=True)
        return replace(early, activation=finish.activation, values=finish.values) if self.last else early


class _Packed:
    """The kernel under construction."""

    def __init__(self, workload: Conv2d, block: int, kernels: KernelSet) -> None:
        assert kernels.panels and kernels.pack_pixels
        self.given, self.workload = workload, (workload := images.joined(workload))
        self.panels, self.pack_pixels = kernels.panels, kernels.pack_pixels()
        #: Finds the pieces that the input consists of, where they are packed from where they are.
        self.offsets = kernels.offsets() if kernels.offsets and images.read_in_place(self.given) else None
        self.geometry = geometry(workload)
        if self.offsets:
            self.geometry = geometry_of_pieces(workload, images.pieces(self.given))
        self.tile_m, tile_n = kernels.panels.tile_m, kernels.panels.tile_n
        self.pixels = len(self.geometry.pixels)
        self.panel_runs = split(workload.out_channels, tile_n, tile_n)
        self.block = block or -(-self.pixels // self.tile_m)
        self.row_length = tiles.row_length(self.geometry.row_length, assembly=True)
        self.depth = len(self.geometry.rows) * self.row_length
        self.straight = not workload.pool and workload.out == "float32"
        early = tiles.finished(workload.epilogue, kernels.panels.free)
        self.early, self.late = workload.epilogue[:early], workload.epilogue[early:]
        self.after = Late(self.late, kernels)
        self.finish = tiles.finish_of(self.early, registers=kernels.panels.free) or Finish()
        # Rows that are filled up read beyond the last pixel.
        self.copies = any(workload.padding) or self.row_length != self.geometry.row_length
        self.copies = self.copies or (bool(self.given.parts) and not self.offsets)
        micro = [self.pack_pixels, *([self.offsets] if self.offsets else [])]
        self.used: dict[str, MicroKernel] = {each.symbol: each for each in micro}

    def kernel(self) -> Kernel:
        """The implementation."""
        _, _, *operands, (out_shape, out_dtype) = self.workload.shapes
        packed = self.depth * sum(run.count * run.size for run in self.panel_runs) + AHEAD_BYTES // 4
        arguments: list[Argument | Constant] = [
            *(sources := images.arguments(self.given)),
            Argument(
                (1,), (packed,), "float32", self._pack if self.row_length > self.geometry.row_length else self._packing
            ),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(np.pad(self.geometry.pixels, (0, self.tile_m), "edge").astype("int32") * 4),
            Constant(np.array([*self.geometry.rows, self.geometry.rows[0]], "int32") * 4),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            self.weights, *self.operands, self.pixel_table, rows = buffers[len(sources) :]
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            pieces = Images(self.given, buffers[: len(sources)])
            self.image = tiles.image_read(pieces, self.given, self.copies)
            self.rows = tiles.rows_read(pieces, self.offsets, rows)
            self._body(out)
        notes = f"packed pixels, tiles of {self.tile_m} x {self.panels.tile_n}, {self.block} a block"
        return Kernel(builder.get(), tuple(arguments), (*self.used.values(), *self.after.microkernels), notes)

    @property
    def _packing(self) -> Packing:
        """Weights OHWI, the rows of their taps filled up, in panels."""
        return panels_alone(self.workload.out_channels, self.depth, self.panel_runs, spare=AHEAD_BYTES // 4)

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI filled up with zeros and in panels."""
        rows, length = len(self.geometry.rows), self.geometry.row_length
        weights = np.zeros((self.workload.out_channels, rows, self.row_length), "float32")
        weights[..., :length] = arrays[0].reshape(-1, rows, length)
        return self._packing([weights])

    def _body(self, out: Any) -> None:
        work = self.workload
        floats = self.pixels * work.out_channels
        self.result = loops.flat(out, floats) if self.straight else T.alloc_buffer((floats,), "float32")
        if self.block * self.tile_m * _STRIPS <= self.pixels:
            for run in split(self.pixels, self.block * self.tile_m):
                self._blocks(run)
        else:
            self._panels_in_parallel()
        if not self.straight:
            loops.finish(work, self.result, out)

    def _blocks(self, run: Run) -> None:
        """Blocks of so many pixels, which threads share."""
        strips = min(run.count, _STRIPS if run.count < _MANY_BLOCKS else _MANY_STRIPS)
        floats = run.used * self.workload.out_channels
        claims = self.block == 1 and run.used == self.tile_m and self.panel_runs[-1].used == self.panels.tile_n
        with T.parallel(strips) as strip:
            begin, end = strip * run.count // strips, (strip + 1) * run.count // strips
            if not claims:
                with T.serial(begin, end) as block:
                    first = run.first + block * run.size
                    if floats >= CLAIM_FLOATS:
                        loops.claim(self.result, first * self.workload.out_channels, floats)
                    self._block(first, run.used)
                return
            loops.claim(self.result, (run.first + begin * run.size) * self.workload.out_channels, floats)
            with T.serial(begin, end - 1) as block:
                self._block(run.first + block * run.size, run.used, claims=True)
            self._block(run.first + (end - 1) * run.size, run.used)

    def _block(self, first: Any, pixels: int, claims: bool = False) -> None:
        """``pixels`` pixels from ``first`` on: packed, multiplied, and the steps that are left.

        ``claims``: on the way the next block's lines are claimed.
        """
        groups = split(pixels, self.tile_m)
        packed = self._buffer(pixels)
        for group in groups:
            with T.serial(group.count) as index:
                self._pack_tile(packed, group.first + index * group.size, first)
        for panels in self.panel_runs:
            # With one tile in a block the micro-kernel itself goes from panel to panel.
            together = pixels == self.tile_m and panels.used == panels.size
            count = panels.count if together else 1
            with T.serial(panels.count // count) as panel:
                channel = panels.first + panel * panels.size
                for group in groups:
                    with T.serial(group.count) as index:
                        within = group.first + index * group.size
                        self._multiply(packed, within, first, (group.used, panels.used), channel, count, claims)
        self._late(first, pixels)

    def _panels_in_parallel(self) -> None:
        """All pixels are packed first; then threads share the panels."""
        packed, groups = self._buffer(self.pixels), split(self.pixels, self.tile_m)
        for group in groups:
            with T.parallel(group.count) as index:
                self._pack_tile(packed, group.first + index * group.size, 0)
        for panels in self.panel_runs:
            with T.parallel(panels.count) as panel:
                self._one_panel(packed, groups, panels.first + panel * panels.size, panels.used)
        height, width = self.workload.conv_size
        if self.late:
            with T.parallel(height) as y:
                self._late(y * width, width)

    def _one_panel(self, packed: Any, groups: Sequence[Run], channel: Any, used: int) -> None:
        """All tiles meet the panel of ``channel``, part by part: its weights stay in the L1 cache meanwhile."""
        steps, count = self.depth // STEP, sum(group.count for group in groups)
        parts: list[_Part | None] = [None]
        if steps > _PART_STEPS and count > 1:
            sums = T.alloc_buffer((count * self.tile_m * self.panels.tile_n,), "float32")
            begins = range(0, steps, _PART_STEPS)
            parts = [_Part(begin, min(_PART_STEPS, steps - begin), steps, sums) for begin in begins]
        for part in parts:
            for group in groups:
                with T.serial(group.count) as index:
                    within = group.first + index * group.size
                    self._multiply(packed, within, 0, (group.used, used), channel, part=part)

    def _buffer(self, pixels: int) -> Any:
        """Room for ``pixels`` packed pixels, and what may be read behind them."""
        return T.alloc_buffer((-(-pixels // self.tile_m) * self.tile_m * (self.depth + 1),), "float32")

    def _pack_tile(self, packed: Any, within: Any, first: Any) -> None:
        """Packs the tile ``within`` a block of pixels from ``first`` on."""
        tables = T.address_of(self.pixel_table[first + within]), T.address_of(self.rows[0])
        counts = T.int32(len(self.geometry.rows)), T.int32(self.row_length // STEP)
        ends = T.address_of(packed[within * self.depth]), T.address_of(self.image[0])
        T.evaluate(T.call_extern("int32", self.pack_pixels.symbol, *ends, *tables, *counts))

    def _multiply(
        self,
        packed: Any,
        within: Any,
        first: Any,
        used: tuple[int, int],
        channel: Any,
        count: int = 1,
        claims: bool = False,
        part: _Part | None = None,
    ) -> None:
        """The tile ``within`` a block meets ``count`` panels from ``channel`` on; ``used``: its real pixels and channels.

        Of a ``part`` of the sums: to the others, or, of the last one, to the result.
        """
        tile_n, channels = self.panels.tile_n, self.workload.out_channels
        part = part or _Part(0, self.depth // STEP, self.depth // STEP, None)
        whole = used == (self.tile_m, tile_n)
        finish = replace(part.of(self.finish), claims=claims)
        kernel = self.panels(True, finish, self._fetched(count) if claims else 0)
        self.used[kernel.symbol] = kernel
        result, to, pitch = self.result, (first + within) * channels + channel, channels
        if not part.last:
            result, to, pitch = part.sums, within * tile_n, tile_n
        elif not whole:
            result, to, pitch = T.alloc_buffer((self.tile_m * tile_n,), "float32", scope="local"), 0, tile_n
        added = part.sums[within * tile_n] if finish.goes_on else self.weights[0]
        added = self.operands[0][channel] if finish.bias else added
        next_tile = first + within + self.tile_m
        done = channel * self.tile_m
        T.evaluate(
            T.call_extern(
                "int32",
                kernel.symbol,
                T.address_of(result[to]),
                T.int64(pitch * 4),
                T.address_of(packed[within * self.depth + part.begin * STEP * self.tile_m]),
                T.address_of(self.weights[channel * self.depth + part.begin * STEP * tile_n]),
                T.int64(part.steps),
                T.int64(count),
                T.int64(tile_n * 4),
                T.address_of(added),
                T.address_of(self.image[next_tile * self.geometry.padded[2] if kernel.fetch else 0]),
                T.address_of(self.result[next_tile * channels + done if claims else 0]),
            )
        )
        if part.last and not whole:
            with T.serial(used[0]) as m:
                loops.copy(self.result, (first + within + m) * channels + channel, result, m * tile_n, used[1])

    def _fetched(self, panels: int) -> int:
        """Bytes that a step fetches of the next tile, where its pixels follow in memory: its share of all of them."""
        work = self.workload
        follow = work.kernel == work.strides == (1, 1) and not self.copies and not self.offsets
        return -(-self.tile_m * STEP * 4 // panels) if follow else 0

    def _late(self, first: Any, pixels: int) -> None:
        """The steps that the micro-kernel left, on pixels of the result."""
        if self.late:
            size = (self.workload.conv_size[1], self.workload.out_channels)
            operands = operands_behind(self.workload.epilogue, len(self.early), self.operands)
            self.after.apply(self.result, first * size[1], first, pixels, size, operands)
