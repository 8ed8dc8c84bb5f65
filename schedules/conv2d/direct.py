"""Direct convolution: tiles of output pixels x output channels, the whole sum in registers.

The input is read in place, or from a copy with a zero border. A tile's pixels are pointers into it, so that a tile may span
rows and every stride works; the taps are rows at offsets common to all pixels. Weights are packed in panels of ``tile_n``
output channels, [panel][row][k][tile_n], rows filled up with zeros to whole steps of the micro-kernel.

Where the epilogue is a bias and a simple activation, perhaps before a 2x2 maximum, the micro-kernel finishes its sums in
registers and stores results: pixels are then taken in the order of the pooling windows. Otherwise sums go through a tile in
the L1 cache.

Loops: blocks of ``block`` pixel tiles; panels; pixel tiles of the block. A small block reads the input once and the weights
again for each block; one block of all tiles reads the weights once, which suits weights that stream from DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import images, tiles
from bitkiln.schedules.conv2d.geometry import Run, geometry, geometry_of_pieces, split
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Packing, panels_alone
from bitkiln.schedules.conv2d.tiles import CLAIM_FLOATS, SLACK, Storage, Taps, Tile, Tiles, at_least
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import IMAGE_AHEAD, REACH_BYTES, STEP, Finish
from bitkiln.schedules.workload import Conv2d, Pool
from bitkiln.targets import Target

#: Strips of blocks that threads share: as many as any of our boards has cores; more where there are many blocks.
_STRIPS, _MANY_STRIPS, _MANY_BLOCKS = 4, 16, 64
#: The smallest block of results that the micro-kernels claim.
_SPREAD_FLOATS = 64
#: Bytes of an image's tile that may wait in the L1 cache while another one is computed.
_MOST_AHEAD = 8192
#: The tile whose loop reads least for its products.
_WIDE = (8, 12)
#: MACs of a block that are worth a barrier.
_SHARED_MACS = 200_000
#: So few panels share the fetching of a tile.
_FEW_PANELS = 6
_PAGE, _LINE = 4096, 64


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """The register tile, and the pixel tiles of a block (0: all)."""
    return {"tile": tiles.sizes(target), "block": [1, 2, 4, 8, 0]}


def default(workload: Conv2d, target: Target, threads: int = 1, halves: bool = False) -> dict[str, int | str]:
    """The tile that wastes least; one block where weights do not stay in the L2 cache but image and result do.

    Where several threads each read such weights a tile of more channels reads less of the image beside them.
    """
    pixels = workload.conv_size[0] * workload.conv_size[1]
    kernels = kernel_set(target)
    offered = kernels.sgemm_halves if halves else kernels.sgemm
    tile = offered[0]
    if pixels <= 4:
        tile = kernels.sgemm_few
    elif pixels < 100 and pixels % 8 and pixels % 7 == 0 and kernels.sgemm_sevens in offered:
        tile = kernels.sgemm_sevens
    cache = target.cpu["l2_kib"] * 1024
    weights = weight_bytes(workload, halves)
    if threads > 1 and tile == offered[0] and weights > cache * 3 // 4 and _WIDE in offered:
        tile = _WIDE
    images = 4 * (geometry(workload).size + pixels * workload.out_channels)
    return {"tile": size_text(tile), "block": 0 if weights > cache * 3 // 4 and images < cache * 3 // 4 else 1}


def estimate(workload: Conv2d, cycles_per_byte: float, halves: bool = False) -> float:
    """Cycles, roughly: arithmetic near the micro-kernels' pace, or weights from memory at ``cycles_per_byte``."""
    return max(workload.macs / (2.7 if halves else 2.8), weight_bytes(workload, halves) * cycles_per_byte)


def weight_bytes(workload: Conv2d, halves: bool) -> int:
    """Bytes of the weights in memory, whole floats or halves."""
    taps = workload.kernel[0] * workload.kernel[1] * workload.channels // workload.groups
    return (2 if halves else 4) * workload.out_channels * taps


