"""Convolutions computed depth first, strip by strip, so that what lies between them never leaves the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from tvm import te, tirx

from bitkiln.schedules import conv2d
from bitkiln.schedules import definition as stages
from bitkiln.schedules.conv2d import depthwise_a53, depthwise_in_place, patches, tiles
from bitkiln.schedules.conv2d.depthwise_geometry import in_registers, reach
from bitkiln.schedules.conv2d.patches import Patches
from bitkiln.schedules.depth_first import a53, in_place
from bitkiln.schedules.depth_first.project import LEAST
from bitkiln.schedules.depth_first.strips import Strips, divides
from bitkiln.schedules.kernel import Kernel, Knobs, size_text
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.microkernels.a53.sgemm import STEP
from bitkiln.schedules.workload import Conv2d, DepthFirst
from bitkiln.targets import Target

#: Shares of the L2 cache: less than this between the layers stays there anyway; so much of it may weights take, which every
#: strip reads again; so much may weights and strips take together.
_MUCH, _WEIGHTS, _ROOM = 0.5, 0.5, 0.85
#: MACs for each byte between the layers: with more, memory is idle anyway, and strips are too short for four threads.
_INTENSE = 24


def reference(workload: DepthFirst) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    value = te.placeholder(workload.shapes[0][0], "float32", name="data")
    arguments = [value]
    for layer in workload.layers:
        weight = te.placeholder(layer.shapes[1][0], "float32", name="weight")
        operands = stages.operand_tensors(layer.epilogue, (*layer.conv_size, layer.out_channels))
        value = conv2d.convolved(layer, value, weight, operands)
        arguments += [weight, *operands]
    return te.create_prim_func([*arguments, value])


def space(workload: DepthFirst, target: Target) -> dict[str, list[int | str]]:
    """The depthwise layer's tile, whose rows are a strip's."""
    return {"tile": list(_tiles(workload, kernel_set(target)))}


def default(workload: DepthFirst, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The tile of the fewest cycles among those whose strips stay in the L2 cache."""
    return {"tile": _tiles(workload, kernel_set(target), threads)[0]}


def emit(workload: DepthFirst, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space."""
    if workload.layers[0].depthwise:
        return in_place.emit(workload, str(knobs["tile"]), target, threads)
    return a53.emit(workload, str(knobs["tile"]), target, threads)


def applies(workload: DepthFirst, target: Target) -> bool:
    """Whether ``target`` has kernels for ``workload``, and what lies between stays in a cache on any number of threads."""
    kernels = kernel_set(target)
    depthwise = [layer for layer in workload.layers if layer.depthwise]
    products = [layer for layer in workload.layers if not layer.depthwise]
    if not (kernels.strips and all(map(_plain, workload.layers)) and all(map(_pointwise, products))):
        return False
    own = depthwise_in_place if workload.layers[0].depthwise else depthwise_a53
    if not all(own.applies(layer, kernels) and in_registers(layer) == layer for layer in depthwise):
        return False
    if workload.layers[0] in products and not _finished(workload.layers[0]):
        return False
    return all(_tiles(workload, kernels, threads) for threads in (1, 4))


def pays(workload: DepthFirst, target: Target) -> bool:
    """Whether computing ``workload`` so is faster than layer by layer.

    In place it is wherever weights stay in the L2 cache. Strips pay where what they keep from memory is much, and has room.
    """
    l2_bytes = target.cpu["l2_kib"] * 1024
    products = [layer for layer in workload.layers if not layer.depthwise]
    weights = sum(4 * layer.channels * layer.out_channels for layer in products)
    if weights > l2_bytes * _WEIGHTS or not applies(workload, target):
        return False
    if workload.layers[0].depthwise:
        return True
    between = _bytes_between(workload)
    if between < l2_bytes * _MUCH or workload.macs > between * _INTENSE:
        return False
    if not all(conv2d.default(layer, target)["algorithm"] == "direct" for layer in products):
        return False
    strips = Strips(workload, str(default(workload, target)["tile"]), kernel_set(target))
    return weights + strips.cell_bytes <= l2_bytes * _ROOM


def _bytes_between(workload: DepthFirst) -> int:
    """Bytes of what the layers but the last give."""
    return sum(4 * math.prod(layer.out_size) * layer.out_channels for layer in workload.layers[:-1])


def _plain(layer: Conv2d) -> bool:
    return layer.out == "float32" and not (layer.pool or layer.whole or layer.parts or layer.signs)


def _pointwise(layer: Conv2d) -> bool:
    plain = layer.kernel == layer.strides == (1, 1) and not any(layer.padding) and layer.groups == 1
    whole = layer.channels % STEP == 0 and layer.out_channels % STEP == 0
    return plain and whole and layer.width >= LEAST and not layer.shift and layer.layout == "NHWC"


def _finished(layer: Conv2d) -> bool:
    return tiles.finish_of(layer.epilogue) is not None and divides(layer.out_channels)


@cache
def _tiles(workload: DepthFirst, kernels: KernelSet, threads: int = 1) -> tuple[str, ...]:
    """The tiles that can be, the best first: on one thread those whose cells are as wide as the image, then by cycles."""
    if workload.layers[0].depthwise:
        return tuple(sorted(patches.tiles(workload.layers[0], kernels, threads), key=_order(workload, threads)))
    cut = {text: Strips(workload, text, kernels, threads) for text in map(size_text, kernels.depthwise)}
    fitting = {text: strips for text, strips in cut.items() if strips.fits and strips.cycles < math.inf}
    across = {text: len(strips.columns) if threads == 1 else 1 for text, strips in fitting.items()}
    return tuple(sorted(fitting, key=lambda text: (across[text], fitting[text].cycles)))


def _order(workload: DepthFirst, threads: int) -> Callable[[str], tuple[float, float]]:
    """What sorts tiles of a depthwise layer in place with a 1x1 layer behind it, the best first.

    On one thread those that read few rows, for the core's prefetcher and first TLB, then by cycles; on several the fewest
    lines at a time.
    """
    work = workload.layers[0]
    few = reach(work, 0, 1) + 1

    def key(tile: str) -> tuple[float, float]:
        cut = Patches(work, tile, threads)
        rows, columns = (reach(work, axis, cut.tile[axis]) for axis in (0, 1))
        return (max(few, rows) if threads == 1 else rows * columns), cut.cycles

    return key
