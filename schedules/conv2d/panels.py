"""1x1 convolution for several threads, which share the panels of weights: each comes from memory once for many pixels.

Where weights do not fit the L2 cache, threads that share the pixels would each read all of them. Here a thread takes a panel
of ``tile_n`` output channels and brings many pixels to it, a *band*: as many as stay in the L2 cache, the result's among them.
The channels are summed in parts, so that a panel's weights of a part stay in the L1 cache while all pixels meet them; sums wait
in a buffer there meanwhile. Pixels are copied first, with gaps: a power of two apart they would share few sets of the caches.

Weights are packed [panel][k][tile_n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from bitkiln.schedules.conv2d.tiles import SLACK, pack_panels
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import FOLLOWING, POINTERS, STEP, Finish, Sgemm
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Floats between pixels, a cache line.
_GAP = 16
#: Channels of a part: a panel's weights of so many, and as much of a tile's pixels, are half of the L1 cache.
_PART = 256
#: The share of the L2 cache that a band's image and result take; weights pass through the rest.
_BAND_SHARE = 7 / 8
#: Fewer pixels do not pay for the copy, and the micro-kernels begin at three.
_FEWEST_PIXELS, _FEWEST_OF_BAND = 16, 4
_TILE = (8, 8)
#: Weights, in sizes of the L2 cache, that threads should not each read: where one band is all, and where there are several.
_LARGE_WEIGHTS, _MANY_WEIGHTS = 3 / 4, 3


def applies(workload: Conv2d) -> bool:
    """Whether ``workload`` can be computed so."""
    pointwise = workload.kernel == workload.strides == (1, 1) and workload.groups == 1 and not any(workload.padding)
    plain = workload.pool is None and workload.out == "float32" and not workload.whole
    sizes = workload.channels % STEP == 0 and workload.out_channels % 4 == 0
    return pointwise and plain and sizes and workload.height * workload.width >= _FEWEST_PIXELS


def pays(workload: Conv2d, target: Target, threads: int, halves: bool = False) -> bool:
    """Whether it is the better way for so many ``threads``: their weights would come from memory again and again.

    Of a few bands each reads all weights, too: then threads with pixels of their own are as good, unless weights are many.
    """
    cache = target.cpu["l2_kib"] * 1024
    weights = (2 if halves else 4) * workload.channels * workload.out_channels
    least = _LARGE_WEIGHTS if _bands(workload, cache) == 1 else _MANY_WEIGHTS
    return threads > 1 and weights > cache * least


def default() -> dict[str, int | str]:
    """The tile; as a block counts the band."""
    return {"tile": size_text(_TILE), "block": 0}


def emit(workload: Conv2d, tile: tuple[int, int], target: Target, halves: bool = False) -> Kernel:
    """The implementation with register ``tile`` (pixels, channels), or with the first that takes ``halves``."""
    offered = kernel_set(target).sgemm_halves
    if halves and tile not in offered:
        tile = offered[0]
    return _Panels(workload, tile, int(target.cpu["l2_kib"]) * 1024, halves).kernel()


class _Panels:
    """The kernel under construction."""

    def __init__(self, workload: Conv2d, tile: tuple[int, int], cache_bytes: int, halves: bool) -> None:
        self.given, self.workload = workload, (workload := images.joined(workload))
        self.pixels = workload.height * workload.width
        self.panel_runs = split(workload.out_channels, tile[1], 4)
        counts = range(1, max(1, workload.channels // _PART) + 1)
        self.parts = max(count for count in counts if workload.channels % (count * STEP) == 0)
        self.part = workload.channels // self.parts
        self.pitch = workload.channels + _GAP
        # A register that the largest tiles point to pixels with holds what is fetched.
        self.tile_m = min(tile[0], POINTERS.index(int(FOLLOWING[1:])))
        self.bands = _even(self.pixels, _bands(workload, cache_bytes))
        early = tiles.finished(workload.epilogue)
        self.early, self.late = workload.epilogue[:early], workload.epilogue[early:]
        self.finish = tiles.finish_of(self.early) or Finish()
        self.storage = tiles.Storage(workload.channels * workload.out_channels, halves)
        self.kernels: dict[str, Sgemm] = {}

    def kernel(self) -> Kernel:
        """The implementation."""
        _, _, *operands, (out_shape, out_dtype) = self.workload.shapes
        sources = images.arguments(self.given)
        arguments: list[Argument | Constant] = [
            *sources,
            self.storage.argument(self.pack),
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
            self._body(Images(self.given, buffers[: len(sources)]))
        notes = f"panels of {self.panel_runs[0].size} channels, {self.parts} parts, {self.bands[0].size} pixels a band"
        notes += self.storage.words
        return Kernel(builder.get(), tuple(arguments), tuple(self.kernels.values()), notes)

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels."""
        weights = arrays[0].reshape(self.workload.out_channels, -1)
        return pack_panels(weights, self.panel_runs)

    def _body(self, data: Images) -> None:
        work = self.workload
        copied = T.alloc_buffer((self.pixels * self.pitch + SLACK,), "float32")
        with T.parallel(work.height) as y, T.serial(work.width) as x:
            pixel = y * work.width + x
            data.copy_pixel(copied, pixel * self.pitch, pixel)
        for band in self.bands:
            for count in range(band.count):
                self._band(copied, band.first + count * band.size, band.size)
        if self.late:
            operands = tiles.operands_behind(work.epilogue, len(self.early), self.operands)
            with T.parallel(work.height) as y:
                first, size = y * work.width, (work.width, work.out_channels)
                loops.apply_late(self.result, first * size[1], first, size[0], size, self.late, operands)

    def _band(self, image: Any, first: int, pixels: int) -> None:
        """The ``pixels`` from ``first`` on: panels in parallel."""
        groups = _even(pixels, -(-pixels // self.tile_m))
        for panels in self.panel_runs:
            with T.parallel(panels.count) as panel:
                sums = T.alloc_buffer((pixels * panels.size,), "float32")
                channel = panels.first + panel * panels.size
                for part in range(self.parts):
                    for group in groups:
                        with T.serial(group.count) as index:
                            within = group.first + index * group.size
                            self._tile(image, sums, (first, within), group.size, channel, panels.size, part, pixels)

    def _tile(
        self, image: Any, sums: Any, at: tuple[int, Any], pixels: int, channel: Any, size: int, part: int, band: int
    ) -> None:
        """A tile's sums over a part of the channels: behind the last one its results.

        ``at`` is the first pixel of the ``band``, and where in it the tile begins.
        """
        work, last = self.workload, part == self.parts - 1
        first, within = at
        weights = channel * work.channels + part * self.part * size
        finish = replace(self.finish if last else Finish(), bias=self.finish.bias and not part, goes_on=part > 0)
        # The next weights, evenly spread over the band's tiles: else memory would be idle but for the first tile.
        following = -(-self.storage.bytes_each * STEP * size * pixels // band // 4) * 4
        kernel = Sgemm(pixels, size, finish, reach=True, following=following, halves=self.storage.halves)
        self.kernels[kernel.symbol] = kernel
        fetched = within * (self.part * size) // band
        waiting = T.address_of(sums[within * size])
        to = T.address_of(self.result[(first + within) * work.out_channels + channel]) if last else waiting
        begin = waiting if part else T.address_of((self.operands[0] if finish.bias else self.weights)[channel])
        T.evaluate(
            T.call_extern(
                "int32",
                kernel.symbol,
                to,
                T.int64((work.out_channels if last else size) * 4),
                T.address_of(image[(first + within) * self.pitch + part * self.part]),
                T.address_of(self.offsets[0]),
                T.address_of(self.weights[weights]),
                T.address_of(self.rows[0]),
                T.int64(1),
                T.int64(self.part // STEP),
                T.int64(1),
                T.int64(0),
                begin,
                T.int64(0),
                T.address_of(self.weights[tirx.min(weights + self.part * size + fetched, self.storage.elements - 1)]),
            )
        )


def _bands(workload: Conv2d, cache_bytes: int) -> int:
    """Bands of pixels whose image and result stay in the L2 cache."""
    bytes_of_pixel = 4 * (workload.channels + _GAP + workload.out_channels)
    pixels = workload.height * workload.width
    return min(math.ceil(pixels * bytes_of_pixel / (cache_bytes * _BAND_SHARE)), pixels // _FEWEST_OF_BAND)


def _even(extent: int, count: int) -> list[Run]:
    """``extent`` in ``count`` pieces of about the same size."""
    size, more = divmod(extent, count)
    runs = [Run(0, more, size + 1, size + 1), Run(more * (size + 1), count - more, size, size)]
    return [run for run in runs if run.count and run.size]
