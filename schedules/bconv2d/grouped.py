"""Binary convolution in several groups, or too long for 16-bit counts: plain TIR, an output channel at a time."""

from __future__ import annotations

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.bconv2d import image, result
from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.binarize.beside import Beside
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.workload import Conv2d, packed


def emit(given: Conv2d) -> Kernel:
    """The implementation; a group may begin and end inside a byte."""
    workload = result.with_floats(given)
    where = Geometry(workload)
    beside = Beside(workload)
    spec = result.Spec(where, "int32")
    span = _Span(workload)
    shape = (where.channel_groups * LANES, where.taps, span.bytes)
    arguments = (
        Argument((0,), *workload.shapes[0]),
        Argument((1,), shape, "uint8", lambda arrays: span.place(arrays[0])),
        Constant(span.place(np.broadcast_to(span.ones, workload.shapes[1][0]))[:, 0]),
        Constant(span.first),
        Constant(where.patches),
        Constant(where.taps_at),
        *spec.arguments,
        *beside.arguments,
    )
    with IRBuilder() as builder, T.prim_func():
        T.func_name("bconv2d")
        T.func_attr({"tirx.noalias": True})
        data, weights, mask, first, patches, taps, *operands = loops.parameters(arguments)
        out, signs = result.outputs(given)
        source = image.padded(where, data)
        unpooled = result.unpooled(workload, out)
        operands, tables = operands[: len(spec.arguments)], operands[len(spec.arguments) :]
        writer = result.Writer(spec, operands, unpooled)
        with T.parallel(where.pixels) as pixel, T.serial(where.channel_groups) as group:
            counts = T.alloc_buffer((LANES,), "int32", scope="local")
            with T.serial(LANES) as lane:
                channel = group * LANES + lane
                T.buffer_store(counts, tirx.const(0, "int32"), [lane])
                with T.serial(where.taps) as tap, T.serial(span.bytes) as byte:
                    bits = source[patches[pixel] + taps[tap] + first[channel] + byte]
                    differ = (bits ^ weights[channel, tap, byte]) & mask[channel, byte]
                    T.buffer_store(counts, counts[lane] + tirx.popcount(differ).astype("int32"), [lane])
            writer.store(pixel, group, counts, 0)
        result.pool(workload, unpooled, out)
        beside.emit(out, tables, signs)
    return Kernel(builder.get(), arguments, notes="plain, one channel at a time")


class _Span:
    """The bytes of a pixel that hold the channels of each output channel's group."""

    def __init__(self, workload: Conv2d) -> None:
        self.per_group = workload.channels // workload.groups
        lanes = -(-workload.out_channels // LANES) * LANES
        channels = np.minimum(np.arange(lanes), workload.out_channels - 1)
        begin = channels // (workload.out_channels // workload.groups) * self.per_group
        self.bytes = packed(int((begin % 8).max()) + self.per_group)
        # A span never reaches past the pixel's last byte: reading it from further left is as good.
        self.first = np.minimum(begin // 8, packed(workload.channels) - self.bytes).astype("int32")
        self.shift = begin - self.first * 8

    @property
    def ones(self) -> np.ndarray:
        """The bits of one tap, all set: uint8 [bytes of a weight]."""
        return np.packbits(np.ones(self.per_group, "uint8"), bitorder="little")

    def place(self, weights: np.ndarray) -> np.ndarray:
        """uint8 [O, kh, kw, bytes] with the bits where the input has them: [O, taps, bytes of a span]."""
        out_channels, taps = len(weights), weights.shape[1] * weights.shape[2]
        bits = np.unpackbits(np.ascontiguousarray(weights).reshape(out_channels, taps, -1), axis=2, bitorder="little")
        placed = np.zeros((len(self.first), taps, self.bytes * 8), "uint8")
        for channel, shift in enumerate(self.shift[:out_channels]):
            placed[channel, :, shift : shift + self.per_group] = bits[channel, :, : self.per_group]
        return np.packbits(placed, axis=2, bitorder="little")
