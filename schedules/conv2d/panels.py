"""1x1 convolution for several threads that go through the weights side by side: each comes from memory once for many pixels.

A thread takes a share of the pixels and brings them to one panel of ``tile_n`` output channels after the other. All threads do
so at about the same time, so that a panel comes from memory for one of them and from the L2 cache for the others; beside its
products each fetches its share of the next weights. The channels are summed in parts: a panel's weights of a part stay in the
L1 cache while the thread's pixels meet them, and sums wait in a buffer there. What of the image does not stay in the L2 cache
beside all that is computed in further *bands* of pixels, each of which reads the weights again.

The image is read in place, or where pixels would share few sets of the L1 cache, from a copy with gaps that each thread makes
of its own. Weights are packed [panel][k][tile_n].
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import images, tiles
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Packing, panels_alone
from bitkiln.schedules.conv2d.tiles import SLACK
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import a53, kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import FOLLOWING, POINTERS, STEP, Finish, Sgemm
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Floats between the pixels of a copy, a cache line.
_GAP = 16
#: Channels of a part: a panel's weights of so many, and as much of a tile's pixels, are two thirds of the L1 cache.
_PART = 256
#: The share of the L2 cache that a band's image takes; weights and results pass through the rest.
_BAND_SHARE = 1 / 2
#: Pixels of a thread, for which the micro-kernels begin at three; how many it should have; and so few that of whole tiles some
#: threads would have more than others.
_FEWEST, _ENOUGH, _FEW = 4, 8, 64
_TILE = (8, 12)
#: Weights, in sizes of the L2 cache, that threads should not each read.
_LARGE_WEIGHTS = 1 / 2
#: In so many turns lines of the image are fetched: as many steps as they have.
_TURNS = 4
#: Products of a step beside which there is room to fetch more than the tile's own weights.
_ROOM = 32


def applies(workload: Conv2d) -> bool:
    """Whether ``workload`` can be computed so."""
    pointwise = workload.kernel == workload.strides == (1, 1) and workload.groups == 1 and not any(workload.padding)
    plain = workload.pool is None and workload.out == "float32" and not workload.whole
    sizes = workload.channels % STEP == 0 and workload.out_channels % 4 == 0
    return pointwise and plain and sizes and workload.height * workload.width >= _FEWEST


def pays(workload: Conv2d, target: Target, threads: int, halves: bool = False) -> bool:
    """Whether it is the better way for so many ``threads``.

    Else weights would come from memory again and again, or threads share a few tiles of pixels.
    """
    weights = (2 if halves else 4) * workload.channels * workload.out_channels
    pixels = workload.height * workload.width
    many = weights > target.cpu["l2_kib"] * 1024 * _LARGE_WEIGHTS
    return threads > 1 and pixels >= _ENOUGH * threads and (many or pixels <= _FEW * threads)


def default() -> dict[str, int | str]:
    """The tile that reads least for its products; as a block counts what a thread has of a band."""
    return {"tile": size_text(_TILE), "block": 0}


def emit(workload: Conv2d, tile: tuple[int, int], target: Target, threads: int, halves: bool = False) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels), or with the first that takes ``halves``."""
    offered = kernel_set(target).sgemm_halves
    if halves and tile not in offered:
        tile = offered[0]
    return _Panels(workload, tile, target, threads, halves).kernel()


