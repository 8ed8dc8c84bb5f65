"""A depthwise layer and a 1x1 layer on the Cortex-A53: the image is read where it lies, what is between stays in the L1 cache.

Threads share patches. A patch is computed by the depthwise micro-kernel as [pixel][channel], which the products then read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import depthwise_a53
from bitkiln.schedules.conv2d.depthwise_geometry import reach
from bitkiln.schedules.conv2d.tiles import SLACK
from bitkiln.schedules.depth_first.patches import Across, Call, Patches, Strip
from bitkiln.schedules.depth_first.project import Pixels, Project, places
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.depthwise import BLOCK, LANES
from bitkiln.schedules.microkernels.a53.depthwise_in_place import InPlace
from bitkiln.schedules.workload import DepthFirst
from bitkiln.targets import Target

_Alike = TypeVar("_Alike", Strip, Across)


def emit(workload: DepthFirst, tile: str, target: Target, threads: int = 1) -> Kernel:
    """The implementation with depthwise tiles of ``tile`` output pixels, in patches for so many threads."""
    return _Emitter(workload, tile, target, threads).kernel()


class _Emitter:
    """Writes the kernel of ``workload``."""

    def __init__(self, workload: DepthFirst, tile: str, target: Target, threads: int) -> None:
        self.workload = workload
        self.patches = patches = Patches(workload, tile, kernel_set(target), threads)
        self.work = patches.work
        self.project = Project(patches.project, patches.product, kernel_set(target), patches.pitch)
        self.used: dict[str, InPlace] = {}

    def kernel(self) -> Kernel:
        """The implementation."""
        layers = self.workload.layers
        own = self._depthwise(places(layers, 0))
        arguments: list[Argument | Constant] = [Argument((0,), *self.workload.shapes[0]), *own]
        arguments += self.project.arguments(places(layers, 1))
        out_shape, out_dtype = self.workload.shapes[-1]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("depth_first")
            T.func_attr({"tirx.noalias": True})
            data, self.weights, self.numbers, *others = loops.parameters(arguments)
            out = T.arg("out", T.buffer(out_shape, out_dtype))
            self.image = loops.flat(data, math.prod(self.workload.shapes[0][0]))
            self.result = loops.flat(out, math.prod(out_shape))
            self.project.bind(others)
            self._body()
        size = "x".join(map(str, self.patches.tile))
        pixels, channels = self.patches.product
        notes = f"depth first, {self.patches.count} patches, tiles of {size} pixels, products of {pixels} pixels x {channels}"
        return Kernel(builder.get(), tuple(arguments), (*self.used.values(), *self.project.microkernels), notes)

    def _depthwise(self, sources: range) -> list[Argument | Constant]:
        size = math.prod(self.work.kernel) * self.work.channels
        weights = Argument((sources[0],), (size,), "float32", depthwise_a53.pack)
        return [weights, depthwise_a53.numbers(self.work, sources[1:])]

    def _body(self) -> None:
        across = len(self.patches.columns)
        with loops.one_by_one(self.patches.count) as patch:

            def in_strip(strip: Strip, number: Any) -> None:
                y = strip.y + number * strip.rows
                _choose(self.patches.across, patch % across, lambda each, index: self._patch(strip, y, each, index))

            _choose(self.patches.strips, patch // across, in_strip)

    def _patch(self, strip: Strip, y: Any, patch: Across, index: Any) -> None:
        """The patch of ``strip`` from output row ``y`` on, the ``index``-th of ``patch``."""
        x = patch.x + index * patch.width
        width = self.work.conv_size[1]
        between = T.alloc_buffer((strip.rows * patch.width * self.patches.pitch + SLACK,), "float32")
        runs = [Pixels((y + row) * width + x, row * patch.width, patch.width) for row in range(strip.rows)]
        self.project.claim(self.result, runs)
        for call in patch.calls:
            self._tiles(between, strip, y, patch, x, call)
        self.project.emit(between, self.result, runs)

    def _tiles(self, between: Any, strip: Strip, y: Any, patch: Across, x: Any, call: Call) -> None:
        """The tiles of ``call``; the arguments are those of ``InPlace``."""
        work = self.work
        micro = self.patches.micro(strip, patch, call)
        self.used[micro.symbol] = micro
        row = y * work.strides[0] - work.padding[0] + strip.above
        column = (x + call.x) * work.strides[1] - work.padding[1] + call.left
        T.evaluate(
            T.call_extern(
                "int32",
                micro.symbol,
                T.address_of(between[call.x * self.patches.pitch]),
                T.address_of(self.image[(row * work.width + column) * work.channels]),
                T.address_of(self.weights[0]),
                T.address_of(self.numbers[0]),
                T.address_of(self.image[self._fetched(strip, y, x + call.x, call.count, micro)]),
                T.int64(call.count),
            )
        )

    def _fetched(self, strip: Strip, y: Any, x: Any, count: int, micro: InPlace) -> Any:
        """Where in the image the lines are that tiles fetch: those of the next strip, evenly spread over this one's."""
        work = self.work
        floats = micro.fetched * BLOCK * (work.channels // LANES)
        if not floats:
            return 0
        following = y + (self.patches.abreast - 1) * strip.rows
        below = following * work.strides[0] - work.padding[0] + reach(work, 0, strip.rows)
        start = (below * work.width + x * strip.rows * math.prod(work.strides)) * work.channels
        return tirx.min(start, max(0, work.height * work.width * work.channels - count * floats))


def _choose(alike: Iterable[_Alike], index: Any, body: Callable[[_Alike, Any], None]) -> None:
    """``body`` of the element that has number ``index`` when each is counted ``count`` times, and the number within it."""
    first = 0
    for each in alike:
        with T.If(tirx.all(index >= first, index < first + each.count)), T.Then():
            body(each, index - first)
        first += each.count
