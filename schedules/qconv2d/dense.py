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
    (data_shape, _), *_, (out_shape, _) = workload.shapes
    size, panels = math.prod(data_shape), -(-workload.out_channels // CHANNELS)
    pieces = -(-size // PIECE)
    micro = WholeDense(tables.limited(workload))

    def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.zeros((workload.out_channels, pieces * PIECE), np.int8)
        rows[:, :size] = arrays[0].reshape(workload.out_channels, size)
        starts = tables.firsts(workload.out_channels)
        each = [rows[first : first + CHANNELS].reshape(CHANNELS, pieces, PIECE).transpose(1, 0, 2) for first in starts]
        return np.concatenate([panel.ravel() for panel in each])

    arguments = (
        Argument((0,), data_shape, "int8"),
        Argument((1,), (panels * pieces * PIECE * CHANNELS,), "int8", pack),
        Argument((1, 2, 3), (panels * TABLE_BYTES,), "int8", lambda arrays: tables.of(workload, arrays)),
    )
    with IRBuilder() as builder, T.prim_func():
        T.func_name("qconv2d")
        T.func_attr({"tirx.noalias": True})
        data, weights, table = loops.parameters(arguments)
        out = loops.flat(T.arg("out", T.buffer(out_shape, "int8")), workload.out_channels, "int8")
        row = loops.flat(data, size, "int8")
        if size % PIECE:
            filled = T.alloc_buffer((pieces * PIECE,), "int8")
            loops.sweep(size, lambda i: T.buffer_store(filled, row[i], [i]))
            loops.sweep(pieces * PIECE - size, lambda i: T.buffer_store(filled, tirx.const(0, "int8"), [size + i]))
            row = filled
        # The last panel may begin before the one before it ends, so it is called by itself.
        whole = workload.out_channels // CHANNELS
        runs = min(whole, _RUNS)

        def multiply(channel: Any, panel: Any, count: Any) -> None:
            T.evaluate(
                T.call_extern(
                    "int32",
                    micro.symbol,
                    T.address_of(out[channel]),
                    T.address_of(row[0]),
                    T.address_of(weights[panel * (pieces * PIECE * CHANNELS)]),
                    T.address_of(table[panel * TABLE_BYTES]),
                    T.int64(pieces),
                    T.Cast("int64", count),
                )
            )

        with T.parallel(runs) as run:
            begin, end = run * whole // runs, (run + 1) * whole // runs
            multiply(begin * CHANNELS, begin, end - begin)
        if whole < panels:
            multiply(workload.out_channels - CHANNELS, whole, tirx.const(1, "int32"))
    return Kernel(builder.get(), arguments, (micro,), f"panels of {CHANNELS} rows of bytes")
