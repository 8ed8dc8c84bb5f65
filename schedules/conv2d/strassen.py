"""1x1 convolution by Strassen's product of matrices, in Winograd's form: 7 products of halves where 8 are due.

The image is a matrix of pixels x channels, the weights one of channels x output channels. Both are cut in four: the even and
the odd pixels, the two halves of the channels, the two halves of the output channels. Two neighbouring pixels make a *pair*.
For each pair seven combinations of its four quarters are laid out, V [pair][7][C/2]; the weights' seven are made when they are
packed, U [panel][7][C/2][tile_n], in double precision. The micro-kernel multiplies them to M [pair][7][tile_n], which stays in
the L1 cache; of its seven vectors come the four results of a pair's pixels in both halves of the output channels.

With quarters a11 (first pixel, first channels), a12, a21, a22 and b11, b12, b21, b22 alike (Winograd 1971):
    s1 = a21 + a22, s2 = s1 - a11, s3 = a11 - a21, s4 = a12 - s2
    t1 = b12 - b11, t2 = b22 - t1, t3 = b22 - b12, t4 = t2 - b21
    m = a11*b11, a12*b21, s4*b22, a22*t4, s1*t1, s2*t2, s3*t3
    u = m1 + m6, c11 = m1 + m2, c12 = u + m5 + m3, c21 = u + m7 - m4, c22 = u + m7 + m5

Pairs are taken in blocks of ``block`` tiles, whose V stays in the L2 cache while all panels meet it: more come slower from
there than weights from memory. Rounding errors are up to
three times those of a direct sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Chunk, Packing, Sum
from bitkiln.schedules.conv2d.tiles import SLACK, at_least, operands_behind
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_text
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import a53, kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES, STEP, Sgemm
from bitkiln.schedules.microkernels.a53.sgemm_stack import MOST_DEPTH, SgemmStack
from bitkiln.schedules.steps import before_exponentials, expression
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

_PRODUCTS = 7
_LANES = 4
_B12, _B11, _B22, _B21 = range(4)
#: b11, b21, b22, t4, t1, t2, t3 as sums of them, added in the order in which t1, t2 and t4 follow from each other.
_COMBINED: tuple[Sum, ...] = (
    ((_B11, 1.0),),
    ((_B21, 1.0),),
    ((_B22, 1.0),),
    ((_B12, -1.0), (_B11, 1.0), (_B22, 1.0), (_B21, -1.0)),
    ((_B12, 1.0), (_B11, -1.0)),
    ((_B12, -1.0), (_B11, 1.0), (_B22, 1.0)),
    ((_B12, -1.0), (_B22, 1.0)),
)
#: Floats between pairs, so that they do not compete for the same sets of the L1 cache.
_GAP = 16
#: Tiles of a block, pairs of a tile, and the tile of others.
_TILES, _SEVENS, _WIDE = 2, 7, (8, 12)
#: So much of V stays in the L2 cache while weights stream through it.
_STAYS_BYTES = 104 * 1024


def applies(workload: Conv2d) -> bool:
    """Whether ``workload`` can be computed so: pixels that follow each other, quarters of whole vectors."""
    pointwise = workload.kernel == workload.strides == (1, 1) and not any(workload.padding)
    plain = pointwise and workload.groups == 1 and workload.pool is None and workload.out == "float32"
    halves = workload.channels % (2 * STEP) == 0 and workload.out_channels % (2 * _LANES) == 0
    return plain and halves and not workload.whole and workload.height * workload.width > 1


def estimate(workload: Conv2d, cycles_per_byte: float) -> float:
    """Cycles, roughly: products at the micro-kernels' pace or weights from memory for each block, and what combines them."""
    pairs = -(-workload.height * workload.width // 2)
    products = _PRODUCTS * pairs * workload.channels * workload.out_channels / 4
    weights = _PRODUCTS * workload.channels * workload.out_channels * -(-pairs // (_TILES * _SEVENS))
    # Measured on the simulated core: V and its trips through the L2 cache, or memory; M, its ends and its results.
    block_bytes = 4 * _PRODUCTS * (workload.channels // 2) * _TILES * _SEVENS
    trips = 7 if block_bytes <= _STAYS_BYTES else 20
    combined = 2 * pairs * (trips * workload.channels + 10 * workload.out_channels)
    return max(products / 3.1, weights * cycles_per_byte) + combined


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """The tile that wastes least; two of them a block, whose V meets all weights before it leaves the cache."""
    pairs = -(-workload.height * workload.width // 2)
    sevens = pairs % 8 and pairs % _SEVENS in (0, 4, 5, 6)
    tile = kernel_set(target).sgemm_sevens if sevens else _WIDE
    return {"tile": size_text(tile), "block": _TILES}


def emit(workload: Conv2d, tile: tuple[int, int], block: int) -> Kernel:
    """The implementation with register ``tile`` (pairs, channels)."""
    return _Strassen(workload, tile, block).kernel()


def strassen_packing(half: int, depth: int, panels: Sequence[Run]) -> Packing:
    """Weights [2 * half][2 * depth], combined and in panels."""
    chunks = tuple(Chunk(run, (Run(0, 1, run.size, run.used),)) for run in panels)
    # b12 is of the first channels and the second output channels.
    second = half * 2 * depth
    taps = (second, 0, second + depth, depth)
    return Packing(half, depth, 2 * depth, taps, _COMBINED, chunks, AHEAD_BYTES // 4)


class _Strassen:
    """The kernel under construction."""

    def __init__(self, workload: Conv2d, tile: tuple[int, int], block: int) -> None:
        self.given, self.workload = workload, (workload := images.joined(workload))
        self.count = workload.height * workload.width
        self.pairs = -(-self.count // 2)
        self.depth, self.half = workload.channels // 2, workload.out_channels // 2
        # The micro-kernels begin at 3 pixels.
        self.tile_m = min(tile[0], max(3, self.pairs))
        self.tile_n = tile[1]
        self.block = min(block or self.pairs, -(-self.pairs // self.tile_m)) * self.tile_m
        self.panel_runs = split(self.half, self.tile_n, 4)
        self.data_pitch = _PRODUCTS * self.depth + _GAP
        early = before_exponentials(workload.epilogue)
        self.early, self.late = workload.epilogue[:early], workload.epilogue[early:]
        self.after = Late(self.late, a53.SET)
        self.kernels: dict[str, Sgemm | SgemmStack] = {}

    def kernel(self) -> Kernel:
        """The implementation."""
        _, _, *operands, (out_shape, out_dtype) = self.workload.shapes
        sources = images.arguments(self.given)
        packed = _PRODUCTS * self.depth * sum(run.count * run.size for run in self.panel_runs) + AHEAD_BYTES // 4
        arguments: list[Argument | Constant] = [
            *sources,
            Argument((1,), (packed,), "float32", strassen_packing(self.half, self.depth, self.panel_runs)),
            *(Argument((2 + i,), shape, dtype) for i, (shape, dtype) in enumerate(operands)),
            Constant(np.arange(self.tile_m, dtype="int32") * (4 * self.data_pitch)),
            Constant(np.zeros(2, "int32")),
        ]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("conv2d")
            T.func_attr({"tirx.noalias": True})
            buffers = loops.parameters(arguments)
            self.weights, *self.operands, self.offsets, self.rows = buffers[len(sources) :]
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self.images = Images(self.given, buffers[: len(sources)])
            self.result = loops.flat(out, math.prod(out_shape))
            for run in split(self.pairs, self.block):
                with T.serial(run.count) as block:
                    self._block(run.first + block * run.size, run.used)
        notes = f"Strassen, tiles of {self.tile_m} pairs x {self.tile_n}, {self.block} of {self.pairs} pairs a block"
        return Kernel(builder.get(), tuple(arguments), (*self.kernels.values(), *self.after.microkernels), notes)

    def _block(self, first: Any, pairs: int) -> None:
        """The pairs from ``first`` on: V, then panel by panel M and its results."""
        groups = [at_least(run, 3) for run in split(pairs, self.tile_m)]
        room = groups[-1].first + groups[-1].count * groups[-1].size
        data = T.alloc_buffer((room * self.data_pitch + SLACK,), "float32")
        with T.parallel(pairs) as pair:
            self._combine(data, pair * self.data_pitch, first + pair)
        for run in self.panel_runs:
            with T.parallel(run.count) as index:
                products = T.alloc_buffer((self.tile_m * _PRODUCTS * run.size,), "float32")
                channel = run.first + index * run.size
                for group in groups:
                    with T.serial(group.count) as tile:
                        within = group.first + tile * group.size
                        self._multiply(products, data, within, channel, group.size, run.size)
                        with T.serial(group.used) as pair:
                            at = pair * (_PRODUCTS * run.size)
                            self._results(products, at, first + within + pair, channel, run)
        if self.late:
            with T.parallel(2 * pairs) as index:
                self._late_once(2 * first + index)

    def _pixel(self, pair: Any, second: Any) -> Any:
        """A pixel of a pair. An odd pixel at the end is a pair with itself."""
        pixel = pair * 2 + second
        return tirx.min(pixel, self.count - 1) if self.count % 2 else pixel

    def _combine(self, data: Any, to: Any, pair: Any) -> None:
        """V of a pair."""
        depth, pixels = self.depth, [self._pixel(pair, second) for second in (0, 1)]
        # Stretches of channels whose both halves lie in one piece each.
        edges = sorted({0, depth, *(piece.begin % depth for piece in self.images.pieces)})
        for begin, end in pairwise(edges):

            def vector(at: Any, begin: int = begin) -> None:
                (a11, a12), (a21, a22) = (
                    [self.images.element(pixel, half + begin, at) for half in (0, depth)] for pixel in pixels
                )
                s1 = a21 + a22
                s2 = s1 - a11
                for number, value in enumerate((a11, a12, a12 - s2, a22, s1, s2, a11 - a21)):
                    T.buffer_store(data, value, [to + number * depth + begin + at])

            loops.sweep(end - begin, vector, _LANES)

    def _multiply(self, products: Any, data: Any, pair: Any, channel: Any, pairs: int, size: int) -> None:
        """M of a tile of ``pairs`` and a panel of ``size`` channels from ``channel`` on."""
        ends = (
            T.address_of(products[0]),
            T.int64(_PRODUCTS * size * 4),
            T.address_of(data[pair * self.data_pitch]),
            T.address_of(self.offsets[0]),
            T.address_of(self.weights[channel * (_PRODUCTS * self.depth)]),
        )
        if self.depth <= MOST_DEPTH:
            self._call(SgemmStack(pairs, size, self.depth), *ends, T.int64(_PRODUCTS), T.int64(size * 4))
            return
        sums = (T.address_of(self.rows[0]), T.int64(1), T.int64(self.depth // STEP))
        ways = (T.int64(_PRODUCTS), T.int64(size * 4), T.address_of(self.weights[0]), T.int64(self.depth * 4))
        self._call(Sgemm(pairs, size, reach=True), *ends, *sums, *ways, T.int64(0))

    def _call(self, kernel: Sgemm | SgemmStack, *arguments: Any) -> None:
        """Calls a micro-kernel; the arguments are its own."""
        self.kernels[kernel.symbol] = kernel
        T.evaluate(T.call_extern("int32", kernel.symbol, *arguments))

    def _results(self, products: Any, start: Any, pair: Any, channel: Any, panel: Run) -> None:
        """The results of a pair in the ``panel`` from ``channel`` on, in both halves of the output channels."""
        width, out_channels = self.workload.width, self.workload.out_channels

        def vector(at: int) -> None:
            m1, m2, m3, m4, m5, m6, m7 = (
                T.bind(products[_vector(start + number * panel.size + at)]) for number in range(_PRODUCTS)
            )
            u = T.bind(m1 + m6)
            v = T.bind(u + m7)
            for second, half, value in ((0, 0, m1 + m2), (0, 1, u + m5 + m3), (1, 0, v - m4), (1, 1, v + m5)):
                pixel, to = self._pixel(pair, second), channel + half * self.half + at
                where = (pixel // width, pixel % width, _vector(to))
                result = expression(self.early, T.bind(value), self.operands, where)
                T.buffer_store(self.result, result, [_vector(pixel * out_channels + to)])

        for at in range(0, panel.used, _LANES):
            vector(at)

    def _late_once(self, pixel: Any) -> None:
        """The steps left for a pixel, unless it is none: a pair at the end may have one."""
        if self.count % 2 == 0:
            self._late(pixel)
            return
        with T.If(pixel < self.count), T.Then():
            self._late(pixel)

    def _late(self, pixel: Any) -> None:
        """The steps left for a pixel's results, in place."""
        operands = operands_behind(self.workload.epilogue, len(self.early), self.operands)
        size = (self.workload.width, self.workload.out_channels)
        self.after.apply(self.result, pixel * size[1], pixel, 1, size, operands)


def _vector(first: Any) -> Any:
    """Indices of ``_LANES`` elements."""
    return T.ramp(first, 1, _LANES)
