"""Images brought to another size: to the nearest pixel, or by linear interpolation along both axes.

Which pixels and shares each row and column is made of is known when the kernel is emitted: small tables. Rows of the result are
written in order. A row between two others is blended first, then its pixels, so that the result is written once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx, topi
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import definition as stages
from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Constant, Kernel, Knobs
from bitkiln.schedules.workload import Resize
from bitkiln.targets import Target

#: The methods; the rules for coordinates that need nothing but sizes; which neighbour is the nearest.
METHODS = ("nearest_neighbor", "linear")
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def reference(workload: Resize) -> tirx.PrimFunc:
    """TVM's own definition: arguments as ``workload.shapes`` lists them, the output last."""
    (data_shape, _), *_ = workload.shapes
    data = te.placeholder(data_shape, "float32", name="data")
    operands = stages.operand_tensors(workload.epilogue, (*workload.size, workload.channels))
    resized = topi.image.resize2d(
        data,
        [0.0] * 4,
        workload.size,
        "NHWC",
        workload.method,
        workload.coordinates,
        workload.rounding,
        out_dtype="float32",
    )
    return te.create_prim_func([data, *operands, stages.apply_epilogue(resized, workload.epilogue, operands)])


def space(workload: Resize, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Resize, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Resize, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Rows in parallel."""
    return _Resize(workload).kernel()


class _Resize:
    def __init__(self, workload: Resize) -> None:
        self.workload = workload
        self.linear = workload.method == "linear"

    def kernel(self) -> Kernel:
        work = self.workload
        arguments = [Argument((i,), *spec) for i, spec in enumerate(work.shapes[:-1])]
        axes = [sources(work, axis) for axis in (0, 1)]
        tables = [Constant(table) for first, second, share in axes for table in self._tables(first, second, share)]
        with IRBuilder() as builder, T.prim_func():
            T.func_name("resize2d")
            T.func_attr({"tirx.noalias": True})
            data, *rest = loops.parameters([*arguments, *tables])
            self.operands = rest[: len(arguments) - 1]
            along = rest[len(arguments) - 1 :]
            out_shape = work.shapes[-1][0]
            out = T.arg("out", T.buffer(out_shape, "float32"))
            self.rows, self.columns = along[: len(along) // 2], along[len(along) // 2 :]
            self.image = loops.flat(data, work.height * work.width * work.channels)
            self.result = loops.flat(out, math.prod(out_shape))
            with T.parallel(work.size[0]) as y:
                self._row(y)
        return Kernel(builder.get(), (*arguments, *tables), notes=f"{work.method}, row by row")

    def _tables(self, first: np.ndarray, second: np.ndarray, share: np.ndarray) -> list[np.ndarray]:
        indices = [first.astype("int32")]
        return [*indices, second.astype("int32"), share.astype("float32")] if self.linear else indices

    def _row(self, y: Any) -> None:
        work = self.workload
        pitch, channels = work.width * work.channels, work.channels
        if self.linear:
            row, start = T.alloc_buffer((pitch,), "float32"), 0
            ends = [self.rows[0][y] * pitch, self.rows[1][y] * pitch]
            self._blend(row, 0, self.image, ends, self.rows[2][y], pitch)
        else:
            row, start = self.image, self.rows[0][y] * pitch
        with T.serial(work.size[1]) as x:
            to, at = (y * work.size[1] + x) * channels, start + self.columns[0][x] * channels
            if self.linear:
                ends = [at, self.columns[1][x] * channels]
                self._blend(self.result, to, row, ends, self.columns[2][x], channels)
                row_after, at = self.result, to
            else:
                row_after = row
            if work.epilogue:
                loops.apply_epilogue(self.result, to, row_after, at, channels, work.epilogue, self.operands, (y, x), 0)
            elif not self.linear:
                loops.copy(self.result, to, row, at, channels)

    def _blend(self, target: Any, to: Any, source: Any, ends: Sequence[Any], share: Any, extent: int) -> None:
        """``extent`` elements between those at both ``ends``; ``share`` of the second."""
        first, second, share = (T.bind(value) for value in (*ends, share))
        rest = T.bind(tirx.const(1, "float32") - share)
        loops.sweep(
            extent,
            lambda i: T.buffer_store(target, source[first + i] * rest + source[second + i] * share, [to + i]),
        )


def sources(workload: Resize, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row (``axis`` 0) or column of the result: the two it lies between, and its share of the second.

    With "nearest_neighbor" the first is the nearest.
    """
    extent, length = (workload.height, workload.width)[axis], workload.size[axis]
    at = _coordinates(workload.coordinates, extent, length)
    low = np.floor(at)
    first = _nearest(at, workload.rounding) if workload.method == "nearest_neighbor" else low
    first, second = (np.clip(index, 0, extent - 1).astype(int) for index in (first, low + 1))
    return first, second, (at - low).astype("float32")


def _coordinates(rule: str, extent: int, length: int) -> np.ndarray:
    index = np.arange(length, dtype="float64")
    if rule == "align_corners":
        return index * (extent - 1) / max(length - 1, 1)
    if rule == "asymmetric":
        return index * extent / length
    centred = (index + 0.5) * extent / length - 0.5
    return centred if rule == "half_pixel" or length > 1 else index * 0


def _nearest(at: np.ndarray, rounding: str) -> np.ndarray:
    match rounding:
        case "round":
            return np.round(at)
        case "floor":
            return np.floor(at + 1e-5)
        case "ceil":
            return np.ceil(at - 1e-5)
        case "round_prefer_ceil":
            return np.floor(at + 0.5)
    return np.ceil(at - 0.5)
