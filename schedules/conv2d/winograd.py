"""3x3 convolution of stride 1 by Winograd's minimal filtering, F(my x mx, 3x3).

Tiles of my x mx outputs. The input is transformed to V [tile][position][channel], multiplied at each position with the packed,
transformed weights U to M, by the matrix micro-kernel, and M transformed back; then come epilogue, pooling where the window
divides the tile, and the store. Where there is a micro-kernel of packed pixels, V is [group of tiles][position][channel][tile].
Two loop orders:

- ``block`` n: blocks of n groups of ``tile_m`` tiles; for each panel of ``tile_n`` output channels the micro-kernel itself
  goes through the positions, and M [tile][position][tile_n] stays in the L1 cache. U [panel][position][channel][tile_n] is
  read once for each block: for weights that stay in the L2 cache, or nearly. Threads share the blocks. Where there are few, or
  each would bring the weights from memory again, they share the panels of one block after the other instead.
- ``block`` 0: all tiles at once, position by position: U [position][panel][channel][tile_n] is read once, from memory.

Multiplications per output: F(2x2) 4, F(2x4) 3, F(4x4) 2.25 instead of 9; weights grow 1.8, 2.7 and 4 times. Rounding errors of
F(4x4) are up to 1e-5 of the largest output, those of a direct sum up to 2e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.binarize.a53 import FlatSigns
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Chunk, Packing, Sum
from bitkiln.schedules.conv2d.tiles import finish_of, operands_behind
from bitkiln.schedules.conv2d.winograd_transforms import TRANSFORMS, Stage, Transform, weight_sums
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, a53, kernel_set
from bitkiln.schedules.microkernels.a53.binarize import BATCH
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES, FOLLOWING, POINTERS, STEP, Finish
from bitkiln.schedules.microkernels.a53.sgemm_stack import MOST_DEPTH, SgemmStack
from bitkiln.schedules.steps import Step, before_exponentials, commutes_with_maximum, expression
from bitkiln.schedules.workload import Conv2d, Pool
from bitkiln.targets import Target

#: Floats between tiles, so that tiles do not compete for the same sets of the L1 cache.
GAP = 16
#: Floats of a vector.
LANES = 4
#: Channels of tiles side by side that are transformed before the next ones are: what they fill of V fits the L1 cache.
_CHANNELS_AT_ONCE = 16
#: Vector registers that hold a tile's values between the two halves of a transform.
_MANY_REGISTERS = 32
#: Threads that are to have work, and parts that the packing of signs is cut in.
THREADS = 4
#: The share of the L2 cache that weights may take and yet stay there while blocks are computed; and what threads that go
#: through the weights of their blocks side by side can read, as they find most of them there.
_RESIDENT, _SIDE_BY_SIDE = 3 / 4, 5 / 4
#: Tiles of the usual block; and how much of the L2 cache such weights and V of the threads' blocks may take together. Beyond
#: that each block but a thread's first two brings them again, and half of that time is waited for (64 to 64 channels).
_TILES, _TOGETHER = 8, 1.1
#: How often larger weights, and V, which they push out, pass through memory, as measured of layers of 64 to 256 input channels.
_AGAIN, _PUSHED_OUT = 1.6, 10
#: Output channels that a thread takes through all positions where there is one block, widest first.
_WIDE_CHUNKS = (64, 32, 16)


def applies(workload: Conv2d) -> bool:
    """Whether ``workload`` can be computed so."""
    plain = workload.kernel == (3, 3) and workload.strides == (1, 1) and workload.dilation == (1, 1)
    plain = plain and workload.groups == 1 and not workload.whole
    return plain and workload.channels % STEP == 0 and workload.out_channels % 4 == 0


def estimate(
    workload: Conv2d, outputs: tuple[int, int], cycles_per_byte: float, target: Target, threads: int = 1
) -> float:
    """Cycles, roughly: products near the micro-kernels' pace or weights from memory, and the transforms' passes.

    Weights that do not fit the L2 cache that several threads share push V and M out of it.
    """
    kernels = kernel_set(target)
    shared_cache = target.cpu["l2_kib"] * 1024 if threads > 1 and kernels.stacks else 0
    positions, tiles = _counts(workload, outputs)
    # Packed tiles are multiplied in whole groups.
    side = kernels.panels.tile_m if kernels.panels else 1
    products = positions * -(-tiles // side) * side * workload.channels * workload.out_channels
    pace = 2.8 if tiles >= 8 else 2.4
    weights = 4 * positions * workload.channels * workload.out_channels
    transforms = 2.5 * positions * tiles * (workload.channels + workload.out_channels)
    if weights > shared_cache * _SIDE_BY_SIDE > 0:
        moved = _AGAIN * weights + _PUSHED_OUT * 4 * positions * tiles * workload.channels
        # Half of the products run while memory is waited for.
        return moved * cycles_per_byte + products / pace / 2 + transforms
    beside = 4 * positions * _TILES * workload.channels * threads
    if weights + beside > shared_cache * _TOGETHER > 0:
        transforms += weights * max(0, -(-tiles // _TILES) - 2 * threads) * cycles_per_byte / 2
    return max(products / pace, 1.2 * weights * cycles_per_byte) + transforms


def default(workload: Conv2d, outputs: tuple[int, int], target: Target, threads: int = 1) -> dict[str, int | str]:
    """Small blocks, unless the weights come from memory: there several threads share the panels of a large one."""
    positions, tiles = _counts(workload, outputs)
    weights = 4 * positions * workload.channels * workload.out_channels
    stays = weights < target.cpu["l2_kib"] * 1024 * 5
    wide = "4x16" if tiles <= 4 else "8x12"
    offered = [size_text(size) for size in kernel_set(target).sgemm]
    small, wide = ("8x8" if "8x8" in offered else offered[0]), (wide if wide in offered else offered[0])
    cache = target.cpu["l2_kib"] * 1024
    if threads > 1 and (stays or kernel_set(target).stacks) and weights > cache * _SIDE_BY_SIDE:
        return {"tile": small if tiles > 4 else wide, "block": 8}
    if threads > 1 and stays and weights > cache * _RESIDENT and tiles > 4:
        sevens = tiles % 8 and tiles % 7 == 0
        return {"tile": size_text(kernel_set(target).sgemm_sevens) if sevens else wide, "block": 1}
    return {"tile": small if stays and tiles > 4 else wide, "block": 1 if stays else 0}


def emit(
    workload: Conv2d, outputs: tuple[int, int], tile: tuple[int, int], block: int, target: Target, threads: int
) -> Kernel:
    """The implementation with ``outputs`` (my, mx) and register ``tile`` (pixels, channels), for so many ``threads``."""
    cache_bytes = 1024 * int(target.cpu["l2_kib"])
    return Winograd(workload, outputs, tile, block, cache_bytes, kernel_set(target), threads).kernel()


@dataclass(frozen=True)
class Patch:
    """The pixels of a tile: flat floats that begin at ``start``, rows ``pitch`` apart, pixels ``step``."""

    source: Any
    start: Any
    pitch: int
    step: int


@dataclass(frozen=True)
class Part:
    """``count`` channels from ``begin`` on: those from ``first`` on of an image in ``buffer`` with ``width`` channels."""

    buffer: Any
    width: int
    first: Any
    begin: Any
    count: int


class Winograd:
    """The kernel under construction."""

    #: The transform along an axis by the outputs of a tile, and how many taps it is for.
    transforms: ClassVar[Mapping[int, Transform]] = TRANSFORMS
    taps: ClassVar[int] = 3
    title: ClassVar[str] = "Winograd"

    def __init__(
        self,
        workload: Conv2d,
        outputs: tuple[int, int],
        tile: tuple[int, int],
        block: int,
        cache_bytes: int = 0,
        kernels: KernelSet = a53.SET,
        threads: int = 1,
    ) -> None:
        self.given, self.workload = workload, (workload := images.joined(workload))
        self.set = kernels
        self.along = tuple(self.transforms[m] for m in outputs)
        self.outputs = outputs
        self.points = (self.along[0].points, self.along[1].points)
        self.positions = self.points[0] * self.points[1]
        #: Values of a tile and an output channel that results are made of when all products are done.
        self.kept = self.positions
        # Tiles give results that only lack their signs, unless windows cross tiles.
        self.complete = not workload.pool or _divides(workload.pool, outputs)
        self.window = workload.pool.kernel if self.complete and workload.pool else (1, 1)
        # Results of a tile along each axis, and tiles that cover the whole result.
        self.results = (outputs[0] // self.window[0], outputs[1] // self.window[1])
        self.size = workload.out_size if self.complete else workload.conv_size
        self.tiles = tuple(-(-extent // count) for extent, count in zip(self.size, self.results, strict=True))
        self.count = self.tiles[0] * self.tiles[1]
        #: Tiles whose values stand side by side in V: a micro-kernel of packed pixels takes them so.
        self.side = kernels.panels.tile_m if kernels.panels else 1
        if kernels.panels:
            tile = kernels.panels.tile_m, kernels.panels.tile_n
        # The other micro-kernels begin at 3 pixels.
        self.tile_m = tile[0] if kernels.panels else min(tile[0], max(3, self.count))
        #: Floats of the packed weights, with what may be read behind them.
        self.packed = self.positions * workload.channels * workload.out_channels + AHEAD_BYTES // 4
        self.block = min(block or self.count, -(-self.count // self.tile_m)) * self.tile_m
        self.data_pitch = self.positions * workload.channels + GAP
        self.inside = block > 0
        self.tile_n = tile[1]
        #: Bytes from what a micro-kernel is given of V to the rows that it sums, and one more.
        self.row_offsets = np.zeros(2, "int32")
        self._cut_channels(cache_bytes, threads)
        self._cut_epilogue()
        self._choose_signs()
        #: The first row that ``result`` holds.
        self.strip_row: Any = 0
        self.kernels: dict[str, MicroKernel] = {}
        #: Micro-kernels beside those of products.
        self.micro: list[MicroKernel] = [self.signs.micro] if self.signs else []
        #: Data, shape and dtype of the output, and arguments behind those of a convolution.
        self.sources = images.arguments(self.given)
        self.out_spec = workload.shapes[-1]
        self.tables: list[Argument | Constant] = list(self.signs.constants) if self.signs else []

    def _cut_channels(self, cache_bytes: int, threads: int) -> None:
        """Output channels in chunks, which are multiplied before they are transformed back, and who computes them."""
        work = self.workload
        size = self.tile_n if self.inside else work.out_channels
        self.chunk_runs = split(work.out_channels, size, self.set.channels)
        weights = 4 * self.positions * work.channels * work.out_channels
        many = self.count // self.block >= THREADS
        #: Whether threads share the panels of a block, rather than the blocks.
        self.by_panels = (
            threads > 1
            and self.inside
            and self.chunk_runs[0].count >= THREADS
            and (not many or weights > cache_bytes * _SIDE_BY_SIDE > 0)
        )
        if self.by_panels and self.set.stacks and self.block >= self.count:
            self.chunk_runs = split(work.out_channels, self._wide(self.tile_n), self.set.channels)
        self.result_pitch = self.positions * self.chunk_runs[0].size + GAP

    def _cut_epilogue(self) -> None:
        """The epilogue by who does it: the transform's micro-kernel, the transform, or a pass over rows of results."""
        self.straight = self.complete and self.workload.out == "float32"
        # Exponentials need more registers than a transform leaves. Whole rows of results have them.
        steps, alone = self.workload.epilogue, self.window == (1, 1)
        early = before_exponentials(steps) if self.straight and alone else len(steps)
        self.early, self.late = steps[:early], steps[early:]
        self.after = Late(self.late, self.set)
        #: What the transform's micro-kernel does of the epilogue, and what of ``early`` is left then.
        self.finish, done = _finish(self.early, alone, self.set)
        self.left = self.early[done:]

    def _choose_signs(self) -> None:
        """What packs signs, and whether strip by strip."""
        work, micro = self.workload, self.set.binarize
        whole_bytes = work.out_channels % 8 == 0 and math.prod(work.out_size) * work.out_channels >= BATCH
        packs = self.complete and work.out == "bits" and whole_bytes
        self.signs = FlatSigns(work.sign_zero, micro) if packs and micro else None
        strip_floats = self.results[0] * self.size[1] * work.out_channels
        whole = self.size[0] % self.results[0] == 0 and self.tiles[0] >= THREADS and strip_floats >= BATCH
        #: Whether results are computed in strips, a row of tiles each, and never are in memory as floats.
        self.strips = bool(self.signs) and whole and strip_floats % 8 == 0 and not self.by_panels

    def _wide(self, panel: int) -> int:
        """The channels of a chunk where threads take all tiles through the weights once.

        These push V out of the L2 cache: the more panels meet it at a position, the less often it is read from memory again.
        """
        widths = [width for width in _WIDE_CHUNKS if width % panel == 0]
        return next((width for width in widths if self.workload.out_channels % (THREADS * width) == 0), panel)

    def kernel(self) -> Kernel:
        """The implementation."""
        _, _, *operands, _ = self.workload.shapes
        arguments = [
            *self.sources,
            Argument((1,), (self.packed,), "float32", self.packer),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(np.arange(self.tile_m, dtype="int32") * (4 * self.data_pitch)),
            Constant(self.row_offsets),
            *self.tables,
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            self.data, (self.weights, *rest) = buffers[: len(self.sources)], buffers[len(self.sources) :]
            self.operands, rest = rest[: len(operands)], rest[len(operands) :]
            self.pixels, self.rows, *self.table_buffers = rest
            self.out = T.arg("out", T.buffer(*self.out_spec))
            self._body()
        notes = (
            f"{self.title} F({self.outputs[0]}x{self.outputs[1]}, {self.taps}x{self.taps}), "
            f"tiles of {self.tile_m} x {self.tile_n}, {self.block} of {self.count} tiles a block"
        )
        return Kernel(
            builder.get(), tuple(arguments), (*self.kernels.values(), *self.micro, *self.after.microkernels), notes
        )

    @property
    def packer(self) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        """What makes the packed weights of those of the layer."""
        return self.packing

    @property
    def packing(self) -> Packing:
        """Weights [O, taps, taps, I] transformed and in panels."""
        panels = [split(run.used, self.tile_n, self.set.channels) for run in self.chunk_runs]
        return self._packing_of(weight_sums(self.along[0].weight, self.along[1].weight), panels)

    def _packing_of(self, sums: tuple[Sum, ...], panels: Sequence[Sequence[Run]]) -> Packing:
        """``sums`` of the taps; ``panels`` are those of each run of chunks."""
        work, count = self.workload, self.taps**2
        chunks = tuple(Chunk(run, tuple(cut)) for run, cut in zip(self.chunk_runs, panels, strict=True))
        taps, spare = tuple(tap * work.channels for tap in range(count)), AHEAD_BYTES // 4
        return Packing(work.out_channels, work.channels, count * work.channels, taps, sums, chunks, spare, zero=0.0)

    def _body(self) -> None:
        work = self.workload
        size = math.prod(self.size) * work.out_channels
        out = loops.flat(self.out, size) if self.straight else None
        self.images = Images(self.given, self.data)
        self.result = out if self.straight else T.alloc_buffer((size,), "float32")
        if self.strips:
            self._strips()
            return
        blocks = split(self.count, self.block)
        many = blocks[0].count >= THREADS and not self.by_panels
        for run in blocks:
            with (T.parallel if many else T.serial)(run.count) as block:
                self._block(run.first + block * run.size, run.used, T.serial if many else T.parallel)
        if self.signs:
            self.signs.emit(self.result, loops.flat(self.out, size // 8, "uint8"), size, self.table_buffers, THREADS)
        elif not self.straight:
            loops.finish(work, self.result, self.out, pooled=self.complete)

    def _strips(self) -> None:
        """Threads share the rows of tiles. A row's results become bits as long as they are in the cache."""
        strip_floats = self.results[0] * self.size[1] * self.workload.out_channels
        bits = loops.flat(self.out, self.tiles[0] * strip_floats // 8, "uint8")
        assert self.signs is not None
        with T.parallel(self.tiles[0]) as strip:
            self.result = T.alloc_buffer((strip_floats,), "float32")
            self.strip_row = strip * self.results[0]
            for run in split(self.tiles[1], self.block):
                with T.serial(run.count) as block:
                    self._block(strip * self.tiles[1] + run.first + block * run.size, run.used, T.serial)
            self.signs.emit_run(self.result, 0, bits, strip * (strip_floats // 8), strip_floats, self.table_buffers)

    def _block(self, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        least = self.side if self.side > 1 else 3
        groups = [Run(run.first, run.count, max(run.size, least), run.used) for run in split(tiles, self.tile_m)]
        room = groups[-1].first + groups[-1].count * groups[-1].size
        data = T.alloc_buffer((room * self.data_pitch + GAP,), "float32")
        self._transform_image(data, first, tiles, loop)
        # Behind a transform by micro-kernel claims cost more than they save.
        if self.straight and self.window == (1, 1) and not self.set.transform:
            self._claim(first, tiles)

        def chunks(run: Run, index: Any, products: Any, loop: Callable[..., Any]) -> None:
            chunk = run.first + index * run.size
            self._multiply(products, data, chunk, run.used, groups, loop)
            with loop(tiles) as tile:
                self._transform_result(products, tile * self.result_pitch, first + tile, chunk, run.used)

        floats = (room * self.result_pitch,)
        if self.by_panels:
            for run in self.chunk_runs:
                with T.parallel(run.count) as index:
                    chunks(run, index, T.alloc_buffer(floats, "float32"), T.serial)
        else:
            products = T.alloc_buffer(floats, "float32")
            for run in self.chunk_runs:
                with T.serial(run.count) as index:
                    chunks(run, index, products, loop)
        if self.late:
            with loop(tiles) as tile, T.serial(self.outputs[0]) as dy:
                self._late(first + tile, dy)

    def _claim(self, first: Any, tiles: int) -> None:
        """Claims the output of the block, row by row of its tiles."""
        height, width = self.workload.conv_size
        channels = self.workload.out_channels
        with T.serial(self.outputs[0]) as dy, T.serial(tiles) as tile:
            y = (first + tile) // self.tiles[1] * self.outputs[0] + dy
            x = (first + tile) % self.tiles[1] * self.outputs[1]
            start = (y * width + x) * channels
            whole = self.outputs[1] * channels

            def row(start: Any = start, whole: int = whole) -> None:
                loops.claim(self.result, start, whole)

            complete = [] if height % self.outputs[0] == 0 else [y < height]
            complete += [] if width % self.outputs[1] == 0 else [x + self.outputs[1] <= width]
            if complete:
                with T.If(tirx.all(*complete)), T.Then():
                    row()
            else:
                row()

    def _late(self, tile: Any, dy: Any) -> None:
        """The steps left for row ``dy`` of a tile's results, in place."""
        (height, width), count = self.workload.conv_size, self.outputs[1]
        y = tile // self.tiles[1] * self.outputs[0] + dy
        x = tile % self.tiles[1] * count
        operands = operands_behind(self.workload.epilogue, len(self.early), self.operands)

        def pixels(number: int) -> None:
            size = (width, self.workload.out_channels)
            self.after.apply(self.result, self._place(y, x), y * width + x, number, size, operands)

        with T.If(y < height), T.Then():
            if width % count == 0:
                pixels(count)
                return
            with T.If(x + count <= width):
                with T.Then():
                    pixels(count)
                with T.Else():
                    pixels(width % count)

    def _multiply(
        self, products: Any, data: Any, chunk: Any, width: int, groups: Sequence[Run], loop: Callable[..., Any]
    ) -> None:
        """M of the ``width`` output channels from ``chunk`` on, for all groups of tiles of the block."""
        panels = split(width, self.tile_n, 4)
        if self.inside and not self.by_panels:
            for group in groups:
                with loop(group.count) as index:
                    tile = group.first + index * group.size
                    self._call(products, data, chunk, width, panels[0], tile, group.size, 0)
            return
        # A panel's weights at a position serve all tiles before the next ones are fetched.
        if self.set.panels and sum(group.count for group in groups) > 1:
            self._multiply_by_panels(products, data, chunk, width, groups, loop)
            return
        ahead = self._ahead(width, groups)
        with loop(self.positions) as position:
            done = 0
            for group in groups:
                with T.serial(group.count) as index:
                    tile, call = group.first + index * group.size, done + index
                    for run in panels:
                        self._call(products, data, chunk, width, run, tile, group.size, position, ahead, call)
                done += group.count

    def _ahead(self, width: int, groups: Sequence[Run]) -> int:
        """Bytes of the next position's weights that each iteration of a call fetches, so that memory is never idle.

        0 where one group of tiles meets them: then they are fetched as they are read.
        """
        calls = sum(group.count for group in groups)
        # A register that the largest tiles point to pixels with holds what is fetched.
        fits = self.tile_m <= POINTERS.index(int(FOLLOWING[1:]))
        return (
            -(-4 * STEP * self.tile_n // calls // 4) * 4
            if self.by_panels and calls > 1 and self.set.stacks and fits
            else 0
        )

    def _next_weights(self, weights: Any, width: int, position: Any, fetched: Any) -> Any:
        """Address of the weights, ``fetched`` floats further, that follow those of a panel at a position.

        Behind its last position that is the panel that a thread will probably take next, as threads take them in order.
        """
        size = width * self.workload.channels
        panel = self.positions * size
        skipped = tirx.Select(position == self.positions - 1, tirx.const((THREADS - 1) * panel, "int32"), 0)
        return T.address_of(self.weights[tirx.min(weights + size + skipped + fetched, self.packed - 1)])

    def _multiply_by_panels(
        self, products: Any, data: Any, chunk: Any, width: int, groups: Sequence[Run], loop: Callable[..., Any]
    ) -> None:
        """As ``_multiply``, position by position: a panel's weights are in the L1 cache for the other groups of tiles."""
        with loop(self.positions) as position:
            for run in split(width, self.tile_n, 4):
                with T.serial(run.count) as panel:
                    one = Run(run.first + panel * run.size, 1, run.size, run.used)
                    for group in groups:
                        with T.serial(group.count) as index:
                            tile = group.first + index * group.size
                            self._call(products, data, chunk, width, one, tile, group.size, position)

    def _transform_image(self, data: Any, first: Any, tiles: int, loop: Callable[..., Any]) -> None:
        """V of ``tiles`` tiles from tile ``first`` on.

        Where tiles stand side by side in V, they meet some channels, then the next ones: a line of V has values of all of them.
        """
        if self.side == 1:
            parts = [Part(buffer, piece.width, piece.first, piece.begin, piece.count) for buffer, piece in self.images]
            with loop(tiles) as tile:
                self._transform_data(data, tile * self.data_pitch, first + tile, parts)
            return
        groups = -(-tiles // self.side)
        for buffer, piece in self.images:
            for run in split(piece.count, _CHANNELS_AT_ONCE):
                with loop(groups * run.count) as task, T.serial(self.side) as within:
                    channel = run.first + task % run.count * run.size
                    part = Part(buffer, piece.width, piece.first + channel, piece.begin + channel, run.used)
                    group = task // run.count
                    self._transform_within(data, first, (group, within), tiles, part)

    def _transform_within(self, data: Any, first: Any, at: tuple[Any, Any], tiles: int, part: Part) -> None:
        """One tile of a group of those side by side, if there is one."""
        group, within = at
        tile, to = group * self.side + within, group * self.side * self.data_pitch + within
        if tiles % self.side == 0:
            self._transform_data(data, to, first + tile, [part])
            return
        with T.If(tile < tiles), T.Then():
            self._transform_data(data, to, first + tile, [part])

    def _transform_data(self, data: Any, to: Any, tile: Any, parts: Sequence[Part]) -> None:
        """V of a tile, from the image or, where the tile reaches over its edge, from a copy with zeros around.

        It has the channels of ``parts``, which follow each other.
        """
        work = self.workload
        y = tile // self.tiles[1] * self.outputs[0] - work.padding[0]
        x = tile % self.tiles[1] * self.outputs[1] - work.padding[1]
        inside = tirx.all(y >= 0, y + self.points[0] <= work.height, x >= 0, x + self.points[1] <= work.width)
        channels = sum(part.count for part in parts)

        def from_image() -> None:
            for part in parts:
                start = (y * work.width + x) * part.width + part.first
                patch = Patch(part.buffer, start, work.width * part.width, part.width)
                self._transform_patch(data, to, patch, part.begin, part.count)

        def from_patch() -> None:
            patch = T.alloc_buffer((self.positions * channels,), "float32")
            with T.serial(self.points[0]) as dy, T.serial(self.points[1]) as dx:
                start = (dy * self.points[1] + dx) * channels
                with T.If(tirx.all(y + dy >= 0, y + dy < work.height, x + dx >= 0, x + dx < work.width)):
                    with T.Then():
                        pixel, at = (y + dy) * work.width + x + dx, start
                        for part in parts:
                            loops.copy(patch, at, part.buffer, pixel * part.width + part.first, part.count)
                            at = at + part.count
                    with T.Else():
                        loops.fill(patch, start, channels)
            whole = Patch(patch, 0, self.points[1] * channels, channels)
            self._transform_patch(data, to, whole, parts[0].begin, channels)

        with T.If(inside):
            with T.Then():
                from_image()
            with T.Else():
                from_patch()

    def _position(self, py: int, px: int) -> int:
        """Where in V of a tile a position's channels begin."""
        return (py * self.points[1] + px) * self.workload.channels

    @property
    def _name(self) -> str:
        """What tells transforms apart."""
        return f"{self.outputs[0]}x{self.outputs[1]}of{self.taps}"

    def _transform_patch(self, data: Any, to: Any, patch: Patch, begin: Any, count: int) -> None:
        """V of a tile in the ``count`` channels from ``begin`` on, which ``patch`` has."""
        channels, (points_y, points_x) = self.workload.channels, self.points
        if self.set.data_transform and points_y <= self.set.data_transform.most:
            stages = tuple(_listed(each.data) for each in self.along)
            micro = self.set.data_transform(self._name, self.points, stages, patch.step, channels, self.side)
            self.kernels[micro.symbol] = micro
            ends = T.address_of(data[to + begin * self.side]), T.address_of(patch.source[patch.start])
            sizes = T.int32(patch.pitch * 4), T.int32(count // LANES)
            T.evaluate(T.call_extern("int32", micro.symbol, *ends, *sizes))
            return

        def along_x(dy: Any, vector: Any) -> list[Any]:
            first = patch.start + dy * patch.pitch + vector * LANES
            return through(
                self.along[1].data,
                [T.bind(patch.source[four_from(first + dx * patch.step)]) for dx in range(points_x)],
            )

        def store(px: Any, vector: Any, values: Sequence[Any]) -> None:
            for py, value in enumerate(through(self.along[0].data, values)):
                at = to + (self._position(py, px) + begin + vector * LANES) * self.side
                T.buffer_store(data, value, [T.ramp(at, self.side, LANES)])

        with T.serial(count // LANES) as vector:
            # Row by row: neighbours in a row are neighbours in memory, which the core's prefetcher follows.
            if self.set.registers < _MANY_REGISTERS:
                between = self._between(along_x, points_y, points_x, vector)
                with T.serial(points_x) as px:
                    store(px, vector, between(px))
            else:
                rows = [along_x(dy, vector) for dy in range(points_y)]
                for px in range(points_x):
                    store(px, vector, [row[px] for row in rows])

    @staticmethod
    def _between(first: Callable[..., list[Any]], lines: int, values: int, *where: Any) -> Callable[[Any], list[Any]]:
        """The first half of a transform, line by line, through memory: a machine of few registers keeps a line, no matrix.

        ``first`` gives the ``values`` of a line. The answer reads those of all ``lines`` that have a number.
        """
        kept = T.alloc_buffer((lines * values * LANES,), "float32")
        with T.serial(lines) as line:
            for number, value in enumerate(first(line, *where)):
                T.buffer_store(kept, value, [four_from((line * values + number) * LANES)])
        return lambda number: [T.bind(kept[four_from((line * values + number) * LANES)]) for line in range(lines)]

    def _call(
        self,
        products: Any,
        data: Any,
        chunk: Any,
        width: int,
        panels: Run,
        tile: Any,
        tile_m: int,
        position: Any,
        ahead: int = 0,
        call: Any = 0,
    ) -> None:
        """M of the tiles from ``tile`` on: ``panels`` of a chunk ``width`` wide at one position, or at all of a whole chunk.

        ``ahead`` bytes an iteration of the next position's weights are fetched, of which ``call`` calls have fetched theirs.
        """
        channels = self.workload.channels
        out = tile * self.result_pitch + panels.first * self.positions + position * panels.size
        weights = chunk * self.positions * channels + (position * width + panels.first) * channels
        step = panels.size * 4
        ends = [T.address_of(products[out]), T.int64(self.result_pitch * 4)]
        image = T.address_of(data[tile * self.data_pitch + position * channels * self.side])
        whole = self.inside and not self.by_panels
        if self.set.panels:
            packed = self.set.panels(share=not whole)
            self.kernels[packed.symbol] = packed
            count, pitch = (self.positions, step) if whole else (panels.count, self.positions * step)
            ends += [image, T.address_of(self.weights[weights]), T.int64(channels // STEP)]
            T.evaluate(T.call_extern("int32", packed.symbol, *ends, T.int64(count), T.int64(pitch)))
            return
        ends += [image, T.address_of(self.pixels[0]), T.address_of(self.weights[weights])]
        if self.set.stacks and self.inside and channels <= MOST_DEPTH and not ahead:
            stack = SgemmStack(tile_m, panels.size, channels)
            self.kernels[stack.symbol] = stack
            count = self.positions if whole else 1
            T.evaluate(T.call_extern("int32", stack.symbol, *ends, T.int64(count), T.int64(step)))
            return
        assert self.set.product
        kernel = self.set.product(tile_m, panels.size, reach=True, **({"following": ahead} if ahead else {}))
        self.kernels[kernel.symbol] = kernel
        sums = [T.address_of(self.rows[0]), T.int64(1), T.int64(channels // STEP)]
        count, pitch, image_pitch = panels.count, self.positions * step, 0
        if whole:
            count, pitch, image_pitch = self.positions, step, channels * 4
        ways = [T.int64(count), T.int64(pitch), T.address_of(self.weights[0]), T.int64(image_pitch)]
        if ahead:
            done = call * (panels.count * (channels // STEP) * ahead // 4)
            ways.append(self._next_weights(weights, width, position, done))
        T.evaluate(T.call_extern("int32", kernel.symbol, *ends, *sums, *ways))

    def _transform_result(self, products: Any, start: Any, tile: Any, chunk: Any, channels: int) -> None:
        """The outputs of a tile in a chunk of output channels."""
        y, x = tile // self.tiles[1] * self.outputs[0], tile % self.tiles[1] * self.outputs[1]
        for run in split(channels, self.tile_n, 4):
            if self.set.transform:
                with T.serial(run.count) as panel:
                    first = run.first + panel * run.size
                    vectors = self._by_micro_kernel(products, start + first * self.kept, run.size, chunk + first)
                    for number, outputs in enumerate(vectors):
                        self._store(outputs, (y, x), chunk + first + number * LANES)
                continue
            with T.serial(run.count * run.size // LANES) as vector:
                panel, part = vector * LANES // run.size, vector * LANES % run.size
                at = start + (run.first + panel * run.size) * self.kept + part
                self._store(self._outputs(products, at, run.size), (y, x), chunk + run.first + vector * LANES)

    def _by_micro_kernel(self, products: Any, at: Any, size: int, channel: Any) -> list[list[list[Any]]]:
        """The outputs of a tile, [vector][y][x], in a panel of ``size`` channels from ``channel`` on."""
        assert self.set.transform
        stages = tuple(_listed(each.result) for each in self.along)
        micro = self.set.transform(self._name, self.points, stages, size * 4, self.finish)
        self.kernels[micro.symbol] = micro
        count = math.prod(self.outputs) * LANES
        outputs = T.alloc_buffer((size // LANES * count,), "float32")
        bias = T.address_of(self.operands[0][channel]) if self.finish.bias else T.address_of(products[at])
        arguments = T.address_of(outputs[0]), T.address_of(products[at]), bias, T.int32(size // LANES)
        T.evaluate(T.call_extern("int32", micro.symbol, *arguments))
        return [
            [
                [outputs[four_from(vector * count + micro.places[y, x] * LANES)] for x in range(self.outputs[1])]
                for y in range(self.outputs[0])
            ]
            for vector in range(size // LANES)
        ]

    def _outputs(self, products: Any, at: Any, pitch: int) -> list[list[Any]]:
        """Four channels of a tile's outputs, [y][x]."""
        points_y, points_x = self.points
        columns = [
            through(
                self.along[0].result,
                [T.bind(products[four_from(at + (py * points_x + px) * pitch)]) for py in range(points_y)],
            )
            for px in range(points_x)
        ]
        return [through(self.along[1].result, [column[dy] for column in columns]) for dy in range(self.outputs[0])]

    @property
    def left_operands(self) -> Sequence[Any]:
        """The operands of what is ``left``, and those behind them."""
        return operands_behind(self.early, len(self.early) - len(self.left), self.operands)

    def _final(self, outputs: list[list[Any]], pixel: tuple[Any, Any], within: tuple[int, int], channel: Any) -> Any:
        """Result ``within`` a tile, whose first output is ``pixel``: epilogue, and the maximum of its window."""
        window_y, window_x = self.window
        # Of values that a monotone epilogue treats alike, the largest gives the largest result: it alone needs computing.
        after = self.window != (1, 1) and all(map(commutes_with_maximum, self.left))
        largest = None
        for dy in range(within[0] * window_y, (within[0] + 1) * window_y):
            for dx in range(within[1] * window_x, (within[1] + 1) * window_x):
                where = (pixel[0] + dy, pixel[1] + dx, four_from(channel))
                value = outputs[dy][dx]
                if not after:
                    value = T.bind(expression(self.left, value, self.left_operands, where))
                largest = value if largest is None else T.bind(tirx.max(largest, value))
        return expression(self.left, largest, self.left_operands, where) if after else largest

    def _store(self, outputs: list[list[Any]], pixel: tuple[Any, Any], channel: Any) -> None:
        """Four channels of a tile's results."""
        for within, (y, x) in self._places(pixel):

            def store(within: tuple[int, int] = within, y: Any = y, x: Any = x) -> None:
                value = self._final(outputs, pixel, within, channel)
                T.buffer_store(self.result, value, [four_from(self._place(y, x) + channel)])

            self._guarded(store, (y, x), within)

    def _place(self, y: Any, x: Any) -> Any:
        """Where in ``result`` a pixel's channels begin."""
        return ((y - self.strip_row) * self.size[1] + x) * self.workload.out_channels

    def _places(self, pixel: tuple[Any, Any]) -> list[tuple[tuple[int, int], tuple[Any, Any]]]:
        """The results of a tile: where in the tile, and where in the result."""
        first = (pixel[0] // self.window[0], pixel[1] // self.window[1])
        return [
            ((oy, ox), (first[0] + oy, first[1] + ox)) for oy in range(self.results[0]) for ox in range(self.results[1])
        ]

    def _guarded(self, store: Callable[[], None], place: tuple[Any, Any], within: tuple[int, int]) -> None:
        """Runs ``store`` where ``place``, which is ``within`` a tile, lies inside the result."""
        conditions = [
            at < extent
            for at, offset, extent, step in zip(place, within, self.size, self.results, strict=True)
            if extent % step and offset >= extent % step
        ]
        if not conditions:
            store()
            return
        with T.If(tirx.all(*conditions)), T.Then():
            store()


def four_from(first: Any) -> Any:
    """Indices of ``LANES`` elements."""
    return T.ramp(first, 1, LANES)


def _listed(stages: Sequence[Stage]) -> tuple[tuple[tuple[tuple[int, float], ...], ...], ...]:
    """Stages as a micro-kernel takes them, which is known by all that it is made of."""
    return tuple(tuple(tuple(row.items()) for row in stage) for stage in stages)


def through(stages: Sequence[Stage], values: Sequence[Any], lanes: int = LANES) -> list[Any]:
    """Vectors of ``lanes`` after the stages of a transform."""
    for stage in stages:
        values = [_sum(row, values, lanes) for row in stage]
    return list(values)


def _sum(row: dict[int, float], values: Sequence[Any], lanes: int) -> Any:
    """The sparse sum of vectors that ``row`` describes."""
    (first, factor), *others = row.items()
    total = values[first] if factor == 1 else values[first] * T.broadcast(tirx.const(factor, "float32"), lanes)
    for index, coefficient in others:
        if abs(coefficient) == 1:
            total = total + values[index] if coefficient > 0 else total - values[index]
        else:
            total = T.fma(values[index], T.broadcast(tirx.const(coefficient, "float32"), lanes), total)
    return T.bind(total) if others or factor != 1 else total


def _counts(workload: Conv2d, outputs: tuple[int, int]) -> tuple[int, int]:
    """Positions of a tile, and tiles."""
    tiles = [-(-size // m) for size, m in zip(workload.conv_size, outputs, strict=True)]
    return math.prod(TRANSFORMS[m].points for m in outputs), math.prod(tiles)


def _finish(steps: Sequence[Step], whole: bool, kernels: KernelSet) -> tuple[Finish, int]:
    """What the set's transform does of ``steps``, and how many these are; an activation only of ``whole`` tiles."""
    if not kernels.transform:
        return Finish(), 0
    bias = bool(steps) and finish_of(steps[:1]) == Finish(bias=True)
    for count in (bias + 1, int(bias)):
        finish = finish_of(steps[:count])
        known = finish is not None and finish.activation in {"", *(kernels.transform.activations if whole else ())}
        if finish is not None and known:
            return finish, min(count, len(steps))
    return Finish(), 0


def _divides(pool: Pool, outputs: tuple[int, int]) -> bool:
    """Whether the windows of ``pool`` lie within tiles of ``outputs``."""
    if pool.kind != "max" or any(pool.padding) or pool.kernel != pool.strides:
        return False
    return all(m % window == 0 for m, window in zip(outputs, pool.kernel, strict=True))
