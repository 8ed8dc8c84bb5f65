"""First layers: few input channels, so that a pixel's taps are a handful of floats and the image is read once, in strips.
Groups of as few channels are first layers side by side.

Each strip of the image is copied with its zero border into a buffer that stays in the L1 cache, on the way brought to NHWC
and shifted where the workload says so. The micro-kernel runs along its rows, one panel of output channels after the other,
and applies the epilogue, and a 2x2 maximum pooling, in registers.
Weights are packed [panel][ky][kx][c][8]. Signs beside the result follow each strip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops, pool2d
from bitkiln.schedules.binarize.beside import Beside, outputs
from bitkiln.schedules.conv2d.stem_image import ImageRows
from bitkiln.schedules.kernel import Argument, Constant, Kernel, MicroKernel
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, a53
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.stem import CHANNELS, Stem
from bitkiln.schedules.workload import Conv2d, Pool, argument_specs, packed

#: A strip is at most this many output rows: enough to share image rows, few enough to stay in the L1 cache.
_STRIP_ROWS = 8
_MOST_CHANNELS = 4
_MOST_CHANNELS_OF_GROUP = 8
#: Parts into which pooled rows are divided: one for each core that any of our boards has.
_PARTS = 4
#: Floats behind an array that vector loads may touch.
_AHEAD = 4
#: Floats of a cache line.
_LINE = 16


def applies(workload: Conv2d, kernels: KernelSet = a53.SET) -> bool:
    """Whether this schedule can compute ``workload``."""
    if workload.binary or workload.dilation != (1, 1) or not kernels.stem:
        return False
    if workload.groups > 1 and (workload.shift or workload.layout != "NHWC"):
        return False
    most = _MOST_CHANNELS if workload.groups == 1 else _MOST_CHANNELS_OF_GROUP
    if _channels(workload) > most or workload.out_channels // workload.groups % CHANNELS:
        return False
    stem = _stem(workload, kernels)
    return _used_width(workload, stem) >= stem.pixels and stem.fits


def emit(workload: Conv2d, kernels: KernelSet = a53.SET, threads: int = 1) -> Kernel:
    """The implementation for so many threads; any number may run it."""
    kind = _PooledStrips if _PooledStrips.applies(workload, kernels) else _Strips
    return kind(workload, kernels, threads).kernel()


def _stem(workload: Conv2d, kernels: KernelSet) -> Stem:
    assert kernels.stem
    stem: Stem = kernels.stem(_channels(workload), workload.kernel, workload.strides, (), False)
    count = len(stem.operand_registers)
    inside = tuple(itertools.takewhile(lambda step: steps_a53.by_channel(step, count), workload.epilogue))
    pool = (
        inside == workload.epilogue
        and workload.pool == Pool((2, 2), (2, 2))
        and workload.out == "float32"
        and not stem.looped
    )
    return replace(stem, steps=tuple(step.op for step in inside), pool=pool)


def _channels(workload: Conv2d) -> int:
    """Input channels of a group."""
    return workload.channels // workload.groups


def _used_width(workload: Conv2d, stem: Stem) -> int:
    """Columns of the convolution that are computed: pooling may leave the last one out."""
    return workload.out_size[1] * 2 if stem.pool else workload.conv_size[1]


class _Strips:
    def __init__(self, given: Conv2d, kernels: KernelSet, threads: int) -> None:
        self.given, self.workload = given, (workload := replace(given, signs=()))
        self.kernels = kernels
        self.stem = _stem(workload, kernels)
        self.micro: list[MicroKernel] = []
        self.rows_in = ImageRows(workload)
        self.channels, self.pitch = self.rows_in.channels, self.rows_in.pitch
        self.panels = workload.out_channels // CHANNELS
        self.panel_floats = workload.kernel[0] * workload.kernel[1] * self.channels * CHANNELS
        #: Rows of tiles, and how many of them a strip has.
        self.tile_rows = workload.out_size[0] if self.stem.pool else workload.conv_size[0]
        self.whole = self.stem.pool or (not workload.pool and workload.out == "float32")
        self.claims = self.whole and self.panels > 1
        # A row of the result that was just claimed is still in the caches when its panels are stored.
        most = 1 if self.claims and workload.groups == 1 else max(1, _STRIP_ROWS // self.stem.rows)
        self.strip = max(rows for rows in range(1, most + 1) if self.tile_rows % rows == 0)
        self.image_rows = (self.strip * self.stem.rows - 1) * workload.strides[0] + workload.kernel[0]
        self.operand_rows = steps_a53.rows(self.stem.steps)
        #: Rows of the convolution that a strip computes.
        self.computed = self.strip * self.stem.rows
        self.early = self.workload.epilogue[: len(self.stem.steps)]
        self.late = Late(self.workload.epilogue[len(self.early) :], kernels)
        self.crowded = False
        #: With a stride much of the image comes from memory for few products.
        self.fetching = self.stem.fetching and min(workload.strides) > 1 and workload.groups == 1 and not self.stem.pool
        self.beside = Beside(given, given.out_size[1], kernels.binarize)
        self.micro += self.beside.microkernels

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), _, *operands, (out_shape, out_dtype) = work.shapes
        operands = operands[: len(operands) - work.shift]
        taken = sum(bool(step.operand) for step in self.early)
        sources = tuple(range(2, 2 + taken))
        rows = (max(1, self.panels * self.operand_rows * CHANNELS),)
        arguments = [
            Argument((0,), data_shape, "float32"),
            Argument((1,), (self.panels * self.panel_floats + _AHEAD,), "float32", self.pack),
            Argument(sources, rows, "float32", self.pack_operands) if sources else Constant(self.pack_operands(())),
        ]
        if work.shift:
            arguments.append(self.rows_in.shift_argument(len(argument_specs(self.given)) - 1))
        arguments += [Argument((2 + taken + i,), *spec) for i, spec in enumerate(operands[taken:])]
        own = len(arguments)
        arguments += self.beside.arguments
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            (self.data, self.weights, self.operands, *rest), self.tables = buffers[:own], buffers[own:]
            self.shift: Any = rest[0] if work.shift else None
            self.late_operands = rest[work.shift :]
            self.out = T.arg("out", T.buffer(out_shape, out_dtype))
            self.bits = outputs(self.given)
            self._body()
        notes = f"stem, strips of {self.strip * self.stem.rows} rows x {CHANNELS} channels"
        return Kernel(builder.get(), tuple(arguments), (*self.micro, *self.late.microkernels), notes)

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels."""
        panels = arrays[0].reshape(self.panels, CHANNELS, -1).transpose(0, 2, 1)
        return np.concatenate([panels.ravel(), np.zeros(_AHEAD, "float32")])

    def pack_operands(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Operands and constants of the steps in the micro-kernel, [panel][row][8]."""
        rows = steps_a53.operand_rows(self.early, arrays, self.workload.out_channels)
        if not len(rows):
            return np.zeros(1, "float32")
        return rows.reshape(len(rows), self.panels, CHANNELS).transpose(1, 0, 2).ravel()

    def _body(self) -> None:
        work = self.workload
        data = loops.flat(self.data, work.height * work.width * work.channels)
        conv = work.conv_size[0] * work.conv_size[1] * work.out_channels
        size = work.out_size[0] * work.out_size[1] * work.out_channels
        self.result = loops.flat(self.out, size) if self.whole else T.alloc_buffer((conv,), "float32")
        strips = self.tile_rows // self.strip
        parts = min(_PARTS, strips) if self.claims else strips
        with T.parallel(parts) as part:
            image = T.alloc_buffer((self.image_rows * self.pitch + _AHEAD,), "float32")
            if not self.claims:
                self._strip(image, data, part)
            else:
                # The tiles of a strip claim the lines of the next one, but for the last of each part.
                begin, end = (bound * strips // parts for bound in (part, part + 1))
                floats = self.strip * self._out_width * work.out_channels
                loops.claim(self.result, begin * floats, floats)
                with T.serial(begin, end - 1) as strip:
                    self._strip(image, data, strip, (strip + 1) * floats)
                self._strip(image, data, end - 1)
        if not self.whole:
            loops.finish(work, self.result, self.out)
            self.beside.emit(self.out, self.tables, self.bits)

    def _strip(self, image: Any, data: Any, strip: Any, claimed: Any = None) -> None:
        """The rows of a strip; its tiles claim the result's lines from ``claimed`` on."""
        work = self.workload
        first = strip * (self.strip * self.stem.rows * work.strides[0])
        following = first + self.image_rows - work.padding[0]
        with T.serial(work.groups) as group:
            with T.serial(self.image_rows) as row:
                self.rows_in.fill(image, row * self.pitch, data, first + row - work.padding[0], group, self.shift)
            with T.serial(self.panels // work.groups) as panel, T.serial(self.strip) as row:
                fetched = self._fetched(data, following, panel * self.strip + row)
                self._row(image, strip, row, group * (self.panels // work.groups) + panel, claimed, fetched)
        if self.late.steps:
            self._late(strip)
        if self.whole:
            self._signs(self.result, strip * self.strip, self.strip)

    def _signs(self, floats: Any, row: Any, rows: int) -> None:
        """The signs of ``rows`` rows of the result, which is ``floats``, from ``row`` on."""
        width, channels = self.workload.out_size[1], self.workload.out_channels
        first = row * width
        self.beside.emit_run(floats, first * channels, first, rows * width, self.tables, self.bits)

    @cached_property
    def _out_width(self) -> int:
        return self.workload.out_size[1] if self.stem.pool else self.workload.conv_size[1]

    @cached_property
    def _stretches(self) -> tuple[int, int, int]:
        """Stretches of the image's rows that a strip adds to those of the last one, the floats of each, and of the image."""
        work = self.workload
        stretches = 1 if work.layout == "NHWC" else work.channels
        floats = work.width * work.channels // stretches
        return stretches, self.computed * work.strides[0] * floats, work.height * floats

    def _fetched(self, data: Any, y: Any, call: Any) -> tuple[Any, int] | None:
        """What a row of tiles, ``call`` of a strip, fetches of the next strip's image rows: an address, and lines a tile.

        They begin at row ``y``. All rows of tiles share them.
        """
        if self.crowded or not self.fetching:
            return None
        stretches, floats, image = self._stretches
        each = max(1, self.computed // self.stem.rows * self.panels // stretches)
        share = -(-floats // (each * _LINE)) * _LINE
        stretch = tirx.min(call // each, stretches - 1)
        begin = stretch * image + y * (image // self.workload.height) + call % each * share
        tiles = _used_width(self.workload, self.stem) // self.stem.pixels
        last = max(0, stretches * image - share)
        return T.address_of(data[tirx.max(0, tirx.min(begin, last))]), -(-share // (_LINE * tiles))

    def _row(
        self, image: Any, strip: Any, row: Any, panel: Any, claimed: Any = None, fetched: tuple[Any, int] | None = None
    ) -> None:
        """One row of tiles; the last tile overlaps the one before where the width is no multiple.

        ``fetched``: what its tiles fetch, as ``_fetched`` gives it.
        """
        width, pixels = _used_width(self.workload, self.stem), self.stem.pixels
        tiles = width // pixels
        if claimed is not None:
            claimed += (panel * self.strip + row) * (tiles * pixels // self.stem.rows * CHANNELS)
        self._call(image, strip, row, panel, (0, tiles), claimed, fetched)
        if width % pixels:
            self._call(image, strip, row, panel, (width - pixels, 1), None, None if claimed is not None else fetched)

    def _call(
        self,
        image: Any,
        strip: Any,
        row: Any,
        panel: Any,
        run: tuple[int, int],
        claimed: Any,
        fetched: tuple[Any, int] | None,
    ) -> None:
        """Tiles from a column of the convolution on, as many as ``run`` says; the arguments are those of ``Stem``."""
        column, tiles = run
        work = self.workload
        to = (strip * self.strip + row) * self._out_width + column // self.stem.rows
        start = row * (self.stem.rows * work.strides[0] * self.pitch) + column * work.strides[1] * self.channels
        place, lines = fetched or (None, 0)
        stem = replace(self.stem, claims=claimed is not None, fetches=lines, stored=self.fetching)
        more = [] if claimed is None else [T.address_of(self.result[claimed])]
        if place is not None:
            more = [*(more or [T.int64(0)]), place]
        if stem not in self.micro:
            self.micro.append(stem)
        T.evaluate(
            T.call_extern(
                "int32",
                stem.symbol,
                T.address_of(self.result[to * work.out_channels + panel * CHANNELS]),
                T.int64(work.out_channels * 4),
                T.address_of(image[start]),
                T.int64(self.pitch * 4),
                T.address_of(self.weights[panel * self.panel_floats]),
                T.address_of(self.operands[panel * (self.operand_rows * CHANNELS)]),
                T.int64(tiles),
                *more,
            )
        )

    def _late(self, strip: Any) -> None:
        """The steps that the micro-kernel does not know, in place, while the strip is in the cache."""
        size = (self.workload.conv_size[1], self.workload.out_channels)
        with T.serial(self.strip) as row:
            first = (strip * self.strip + row) * size[0]
            self.late.apply(self.result, first * size[1], first, size[0], size, self.late_operands)


class _PooledStrips(_Strips):
    """Strips of rows of a maximum pooling whose windows the micro-kernel does not know.

    The convolution's rows wait in a buffer that stays in the L2 cache; those that the next strip's windows need as well are
    moved to its beginning. A part of the rows for each thread: only at their seams are rows computed twice.
    """

    @staticmethod
    def applies(workload: Conv2d, kernels: KernelSet) -> bool:
        """Whether all steps of the epilogue are the micro-kernel's, and a maximum follows whose windows leave nothing out.

        Writing and reading a row through memory must also take longer than computing some rows again at the seams.
        """
        stem, pool = _stem(workload, kernels), workload.pool
        if pool is None or stem.pool or pool.kind != "max" or len(stem.steps) < len(workload.epilogue):
            return False
        again = pool.kernel[0] - pool.strides[0]
        taps = workload.kernel[0] * workload.kernel[1] * _channels(workload)
        # A float takes 4 cycles through memory and back, and a third of a cycle for each tap to compute.
        return 0 <= again * (_PARTS - 1) * taps / 3 < 4 * workload.conv_size[0]

    def __init__(self, given: Conv2d, kernels: KernelSet, threads: int) -> None:
        super().__init__(given, kernels, threads)
        workload = self.workload
        if workload.pool is None:
            raise ValueError(f"no pooling follows {workload.key()}")
        self.window = workload.pool
        pooled = workload.out_size[0]
        #: Rows of the result in a strip; rows of the convolution that it needs, and that the next one needs again.
        self.pooled = next(rows for rows in (2, 1) if pooled % rows == 0)
        self.rows = (self.pooled - 1) * self.window.strides[0] + self.window.kernel[0]
        self.again = self.window.kernel[0] - self.window.strides[0]
        self.image_rows = (self.rows - 1) * workload.strides[0] + workload.kernel[0]
        self.strip = 1
        self.computed = self.rows - self.again
        # Where the rows of several threads wait in the L2 cache there is no room for the image, too.
        self.crowded = threads > 1

    def _body(self) -> None:
        work = self.workload
        data = loops.flat(self.data, work.height * work.width * work.channels)
        floats = work.conv_size[1] * work.out_channels
        strips = work.out_size[0] // self.pooled
        threads = min(_PARTS, strips)
        with T.parallel(threads) as thread:
            image = T.alloc_buffer((self.image_rows * self.pitch + _AHEAD,), "float32")
            self.result = T.alloc_buffer((self.rows * floats,), "float32")
            begin, end = (bound * strips // threads for bound in (thread, thread + 1))
            with T.serial(begin, end) as strip:
                known = tirx.Select(strip > begin, self.again, 0)
                loops.copy(self.result, 0, self.result, (self.rows - self.again) * floats, self.again * floats)
                self._fill(image, data, strip, known)
                self._pool(strip)

    def _fill(self, image: Any, data: Any, strip: Any, known: Any) -> None:
        """The convolution's rows of a strip from its row ``known`` on."""
        work = self.workload
        height, width = work.conv_size
        first = strip * (self.pooled * self.window.strides[0]) - self.window.padding[0] + known
        image_rows = (self.rows - 1 - known) * work.strides[0] + work.kernel[0]
        following = first * work.strides[0] + image_rows - work.padding[0]
        with T.serial(work.groups) as group:
            with T.serial(image_rows) as row:
                y = first * work.strides[0] + row - work.padding[0]
                self.rows_in.fill(image, row * self.pitch, data, y, group, self.shift)
            with T.serial(self.panels // work.groups) as panel, T.serial(self.rows - known) as row:
                y = first + row
                fetched = self._fetched(data, following, panel * self.computed + row)
                with T.If(tirx.all(y >= 0, y < height)), T.Then():
                    self._row(image, known, row, group * (self.panels // work.groups) + panel, None, fetched)
        # A maximum does not see what lies outside.
        with T.serial(self.rows - known) as row:
            y = first + row
            with T.If(tirx.any(y < 0, y >= height)), T.Then():
                floats = width * work.out_channels
                loops.fill(self.result, (known + row) * floats, floats, float(np.finfo("float32").min))

    def _pool(self, strip: Any) -> None:
        """The strip's rows of the result."""
        work, (_, left, _, right) = self.workload, self.window.padding
        size = (self.rows, work.conv_size[1])
        window = replace(self.window, padding=(0, left, 0, right))
        if work.out != "bits":
            with T.serial(self.pooled) as row:
                y = strip * self.pooled + row
                self.micro += pool2d.emit_row(
                    self.out, y, self.result, size, window, work.out_channels, row, self.kernels
                )
                self._signs(loops.flat(self.out, math.prod(work.shapes[-1][0])), y, 1)
            return
        rows = T.decl_buffer((1, *size, work.out_channels), "float32", data=self.result.data)
        width, channels = work.out_size[1], work.out_channels
        pooled = T.alloc_buffer((width * channels,), "float32")
        with T.serial(self.pooled) as row:
            y = strip * self.pooled + row

            def store(x: Any, channel: Any, value: Any) -> None:
                T.buffer_store(pooled, value, [x * channels + channel])

            pool2d.pool_row(rows, window, row, store)
            target = loops.flat(self.out, work.out_size[0] * width * packed(channels), "uint8")
            with T.serial(width) as x:
                at = (y * width + x) * packed(channels)
                loops.pack_signs(target, at, pooled, x * channels, channels, work.sign_zero)
