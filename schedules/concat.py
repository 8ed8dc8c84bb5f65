"""Images side by side along the channels, floats with an epilogue: a pass over memory and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import definition as stages
from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Kernel, Knobs
from bitkiln.schedules.workload import Concat, packed
from bitkiln.targets import Target


def reference(workload: Concat) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    shapes = workload.shapes
    parts = [te.placeholder(*spec, name=f"part{i}") for i, spec in enumerate(shapes[: len(workload.parts)])]
    sizes = [packed(channels) if workload.bits else channels for channels in workload.parts]
    begins = workload.begins or (0,) * len(parts)
    taken = list(zip(parts, begins, sizes, strict=True))
    operands = stages.operand_tensors(workload.epilogue, (workload.height, workload.width, workload.channels))
    joined = stages.side_by_side(taken, shapes[-1][0], "joined")
    return te.create_prim_func([*parts, *operands, stages.apply_epilogue(joined, workload.epilogue, operands)])


def space(workload: Concat, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Concat, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Concat, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Rows in parallel, pixel by pixel: the result is written in order, so that its lines are never read."""
    arguments = tuple(Argument((i,), *spec) for i, spec in enumerate(workload.shapes[:-1]))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("concat")
        T.func_attr({"tirx.noalias": True})
        *inputs, out = (T.arg(f"a{i}", T.buffer(shape, dtype)) for i, (shape, dtype) in enumerate(workload.shapes))
        parts, operands = inputs[: len(workload.parts)], inputs[len(workload.parts) :]
        with T.parallel(workload.height) as y, T.serial(workload.width) as x:
            _pixel(workload, parts, operands, out, y, x)
    return Kernel(builder.get(), arguments, notes="plain")


def _pixel(workload: Concat, parts: Sequence[Any], operands: Sequence[Any], out: Any, y: Any, x: Any) -> None:
    dtype = workload.shapes[-1][1]
    sizes = [packed(channels) if workload.bits else channels for channels in workload.parts]
    pixel = y * workload.width + x
    pixels = workload.height * workload.width
    total = sum(sizes)
    target = loops.flat(out, pixels * total, dtype)
    first = 0
    widths, begins = workload.widths or sizes, workload.begins or (0,) * len(sizes)
    for part, size, width, begin in zip(parts, sizes, widths, begins, strict=True):
        source = loops.flat(part, pixels * width, dtype)
        ends = (target, pixel * total + first, source, pixel * width + begin, size)
        if workload.epilogue:
            loops.apply_epilogue(*ends, workload.epilogue, operands, (y, x), first)
        else:
            loops.copy(*ends)
        first += size
