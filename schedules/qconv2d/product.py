"""Convolution of whole numbers as a product: tiles of pixels x 8 output channels, sums in segments of 16 bits.

A block of 8 pixels is packed, [step][pixel] of 16 bits, and meets the weights of all panels, [panel][step][channel] of 16
bits. The image is read in place, or from a copy with a border of the value that means zero. A step is a tap of one input
channel; rows of taps are filled up to whole pieces of the packing, which no panel's plan takes. Where there are more weights
than half of the L2 cache holds, a group of blocks that fills the other half is packed first, and each panel's weights meet all
of it.

The last block and the last panel repeat pixels and channels of the ones before them where there are too few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import geometry, split
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels.a53.igemm import AHEAD, CHANNELS, WholeProduct
from bitkiln.schedules.microkernels.a53.ipack import PIECE, PIXELS, PackWhole
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES
from bitkiln.schedules.qconv2d import tables
from bitkiln.schedules.qconv2d.plain import padded_image
from bitkiln.schedules.qconv2d.segments import Layout, laid
from bitkiln.schedules.workload import QConv2d
from bitkiln.targets import Target

#: Strips of blocks that threads share: as many as any of our boards has cores; more where there are many blocks.
_STRIPS, _MANY_STRIPS, _MANY_BLOCKS = 4, 16, 64
#: Pixels of a tile: sums of 7 waste less where images are 7 wide.
_TILES = (8, 7)


def applies(workload: QConv2d) -> bool:
    """Whether segments are planned: no groups, and a panel of channels at least."""
    return workload.segment > 0 and workload.groups == 1 and workload.out_channels >= CHANNELS


def emit(workload: QConv2d, target: Target) -> Kernel:
    """The implementation."""
    return _Product(workload, target.cpu["l2_kib"] * 1024).kernel()


class _Product:
    def __init__(self, workload: QConv2d, cache: int) -> None:
        self.workload = workload
        self.geometry = geometry(workload)
        self.pixels = len(self.geometry.pixels)
        self.tile = min(self.pixels, min(_TILES, key=lambda tile: -(-self.pixels // tile) * (tile + 4)))
        self.micro = WholeProduct(self.tile, workload.segment, tables.limited(workload))
        self.blocks = -(-self.pixels // self.tile)
        self.panels = -(-workload.out_channels // CHANNELS)
        self.pieces = -(-self.geometry.row_length // PIECE)
        self.segments = int(self._whole(np.array(workload.segments)))
        self.steps = self.segments * workload.segment
        self.block_size = len(self.geometry.rows) * self.pieces * PIECE * PIXELS
        self.panel_size = self.steps * CHANNELS
        weights = 2 * self.panels * self.panel_size
        self.group = min(self.blocks, max(1, cache // 2 // (2 * self.block_size))) if weights > cache // 2 else 0
        self.copies = any(workload.padding) or self.geometry.row_length % PIECE != 0

    def kernel(self) -> Kernel:
        work = self.workload
        (data_shape, _), *_, (out_shape, _) = work.shapes
        arguments = (
            Argument((0,), data_shape, "int8"),
            Argument((1,), (self.panels * self.panel_size + AHEAD * CHANNELS,), "int16", self.pack),
            Argument((1, 2, 3), (self.panels * TABLE_BYTES,), "int8", self.tables),
            Argument((1,), (self.panels * self.steps + AHEAD,), "int32", self.places),
            Argument((1,), (self.panels,), "int32", self.counts),
            Constant(self._pixel_table()),
            Constant(np.array(self.geometry.rows, "int32")),
        )
        with IRBuilder() as builder, T.prim_func():
            T.func_name("qconv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.table, self.place, self.count, self.pixel_table, self.rows = loops.parameters(
                arguments
            )
            self.out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), math.prod(out_shape), "int8")
            flat = loops.flat(data, math.prod(data_shape), "int8")
            self.image = padded_image(work, flat, PIECE) if self.copies else flat
            self._groups() if self.group else self._blocks_in_parallel()
        order = f"{self.group} of {self.blocks} blocks meet each weight" if self.group else "pixels read once"
        notes = f"tiles of {self.tile} pixels x {CHANNELS} channels, segments of {work.segment}, {order}"
        return Kernel(builder.get(), arguments, (PackWhole(), self.micro), notes)

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI as [panel][step][channel], and what is read ahead of the last."""
        return self._filled(self._laid(arrays).weights, CHANNELS)

    def places(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Where among the packed pixels each step of a panel finds its own, in bytes."""
        return self._filled((self._laid(arrays).steps * (2 * PIXELS)).astype(np.int32)[..., None], 1)

    def counts(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The segments of each panel."""
        return self._whole(self._laid(arrays).counts).astype(np.int32)

    def _whole(self, counts: np.ndarray) -> np.ndarray:
        """So many segments as the micro-kernel takes, at least."""
        together = self.micro.together
        return np.asarray(np.maximum(self.micro.least, -(-counts // together) * together))

    def _laid(self, arrays: Sequence[np.ndarray]) -> Layout:
        found = laid(steps_of(self.workload, arrays[0]), CHANNELS, self.workload.segment)
        if found.counts.max() > self.workload.segments:
            raise ValueError(f"weights need {found.counts.max()} segments: {self.workload.key()}")
        return found

    def _filled(self, rows: np.ndarray, width: int) -> np.ndarray:
        """[panel][step][width], as many steps as there is room for, and those that are read ahead of the last."""
        filled = np.zeros((self.panels, self.steps, width), rows.dtype)
        used = min(self.steps, rows.shape[1])
        filled[:, :used] = rows[:, :used]
        return np.concatenate([filled.ravel(), np.zeros(AHEAD * width, rows.dtype)])

    def tables(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What the sums of each panel end with."""
        return tables.of(self.workload, arrays)

    def _pixel_table(self) -> np.ndarray:
        """Byte offsets of each block's pixels, the last of a short block repeated."""
        firsts = [self._first(block) for block in range(self.blocks)]
        rows = [self.geometry.pixels[first : first + self.tile] for first in firsts]
        return np.pad(np.stack(rows), ((0, 0), (0, PIXELS - self.tile)), "edge").astype("int32").ravel()

    def _first(self, block: int) -> int:
        return min(block * self.tile, self.pixels - self.tile)

    def _blocks_in_parallel(self) -> None:
        strips = min(self.blocks, _STRIPS if self.blocks < _MANY_BLOCKS else _MANY_STRIPS)
        with T.parallel(strips) as strip:
            packed = T.alloc_buffer((self.block_size,), "int16")
            with T.serial(strip * self.blocks // strips, (strip + 1) * self.blocks // strips) as block:
                self._pack_block(packed, 0, block)
                whole = self.workload.out_channels // CHANNELS
                self._multiply(packed, 0, block, 0, whole)
                if whole < self.panels:
                    self._multiply(packed, 0, block, whole)

    def _groups(self) -> None:
        packed = T.alloc_buffer((self.group * self.block_size,), "int16")
        for run in split(self.blocks, self.group):
            with T.serial(run.count) as group:
                first = run.first + group * run.size
                with T.parallel(run.used) as block:
                    self._pack_block(packed, block * self.block_size, first + block)
                with T.parallel(self.panels) as panel, T.serial(run.used) as block:
                    self._multiply(packed, block * self.block_size, first + block, panel)

    def _pack_block(self, packed: Any, to: Any, block: Any) -> None:
        T.evaluate(
            T.call_extern(
                "int32",
                PackWhole().symbol,
                T.address_of(packed[to]),
                T.address_of(self.image[0]),
                T.address_of(self.pixel_table[block * PIXELS]),
                T.address_of(self.rows[0]),
                T.int64(len(self.geometry.rows)),
                T.int64(self.pieces),
            )
        )

    def _multiply(self, packed: Any, at: Any, block: Any, panel: Any, count: int = 1) -> None:
        """A block and ``count`` panels from ``panel`` on."""
        work = self.workload
        pixel = T.min(block * self.tile, self.pixels - self.tile)
        channel = T.min(panel * CHANNELS, work.out_channels - CHANNELS)
        T.evaluate(
            T.call_extern(
                "int32",
                self.micro.symbol,
                T.address_of(self.out[pixel * work.out_channels + channel]),
                T.int64(work.out_channels),
                T.address_of(packed[at]),
                T.address_of(self.weights[panel * self.panel_size]),
                T.address_of(self.table[panel * TABLE_BYTES]),
                T.address_of(self.place[panel * self.steps]),
                T.address_of(self.count[panel]),
                T.int64(count),
                T.int64(self.steps),
            )
        )


def steps_of(workload: QConv2d, weight: np.ndarray) -> np.ndarray:
    """Weights OHWI as the product's steps, int [O, steps]: rows of taps filled up with zeros."""
    taps = geometry(workload)
    rows, length = len(taps.rows), taps.row_length
    filled = np.zeros((len(weight), rows, -(-length // PIECE) * PIECE), np.int32)
    filled[..., :length] = weight.reshape(len(weight), rows, length)
    return filled.reshape(len(weight), -1)
