"""Depthwise convolution on the Cortex-A53 that reads the image where it lies, in patches that threads share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import depthwise_a53, patches
from bitkiln.schedules.conv2d.depthwise_geometry import reach
from bitkiln.schedules.conv2d.patches import Across, Call, Patches, Strip
from bitkiln.schedules.kernel import Argument, Constant, Kernel, size_of
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.depthwise import BLOCK, LANES
from bitkiln.schedules.microkernels.a53.depthwise_in_place import InPlace
from bitkiln.schedules.workload import Conv2d

#: How far lines may crowd sets for each pixel of a tile.
_MOST_CROWD = 0.5
_Alike = TypeVar("_Alike", Strip, Across)


def applies(work: Conv2d, kernels: KernelSet) -> bool:
    """Whether this schedule can compute ``work`` with these micro-kernels."""
    straight = not work.pool and work.out == "float32" and not work.signs
    return straight and depthwise_a53.applies(work, kernels) and bool(patches.tiles(work, kernels))


def pays(work: Conv2d, kernels: KernelSet, threads: int) -> bool:
    """Whether it is the faster way: not where lines that are needed at a time crowd few sets of the L1 cache."""
    tile = patches.tiles(work, kernels, threads)[0]
    return Patches(work, tile, threads).crowd <= _MOST_CROWD * math.prod(size_of(tile))


def emit(work: Conv2d, tile: str, kernels: KernelSet, threads: int = 1) -> Kernel:
    """The implementation with tiles of ``tile`` output pixels, in patches for so many threads."""
    in_place = InPlaceTiles(Patches(work, tile, threads))
    early = in_place.work.epilogue
    late = Late(work.epilogue[len(early) :], kernels)
    (data_shape, _), _, *operands, (out_shape, out_dtype) = work.shapes
    taken = sum(bool(step.operand) for step in early)
    own = in_place.arguments(range(1, 2 + taken))
    arguments = [Argument((0,), data_shape, "float32"), *own]
    arguments += [Argument((2 + taken + i,), *spec) for i, spec in enumerate(operands[taken:])]
    width, channels = work.conv_size[1], work.channels
    with IRBuilder() as builder, T.prim_func():
        T.func_name("conv2d")
        T.func_attr({"tirx.noalias": True})
        data, *constants = loops.parameters(arguments)
        out = T.arg("out", T.buffer(out_shape, out_dtype))
        in_place.bind(data, constants[: len(own)])
        result = loops.flat(out, math.prod(out_shape))

        def patch(strip: Strip, y: Any, across: Across, x: Any) -> None:
            first = y * width + x
            with T.serial(strip.rows) as row:
                loops.claim(result, (first + row * width) * channels, across.width * channels)
            in_place.patch(result, first, strip, y, across, x, (width, channels))
            if late.steps:
                with T.serial(strip.rows) as row:
                    pixel = first + row * width
                    late.apply(result, pixel * channels, pixel, across.width, (width, channels), constants[len(own) :])

        in_place.patches_of(patch)
    return Kernel(builder.get(), tuple(arguments), (*in_place.microkernels, *late.microkernels), in_place.notes)


class InPlaceTiles:
    """Emits the tiles of a depthwise layer into the kernel under construction, patch by patch."""

    def __init__(self, cut: Patches) -> None:
        self.cut, self.work = cut, cut.work
        self._used: dict[str, InPlace] = {}

    @property
    def microkernels(self) -> tuple[InPlace, ...]:
        """Those that were called."""
        return tuple(self._used.values())

    @property
    def notes(self) -> str:
        """How the layer is cut."""
        rows, columns = self.cut.tile
        return f"depthwise in place, {self.cut.count} patches, tiles of {rows}x{columns} pixels x {LANES} channels"

    def arguments(self, sources: Sequence[int]) -> list[Argument | Constant]:
        """Weights and numbers of the steps; ``sources``: the workload's arguments that these are."""
        size = math.prod(self.work.kernel) * self.work.channels
        weights = Argument((sources[0],), (size,), "float32", depthwise_a53.pack)
        return [weights, depthwise_a53.numbers(self.work, sources[1:])]

    def bind(self, data: Any, constants: Sequence[Any]) -> None:
        """The image, and the kernel's parameters of ``arguments``."""
        self.image = loops.flat(data, self.work.height * self.work.width * self.work.channels)
        self.weights, self.numbers = constants

    def patches_of(self, body: Callable[[Strip, Any, Across, Any], None]) -> None:
        """``body`` of each patch: its strip, its first output row, its kind, its first output column."""
        across = len(self.cut.columns)
        with loops.one_by_one(self.cut.count) as patch:

            def in_strip(strip: Strip, number: Any) -> None:
                y = strip.y + number * strip.rows
                _choose(
                    self.cut.across,
                    patch % across,
                    lambda each, index: body(strip, y, each, each.x + index * each.width),
                )

            _choose(self.cut.strips, patch // across, in_strip)

    def patch(self, out: Any, first: Any, strip: Strip, y: Any, across: Across, x: Any, size: tuple[int, int]) -> None:
        """The results of a patch from pixel ``first`` of ``out`` on; ``size`` is the result's of ``Patches.micro``."""
        for call in across.calls:
            self._tiles(out, first + call.x, strip, y, across, x, call, size)

    def _tiles(
        self, out: Any, to: Any, strip: Strip, y: Any, across: Across, x: Any, call: Call, size: tuple[int, int]
    ) -> None:
        """The tiles of ``call``; the arguments are those of ``InPlace``."""
        work = self.work
        micro = self.cut.micro(strip, across, call, size)
        self._used[micro.symbol] = micro
        row = y * work.strides[0] - work.padding[0] + strip.above
        column = (x + call.x) * work.strides[1] - work.padding[1] + call.left
        T.evaluate(
            T.call_extern(
                "int32",
                micro.symbol,
                T.address_of(out[to * size[1]]),
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
        following = y + (self.cut.abreast - 1) * strip.rows
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
