"""A depthwise layer and a 1x1 layer on the Cortex-A53: the image is read where it lies, what is between stays in the L1 cache.

Threads share patches. A patch is computed by the depthwise micro-kernel as [pixel][channel], which the products then read.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.depthwise_in_place import InPlaceTiles
from bitkiln.schedules.conv2d.geometry import split
from bitkiln.schedules.conv2d.patches import Across, Patches, Strip
from bitkiln.schedules.conv2d.tiles import SLACK, at_least
from bitkiln.schedules.depth_first.project import LEAST, Pixels, Project, places
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.workload import Conv2d, DepthFirst
from bitkiln.targets import Target

#: Floats between pixels, a cache line: a power of two apart they would share few sets of the L1 cache.
_GAP = 16
#: About what a tile of products takes beside its sums and loads.
_ENDS = 60


def emit(workload: DepthFirst, tile: str, target: Target, threads: int = 1) -> Kernel:
    """The implementation with depthwise tiles of ``tile`` output pixels, in patches for so many threads."""
    kernels, (work, last) = kernel_set(target), workload.layers
    cut = Patches(work, tile, threads)
    deep, pitch = InPlaceTiles(cut), work.channels + _GAP
    size = _product(last, cut, kernels)
    project = Project(last, size, kernels, pitch)
    own = deep.arguments(places(workload.layers, 0))
    arguments: list[Argument | Constant] = [Argument((0,), *workload.shapes[0]), *own]
    arguments += project.arguments(places(workload.layers, 1))
    out_shape, out_dtype = workload.shapes[-1]
    width = work.conv_size[1]
    with IRBuilder() as builder, T.prim_func():
        T.func_name("depth_first")
        T.func_attr({"tirx.noalias": True})
        data, *constants = loops.parameters(arguments)
        out = T.arg("out", T.buffer(out_shape, out_dtype))
        result = loops.flat(out, math.prod(out_shape))
        deep.bind(data, constants[: len(own)])
        project.bind(constants[len(own) :])

        def patch(strip: Strip, y: Any, across: Across, x: Any) -> None:
            between = T.alloc_buffer((strip.rows * across.width * pitch + SLACK,), "float32")
            runs = [Pixels((y + row) * width + x, row * across.width, across.width) for row in range(strip.rows)]
            project.claim(result, runs)
            deep.patch(between, 0, strip, y, across, x, (across.width, pitch))
            project.emit(between, result, runs)

        deep.patches_of(patch)
    notes = f"depth first, {deep.notes}, products of {size[0]} pixels x {size[1]} channels"
    return Kernel(builder.get(), tuple(arguments), (*deep.microkernels, *project.microkernels), notes)


def _product(work: Conv2d, cut: Patches, kernels: KernelSet) -> tuple[int, int]:
    """Pixels and channels of a tile of the 1x1 layer ``work``: those that take least time."""
    rows = [patch.width for patch in cut.across for _ in range(patch.count)]

    def cycles(size: tuple[int, int]) -> float:
        pixels = [at_least(run, LEAST) for row in rows for run in split(row, size[0])]
        panels = split(work.out_channels, size[1], kernels.channels)
        return sum(m.count * n.count * _tile_cycles(m.size, n.size, work.channels) for m in pixels for n in panels)

    return min(kernels.sgemm, key=cycles)


def _tile_cycles(pixels: int, channels: int, depth: int) -> float:
    """Cycles of a tile of products of ``depth`` values each."""
    return depth / 4 * (pixels * channels + pixels + channels + 4) + _ENDS + pixels * channels / 4
