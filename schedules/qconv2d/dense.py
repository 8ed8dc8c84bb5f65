"""Layers of whole numbers whose result is one pixel: dense ones, and whatever is like them.

What the kernel reads is one row of numbers. Weights stay bytes, [panel][piece][output channel][number], and are read once;
threads share the panels of 8 output channels. Rows are filled up with zeros to whole pieces; the last panel repeats channels of
the one before it where there are too few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.microkernels.a53.idense import LARGEST, PIECE, WholeDense
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES
from bitkiln.schedules.qconv2d import tables
from bitkiln.schedules.workload import QConv2d

#: Products that sums of 16 bits hold, which ``QConv2d.segment`` says of such layers; they have no segments.
PRODUCTS = 2
#: Runs of panels that threads share.
_RUNS = 16


def fits(workload: QConv2d, weight: np.ndarray) -> bool:
    """Whether the micro-kernel computes a layer with such weights: one pixel of all the image, 8 output channels at least."""
    whole = workload.kernel == (workload.height, workload.width) and not any(workload.padding)
    single = workload.groups == 1 and whole and workload.out_channels >= CHANNELS
    return single and int(np.abs(weight).max(initial=0)) <= LARGEST


def applies(workload: QConv2d) -> bool:
    """Whether it was planned to be so."""
    return workload.segment == PRODUCTS and not workload.segments


def emit(workload: QConv2d) -> Kernel:
    """The implementation."""
    return _Dense(workload).kernel()


class _Dense:
    def __init__(self, workload: QConv2d) -> None:
        self.workload = workload
        self.size = math.prod(workload.shapes[0][0])
        self.panels = -(-workload.out_channels // CHANNELS)
        self.pieces = -(-self.size // PIECE)
        self.panel_bytes = self.pieces * PIECE * CHANNELS
        self.micro = WholeDense(tables.limited(workload))

    def kernel(self) -> Kernel:
        (data_shape, _), *_, (out_shape, _) = self.workload.shapes
        arguments = (
            Argument((0,), data_shape, "int8"),
            Argument((1,), (self.panels * self.panel_bytes,), "int8", self.pack),
            Argument((1, 2, 3), (self.panels * TABLE_BYTES,), "int8", self.tables),
        )
        with IRBuilder() as builder, T.prim_func():
            T.func_name("qconv2d")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.table = loops.parameters(arguments)
            self.out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), self.workload.out_channels, "int8")
            self.row = self._filled(loops.flat(data, self.size, "int8"))
            self._multiply_all()
        return Kernel(builder.get(), arguments, (self.micro,), f"panels of {CHANNELS} rows of bytes")

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights OHWI in panels of pieces, rows filled up with zeros."""
        channels = self.workload.out_channels
        rows = np.zeros((channels, self.pieces * PIECE), np.int8)
        rows[:, : self.size] = arrays[0].reshape(channels, self.size)
        panels = (rows[first : first + CHANNELS] for first in tables.firsts(channels))
        return np.concatenate([p.reshape(CHANNELS, self.pieces, PIECE).transpose(1, 0, 2).ravel() for p in panels])

    def tables(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """What the sums of each panel end with."""
        return tables.of(self.workload, arrays)

    def _filled(self, row: Any) -> Any:
        """``row`` as whole pieces: itself, or a copy with zeros behind it."""
        rest = self.pieces * PIECE - self.size
        if not rest:
            return row
        filled = T.alloc_buffer((self.size + rest,), "int8")
        loops.sweep(self.size, lambda i: T.buffer_store(filled, row[i], [i]))
        loops.sweep(rest, lambda i: T.buffer_store(filled, tirx.const(0, "int8"), [self.size + i]))
        return filled

    def _multiply_all(self) -> None:
        """Runs of panels in parallel; the last panel by itself where it begins before the one before it ends."""
        whole = self.workload.out_channels // CHANNELS
        runs = min(whole, _RUNS)
        with T.parallel(runs) as run:
            begin, end = run * whole // runs, (run + 1) * whole // runs
            self._multiply(begin * CHANNELS, begin, end - begin)
        if whole < self.panels:
            self._multiply(self.workload.out_channels - CHANNELS, whole, tirx.const(1, "int32"))

    def _multiply(self, channel: Any, panel: Any, count: Any) -> None:
        """``count`` panels from ``panel`` on, whose results begin at ``channel``."""
        T.evaluate(
            T.call_extern(
                "int32",
                self.micro.symbol,
                T.address_of(self.out[channel]),
                T.address_of(self.row[0]),
                T.address_of(self.weights[panel * self.panel_bytes]),
                T.address_of(self.table[panel * TABLE_BYTES]),
                T.int64(self.pieces),
                T.Cast("int64", count),
            )
        )