class _Panels:
    """The kernel under construction."""

    def __init__(self, workload: Conv2d, tile: tuple[int, int], target: Target, threads: int, halves: bool) -> None:
        self.given, self.workload = workload, (workload := images.joined(workload))
        pixels = workload.height * workload.width
        self.panel_runs = split(workload.out_channels, tile[1], 4)
        counts = range(1, max(1, workload.channels // _PART) + 1)
        self.parts = max(count for count in counts if workload.channels % (count * STEP) == 0)
        self.part = workload.channels // self.parts
        # A register that the largest tiles point to pixels with holds what is fetched.
        self.tile_m = min(tile[0], POINTERS.index(int(FOLLOWING[1:])))
        self.copies = bool(self.given.parts) or self._crowded(target)
        self.pitch = workload.channels + _GAP * self.copies
        self.threads = min(threads, pixels // _FEWEST)
        cache = target.cpu["l2_kib"] * 1024
        wanted = math.ceil(4 * pixels * workload.channels / (cache * _BAND_SHARE))
        self.bands = _bands(pixels, self.threads, min(wanted, pixels // (_FEWEST * self.threads)))
        early = tiles.finished(workload.epilogue)
        self.early, self.late = workload.epilogue[:early], workload.epilogue[early:]
        self.after = Late(self.late, a53.SET)
        self.finish = tiles.finish_of(self.early) or Finish()
        self.storage = tiles.Storage(workload.channels * workload.out_channels, halves)
        self.kernels: dict[str, Sgemm] = {}

    def _crowded(self, target: Target) -> bool:
        """Whether a tile's pixels, read in place, would need more than half of the ways of those sets that they share."""
        ways = int(target.cpu["l1d_ways"])
        way = int(target.cpu["l1d_kib"]) * 1024 // ways
        return 2 * self.tile_m * math.gcd(4 * self.workload.channels, way) > way * ways

    def kernel(self) -> Kernel:
        """The implementation."""
        _, _, *operands, (out_shape, out_dtype) = self.workload.shapes
        sources = images.arguments(self.given)
        arguments: list[Argument | Constant] = [
            *sources,
            self.storage.argument(self.packing),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(np.arange(self.tile_m, dtype="int32") * (4 * self.pitch)),
            Constant(np.zeros(2, "int32")),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            self.weights, *self.operands, self.offsets, self.rows = buffers[len(sources) :]
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self.result = loops.flat(out, math.prod(out_shape))
            self.images = Images(self.given, buffers[: len(sources)])
            self._body()
        size = self.panel_runs[0].size
        notes = f"panels of {size} channels, {self.parts} parts, {self.bands[0][0].size} pixels a thread and band"
        notes += self.storage.words
        return Kernel(builder.get(), tuple(arguments), (*self.kernels.values(), *self.after.microkernels), notes)

    @property
    def packing(self) -> Packing:
        """Weights OHWI in panels."""
        return panels_alone(self.workload.out_channels, self.workload.channels, self.panel_runs)

    def _body(self) -> None:
        with T.parallel(self.threads) as thread:
            for runs in self.bands:
                more, *rest = runs
                if not rest:
                    self._pixels(more, thread, thread)
                    continue
                with T.If(thread < more.count):
                    with T.Then():
                        self._pixels(more, thread, thread)
                    with T.Else():
                        self._pixels(rest[0], thread - more.count, thread)

    def _pixels(self, run: Run, index: Any, thread: Any) -> None:
        """What a thread has of a band: piece ``index`` of ``run``. Panel after panel meets it."""
        work, first, count = self.workload, run.first + index * run.size, run.size
        image, begin = self.images.buffers[0], first
        if self.copies:
            image, begin = T.alloc_buffer((count * self.pitch + SLACK,), "float32"), 0
            with T.serial(count) as pixel:
                self.images.copy_pixel(image, pixel * self.pitch, first + pixel)
        sums = T.alloc_buffer((count * self.panel_runs[0].size,), "float32")
        groups = _even(count, -(-count // self.tile_m))
        for panels in self.panel_runs:
            with T.serial(panels.count) as panel:
                channel = panels.first + panel * panels.size
                for part in range(self.parts):
                    for group in groups:
                        with T.serial(group.count) as tile:
                            within = group.first + tile * group.size
                            places = (first + within, begin + within, within)
                            share = (thread * count + within, count)
                            self._tile(image, sums, places, group.size, channel, panels.size, part, share)
        if self.late:
            operands = tiles.operands_behind(work.epilogue, len(self.early), self.operands)
            size = (work.width, work.out_channels)
            self.after.apply(self.result, first * size[1], first, count, size, operands)

    def _tile(
        self,
        image: Any,
        sums: Any,
        places: tuple[Any, Any, Any],
        pixels: int,
        channel: Any,
        size: int,
        part: int,
        share: tuple[Any, int],
    ) -> None:
        """A tile's sums over a part of the channels: behind the last one its results.

        ``places``: its first pixel in the result, in ``image`` and in ``sums``. ``share``: where of the next weights it begins
        to fetch, in pixels' shares, and how many of these a thread has.
        """
        work, last = self.workload, part == self.parts - 1
        to, begin, within = places
        at, count = share
        weights = channel * work.channels + part * self.part * size
        finish = replace(self.finish if last else Finish(), bias=self.finish.bias and not part, goes_on=part > 0)
        steps = self.part // STEP
        # The next weights, evenly spread over all tiles of all threads: else memory would be idle but for the first tile.
        bytes_of_tile = self.storage.bytes_each * self.part * size * pixels / (count * self.threads)
        following = 4 * math.ceil(bytes_of_tile / steps / 4) if pixels * size >= _ROOM else 0
        kernel = Sgemm(
            pixels,
            size,
            finish,
            reach=True,
            following=following,
            halves=self.storage.halves,
            turns=_TURNS,
            stored=tiles.stored_steps(steps, pixels) if last else 0,
        )
        self.kernels[kernel.symbol] = kernel
        fetched = at * (self.part * size) // (count * self.threads)
        waiting = T.address_of(sums[within * size])
        bias = T.address_of((self.operands[0] if finish.bias else self.weights)[channel])
        T.evaluate(
            T.call_extern(
                "int32",
                kernel.symbol,
                T.address_of(self.result[to * work.out_channels + channel]) if last else waiting,
                T.int64((work.out_channels if last else size) * 4),
                T.address_of(image[begin * self.pitch + part * self.part]),
                T.address_of(self.offsets[0]),
                T.address_of(self.weights[weights]),
                T.address_of(self.rows[0]),
                T.int64(1),
                T.int64(steps),
                T.int64(1),
                T.int64(0),
                waiting if part else bias,
                T.int64(0),
                T.address_of(self.weights[tirx.min(weights + self.part * size + fetched, self.storage.elements - 1)]),
            )
        )


def _bands(pixels: int, threads: int, count: int) -> list[list[Run]]:
    """``pixels`` in ``count`` bands, each of which as runs of pieces, in all one for each thread; about the same size all."""
    size, more = divmod(pixels, threads * count)
    bands, first = [], 0
    for band in range(count):
        large = min(threads, max(0, more - band * threads))
        runs = [Run(first, large, size + 1, size + 1)]
        runs.append(Run(first + large * (size + 1), threads - large, size, size))
        bands.append([run for run in runs if run.count])
        first += threads * size + large
    return bands


def _even(extent: int, count: int) -> list[Run]:
    """``extent`` in ``count`` pieces of about the same size."""
    return _bands(extent, count, 1)[0]
