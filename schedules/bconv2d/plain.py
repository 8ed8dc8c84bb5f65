"""Binary convolution in plain TIR, for every target: small tiles of pixels x 8 output channels, a byte of bits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.bconv2d import image, result
from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.binarize.beside import Beside
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.workload import Conv2d

#: Output pixels that share a load of weights.
TILE_PIXELS = 4


def emit(given: Conv2d) -> Kernel:
    """The implementation; all output channels are of one group."""
    workload = result.with_floats(given)
    where = Geometry(workload)
    beside = Beside(workload)
    spec = result.Spec(where, "uint16")
    weights_shape = (where.channel_groups, where.taps * where.pixel_bytes, LANES)
    arguments = (
        Argument((0,), *workload.shapes[0]),
        Argument(
            (1,),
            weights_shape,
            "uint8",
            lambda arrays: np.ascontiguousarray(where.pack_lanes(arrays[0]).transpose(0, 2, 1)),
        ),
        Constant(where.patches),
        Constant(where.runs),
        *spec.arguments,
        *beside.arguments,
    )
    with IRBuilder() as builder, T.prim_func():
        T.func_name("bconv2d")
        T.func_attr({"tirx.noalias": True})
        data, weights, patches, runs, *operands = loops.parameters(arguments)
        out, signs = result.outputs(given)
        source = image.padded(where, data)
        unpooled = result.unpooled(workload, out)
        operands, tables = operands[: len(spec.arguments)], operands[len(spec.arguments) :]
        writer = result.Writer(spec, operands, unpooled)
        for first, tiles, pixels in _tiles(where.pixels):
            with T.parallel(tiles) as tile, T.serial(where.channel_groups) as group:
                counts = T.alloc_buffer((pixels * LANES,), "uint16", scope="local")
                at = first + tile * pixels
                _count(where, source, weights, [patches[at + p] for p in range(pixels)], runs, group, counts)
                for p in range(pixels):
                    writer.store(at + p, group, counts, p * LANES)
        result.pool(workload, unpooled, out)
        beside.emit(out, tables, signs)
    return Kernel(builder.get(), arguments, notes=f"plain, {TILE_PIXELS} pixels x {LANES} channels")


def _tiles(pixels: int) -> list[tuple[int, int, int]]:
    """First pixel, number of tiles and pixels of a tile: full tiles, then the rest."""
    full, rest = divmod(pixels, TILE_PIXELS)
    tiles = [(0, full, TILE_PIXELS)] if full else []
    return [*tiles, (full * TILE_PIXELS, 1, rest)] if rest else tiles


def _count(
    where: Geometry, source: Any, weights: Any, pixels: Sequence[Any], runs: Any, group: Any, counts: Any
) -> None:
    """counts[pixel * LANES + lane] = bits that differ between the patch and the weights of the group's channel."""
    with T.vectorized(len(pixels) * LANES) as lane:
        T.buffer_store(counts, tirx.const(0, "uint16"), [lane])
    with T.serial(len(where.runs)) as run, T.serial(where.run_bytes) as byte:
        for p, pixel in enumerate(pixels):
            bits = source[pixel + runs[run] + byte]
            with T.vectorized(LANES) as lane:
                differ = bits ^ weights[group, run * where.run_bytes + byte, lane]
                count = tirx.popcount(differ).astype("uint16")
                T.buffer_store(counts, counts[p * LANES + lane] + count, [p * LANES + lane])