def emit(
    workload: Conv2d, tile: tuple[int, int], block: int, target: Target, threads: int = 1, halves: bool = False
) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels), for so many ``threads``; weights may be in ``halves``.

    Of these there are fewer tiles; the first stands for the others.
    """
    kernels = kernel_set(target)
    if halves and tile not in kernels.sgemm_halves:
        tile = kernels.sgemm_halves[0]
    return _Direct(workload, tile, block, kernels, threads, halves).kernel()


class _Direct:
    def __init__(
        self,
        workload: Conv2d,
        tile: tuple[int, int],
        block: int,
        kernels: KernelSet,
        threads: int = 1,
        halves: bool = False,
    ) -> None:
        tile_m, tile_n = tile
        self.given, self.workload = workload, (workload := images.joined(workload))
        self.threads = threads
        self.assembly = assembly = kernels.assembly
        #: Finds the pieces that the input consists of, where micro-kernels go from one to the next.
        self.offsets = kernels.offsets() if kernels.offsets and images.read_in_place(self.given) else None
        self.geometry = geometry(workload)
        if self.offsets:
            self.geometry = geometry_of_pieces(workload, images.pieces(self.given))
        self.groups = workload.groups
        self.out_per_group = workload.out_channels // workload.groups
        self.straight = not workload.pool and workload.out == "float32"
        early = tiles.finished(workload.epilogue) if kernels.finishes and self.straight else len(workload.epilogue)
        self.early, self.late = workload.epilogue[:early], workload.epilogue[early:]
        self.after = Late(self.late, kernels)
        self.finish = finish_of(replace(workload, epilogue=self.early)) if kernels.finishes else None
        self.window = self.finish.window if self.finish else 1
        self.order = _window_order(workload) if self.window > 1 else np.arange(len(self.geometry.pixels))
        # The micro-kernels begin at 3 pixels; windows are not split.
        self.least = (4 if self.window > 1 else 3) if assembly else 1
        tile_m = max(tile_m // self.window * self.window, self.least)
        pixels = len(self.order)
        self.tile_m = min(tile_m, max(pixels, self.least))
        self.pixel_runs = [at_least(run, self.least) for run in split(pixels, self.tile_m)]
        self.panel_runs = split(self.out_per_group, tile_n, kernels.channels)
        self.block = block or max(1, pixels // self.tile_m)
        self.row_length = tiles.row_length(self.geometry.row_length, assembly)
        self.depth = len(self.geometry.rows) * self.row_length
        self.panel_floats = self.depth * sum(run.count * run.size for run in self.panel_runs)
        self.storage = Storage(self.panel_floats * self.groups, halves)
        self.tiles = Tiles(self.early, self.finish, kernels.product, halves)
        # Rows that are filled up read beyond the last pixel.
        self.copies = any(workload.padding) or self.row_length != self.geometry.row_length
        self.copies = self.copies or (bool(self.given.parts) and not self.offsets)
        self.ahead, self.evenly = self._fetched()

    def kernel(self) -> Kernel:
        _, _, *operands, (out_shape, out_dtype) = self.workload.shapes
        sources = images.arguments(self.given)
        arguments: list[Argument | Constant] = [
            *sources,
            self.storage.argument(self.pack if self.row_length > self.geometry.row_length else self.packing),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(self._pixel_table()),
            Constant(np.array([*self.geometry.rows, self.geometry.rows[0]], "int32") * 4),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            weights, *self.operands, pixels, rows = buffers[len(sources) :]
            self.out = T.arg("out", T.buffer(out_shape, out_dtype))
            self.images = Images(self.given, buffers[: len(sources)])
            image = tiles.image_read(self.images, self.given, self.copies)
            rows = tiles.rows_read(self.images, self.offsets, rows)
            self.tiles.bind(image, weights, pixels, rows, self.operands)
            self._body()
        micro = (*self.tiles.microkernels, *([self.offsets] if self.offsets else []), *self.after.microkernels)
        notes = f"direct, tiles of {self.tile_m} pixels x {self.panel_runs[0].size} channels, {self.block} a block"
        notes += self.storage.words
        return Kernel(builder.get(), tuple(arguments), micro, notes)

    @property
    def packing(self) -> Packing:
        """Weights OHWI, the rows of their taps filled up, in panels."""
        return panels_alone(self.out_per_group, self.depth, self.panel_runs, self.groups)

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI filled up with zeros and in panels."""
        rows, length = len(self.geometry.rows), self.geometry.row_length
        weights = np.zeros((self.groups, self.out_per_group, rows, self.row_length), "float32")
        weights[..., :length] = arrays[0].reshape(self.groups, self.out_per_group, rows, length)
        return self.packing([weights])

    def _fetched(self) -> tuple[int, int]:
        """``ahead`` and ``evenly`` of ``Sgemm``: the next tile is fetched where tiles are small and follow each other."""
        work = self.workload
        follow = work.kernel == work.strides == (1, 1) and work.groups == 1 and not any(work.padding)
        panels = sum(run.count for run in self.panel_runs)
        together = self.block == 1 and not self.offsets
        return fetched(self.tile_m, self.geometry.padded[2], panels, together) if follow else (IMAGE_AHEAD, 0)

    def _pixel_table(self) -> np.ndarray:
        """Byte offsets of the pixels; the last is repeated where a tile is filled up."""
        pixels, last = self.geometry.pixels[self.order], self.pixel_runs[-1]
        return np.pad(pixels, (0, last.size - last.used), "edge").astype("int32") * 4

    def _body(self) -> None:
        work = self.workload
        straight = self.straight or self.finish is not None
        floats = len(self.order) // self.window * work.out_channels
        self.result = loops.flat(self.out, floats) if straight else T.alloc_buffer((floats,), "float32")
        if self.block * self.tile_m * 4 <= len(self.order):
            self._blocks_in_parallel(straight)
        else:
            self._panels_in_parallel()
            self._late_by_rows()
        if not straight:
            loops.finish(work, self.result, self.out)

    def _blocks(self) -> list[tuple[Run, bool]]:
        """Runs of blocks, and whether all their pixels may be read beyond their taps, as ``Sgemm.reach`` asks."""
        size, far = self.tile_m * self.block, 0
        if self.assembly:
            last_tap = (
                max(self.geometry.rows) + (self.groups - 1) * self.workload.channels // self.groups + self.row_length
            )
            ends = self.geometry.pixels[self.order] + last_tap + REACH_BYTES // 4
            inside = ends <= self.geometry.size + (SLACK if self.copies else 0)
            far = (len(inside) if inside.all() else int(inside.argmin())) // self.tile_m * self.tile_m
            far = len(inside) if len(inside) - far < self.tile_m and inside.all() else far
        runs = [(run, True) for run in split(far, size)]
        rest = [Run(far + run.first, run.count, run.size, run.used) for run in split(len(self.order) - far, size)]
        return [*runs, *((run, False) for run in rest)]

    def _blocks_in_parallel(self, straight: bool) -> None:
        for run, reach in self._blocks():
            if self._alone(run):
                self._panels_of_block(run, reach)
                continue
            floats = run.used // self.window * self.workload.out_channels
            spread = straight and self.finish is not None and floats >= _SPREAD_FLOATS
            strips = min(run.count, _STRIPS if run.count < _MANY_BLOCKS else _MANY_STRIPS)
            with T.parallel(strips) as strip:
                begin, end = strip * run.count // strips, (strip + 1) * run.count // strips
                to = run.first // self.window * self.workload.out_channels
                if not spread:
                    with T.serial(begin, end) as block:
                        if straight and floats >= CLAIM_FLOATS:
                            loops.claim(self.result, to + block * floats, floats)
                        self._block(run, block, reach)
                    continue
                loops.claim(self.result, to + begin * floats, floats)
                with T.serial(begin, end - 1) as block:
                    self._block(run, block, reach, to + (block + 1) * floats)
                self._block(run, end - 1, reach)

    def _alone(self, run: Run) -> bool:
        """Whether ``run`` is one block with so much work that threads should not wait for one of them to do it."""
        depth = self.depth * self.out_per_group
        return self.threads > 1 and run.count == 1 and self.groups == 1 and run.used * depth > _SHARED_MACS

    def _panels_of_block(self, run: Run, reach: bool) -> None:
        """A block whose panels threads share."""
        for panels in self.panel_runs:
            with T.parallel(panels.count) as panel:
                self._tiles(run.first, run.used, 0, panels.first + panel * panels.size, panels, 1, reach)
        self._late(run.first, run.used)

    def _block(self, run: Run, block: Any, reach: bool, claimed: Any = None) -> None:
        """A block of pixels: all panels, then the steps that the micro-kernel left.

        On the way the block's lines of the result from ``claimed`` on are claimed.
        """
        pixel = run.first + block * run.size
        # With one tile in a block, none of it filled up, the micro-kernel itself goes from panel to panel.
        together = self.block == 1 and self.finish is not None and run.used >= self.least
        with T.serial(self.groups) as group:
            for panels in self.panel_runs:
                inside = panels.count if together and panels.used == panels.size else 1
                with T.serial(panels.count // inside) as panel:
                    first = panels.first + panel * panels.size
                    self._tiles(pixel, run.used, group, first, panels, inside, reach, claimed)
        self._late(pixel, run.used)

    def _panels_in_parallel(self) -> None:
        for panels in self.panel_runs:
            with T.parallel(self.groups * panels.count) as piece:
                for run, reach in self._blocks():
                    with T.serial(run.count) as block:
                        group, first = piece // panels.count, panels.first + piece % panels.count * panels.size
                        self._tiles(run.first + block * run.size, run.used, group, first, panels, 1, reach)

    def _late_by_rows(self) -> None:
        height, width = self.workload.conv_size
        if self.late:
            with T.parallel(height) as y:
                self._late(y * width, width)

    def _late(self, first: Any, pixels: int) -> None:
        """The steps that the micro-kernel left, on pixels of the result."""
        if self.late:
            size = (self.workload.conv_size[1], self.workload.out_channels)
            operands = tiles.operands_behind(self.workload.epilogue, len(self.early), self.operands)
            self.after.apply(self.result, first * size[1], first, pixels, size, operands)

    def _tiles(
        self,
        first: Any,
        pixels: int,
        group: Any,
        channel: Any,
        panels: Run,
        count: int,
        reach: bool,
        claimed: Any = None,
    ) -> None:
        """The tiles of a block of ``pixels``, for ``count`` panels from ``channel`` of the group on."""
        for run in [at_least(run, self.least) for run in split(pixels, self.tile_m)]:
            with T.serial(run.count) as tile:
                within = run.first + tile * run.size
                place = None
                if claimed is not None:
                    done = (group * self.out_per_group + channel) * pixels + within * panels.size
                    place = T.address_of(self.result[claimed + done // self.window])
                self._tile(first + within, run, group, channel, panels, count, reach, place)

    def _tile(
        self,
        first: Any,
        pixels: Run,
        group: Any,
        channel_in_group: Any,
        panels: Run,
        count: int,
        reach: bool,
        claimed: Any,
    ) -> None:
        work = self.workload
        channel = group * self.out_per_group + channel_in_group
        tile = Tile(
            pixels,
            panels,
            first,
            image=group * (work.channels // self.groups),
            weights=group * self.panel_floats + channel_in_group * self.depth,
            to=first // self.window * work.out_channels + channel,
            pitch=work.out_channels,
            channel=channel,
            at=lambda m: ((first + m) // work.conv_size[1], (first + m) % work.conv_size[1]),
            count=count,
            reach=reach,
            ahead=self.ahead,
            evenly=self.evenly,
            claimed=claimed,
        )
        self.tiles.emit(tile, self.result, Taps(0, len(self.geometry.rows), self.row_length))


def fetched(pixels: int, channels: int, panels: int, together: bool = True) -> tuple[int, int]:
    """``ahead`` and ``evenly`` of ``Sgemm`` for tiles of so many ``pixels`` that follow each other.

    All pixels of a tile reach their next lines together, and the core waits for memory. So if a tile meets all panels
    ``together``, lines are fetched in the order of memory, as evenly over all panels as goes.
    """
    bytes_of_tile = pixels * channels * 4
    if bytes_of_tile > _MOST_AHEAD:
        return IMAGE_AHEAD, 0
    evenly = -(-STEP * 4 * pixels // panels) if together else 0
    # Few panels have many lines to fetch: some more of them earlier.
    evenly = -(-evenly // (_LINE if panels <= _FEW_PANELS else STEP)) * (_LINE if panels <= _FEW_PANELS else STEP)
    # What an addition takes as an immediate.
    return (bytes_of_tile if bytes_of_tile < _PAGE else bytes_of_tile // _PAGE * _PAGE), evenly


def finish_of(workload: Conv2d) -> Finish | None:
    """The epilogue and pooling of ``workload`` as a micro-kernel finishes them, if it can."""
    if workload.out == "bits":
        return None
    if workload.pool and (workload.pool != Pool((2, 2), (2, 2)) or workload.out_channels // workload.groups % 4):
        return None
    return tiles.finish_of(workload.epilogue, 4 if workload.pool else 1)


def _window_order(workload: Conv2d) -> np.ndarray:
    """Pixels of the convolution, the four of a 2x2 window one after the other."""
    height, width = workload.out_size
    y, x, dy, dx = np.mgrid[0:height, 0:width, 0:2, 0:2]
    return ((2 * y + dy) * workload.conv_size[1] + 2 * x + dx).ravel()
