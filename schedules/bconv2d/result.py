"""From counts of differing bits to the result of a binary convolution: bits by bounds, or floats by bases and epilogue."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import pool2d
from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.binarize import beside
from bitkiln.schedules.kernel import Argument, Constant
from bitkiln.schedules.steps import expression, straight
from bitkiln.schedules.workload import Conv2d, Signs, result_specs


@dataclass(frozen=True)
class Spec:
    """What the result needs besides counts, as arguments of the kernel: a table, the row of each pixel in it, operands."""

    where: Geometry
    count_type: str

    @property
    def bits(self) -> bool:
        """Whether the result is bits by bounds of the counts."""
        return bool(self.where.workload.threshold)

    @property
    def arguments(self) -> tuple[Argument | Constant, ...]:
        """The table of bounds or bases, the row of each pixel in it, and the epilogue's operands."""
        where, shapes = self.where, self.where.workload.shapes
        if self.bits:
            shape = ((int(where.bound_rows.max()) + 1) * where.workload.thresholds, where.channel_groups * LANES)
            table = Argument((1, 2), shape, self.count_type, self._bounds)
            return table, Constant(where.bound_rows)
        shape = (int(where.classes.max()) + 1, where.workload.out_channels)
        table = Argument((1,), shape, "int32", lambda arrays: where.bases(arrays[0]))
        count = sum(step.operand != "" for step in where.workload.epilogue)
        operands = (Argument((2 + i,), *spec) for i, spec in enumerate(shapes[2 : 2 + count]))
        return table, Constant(where.classes), *operands

    def _bounds(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return self.where.bounds(arrays[0], arrays[1], self.count_type)


def with_floats(work: Conv2d) -> Conv2d:
    """``work`` as if it gave the floats that signs are made of, and those signs beside them.

    The last steps are left to the signs as far as a comparison does for them.
    """
    if work.out == "float32" or work.threshold:
        return work
    end = len(work.epilogue)
    while end and not work.pool and straight(work.epilogue[end - 1]):
        end -= 1
    signs = (Signs(work.epilogue[end:], work.sign_zero),)
    return replace(work, out="float32", epilogue=work.epilogue[:end], signs=signs)


def outputs(work: Conv2d) -> tuple[Any, list[Any]]:
    """Declares the outputs of ``work``: those of ``with_floats``, of which floats that are no output get a buffer."""
    whole = with_floats(work)
    floats, *signs = result_specs(whole)
    if whole is work:
        return T.arg("out", T.buffer(*floats)), beside.outputs(work)
    return T.alloc_buffer(*floats), [T.arg("out", T.buffer(*signs[0]))]


def unpooled(work: Conv2d, out: Any) -> Any:
    """Where the convolution's result goes: ``out``, or a buffer in front of the pooling."""
    return T.alloc_buffer((1, *work.conv_size, work.out_channels), "float32") if work.pool else out


def pool(work: Conv2d, unpooled: Any, out: Any) -> None:
    """Emits the pooling, if there is one."""
    if not work.pool:
        return
    with T.parallel(work.out_size[0]) as y:

        def store(x: Any, channel: Any, value: Any) -> None:
            T.buffer_store(out, value, [0, y, x, channel])

        pool2d.pool_row(unpooled, work.pool, y, store)


class Writer:
    """Emits the stores of a result to ``target``."""

    def __init__(self, spec: Spec, arguments: Sequence[Any], target: Any) -> None:
        self.where, self.bits, self.target = spec.where, spec.bits, target
        self.work = spec.where.workload
        self.table, self.rows, *self.operands = arguments

    def store(self, pixel: Any, group: Any, counts: Any, start: Any) -> None:
        """Emits the result of LANES channels of ``pixel`` from ``counts``, ``start`` onwards."""
        rest = self.work.out_channels % LANES
        if self.bits or not rest:
            self._lanes(pixel, group, counts, start, LANES)
        elif self.work.out_channels < LANES:
            self._lanes(pixel, group, counts, start, rest)
        else:
            with T.If(group < self.where.channel_groups - 1):
                with T.Then():
                    self._lanes(pixel, group, counts, start, LANES)
                with T.Else():
                    self._lanes(pixel, group, counts, start, rest)

    def _lanes(self, pixel: Any, group: Any, counts: Any, start: Any, lanes: int) -> None:
        width = self.work.conv_size[1]
        y, x = pixel // width, pixel % width
        if self.bits:
            several = self.work.thresholds
            row = self.rows[pixel] * several if int(self.table.shape[0]) > several else 0
            reached = [self._byte(row + i, group, counts, start, lanes) for i in range(several)]
            T.buffer_store(self.target, reduce(operator.xor, reached), [0, y, x, group])
            return
        row = self.rows[pixel] if int(self.table.shape[0]) > 1 else 0
        with T.vectorized(lanes) as lane:
            channel = group * LANES + lane
            count = counts[start + lane].astype("int32")
            value = (self.table[row, channel] - count * 2).astype("float32")
            T.buffer_store(
                self.target,
                expression(self.work.epilogue, value, self.operands, (y, x, channel)),
                [0, y, x, channel],
            )

    def _byte(self, row: Any, group: Any, counts: Any, start: Any, lanes: int) -> Any:
        """Which of ``lanes`` counts are below the bounds of ``row``, as bits."""
        byte: Any = tirx.const(0, "uint8")
        for lane in range(lanes):
            is_set = counts[start + lane] < self.table[row, group * LANES + lane]
            byte = byte | tirx.Select(is_set, tirx.const(1 << lane, "uint8"), tirx.const(0, "uint8"))
        return byte
