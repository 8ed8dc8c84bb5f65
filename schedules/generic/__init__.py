"""Functions that no operator of ours computes: a plain recipe by default, MetaSchedule's own spaces where they are tuned."""

from __future__ import annotations

from functools import cache
from math import prod

import tvm
from tvm import tirx
from tvm.s_tir.schedule import Schedule
from tvm.s_tir.stmt import SBlock

from bitkiln.schedules.generic import guess, sketches
from bitkiln.schedules.generic.recipe import schedule
from bitkiln.schedules.kernel import Argument, Kernel, Knobs
from bitkiln.schedules.workload import Generic
from bitkiln.targets import Target

__all__ = ["RECIPE", "SKETCH", "default", "emit", "reference", "schedule", "space", "workload_of"]

#: The knob that says which program is derived, and its value for the recipe.
SKETCH, RECIPE = "sketch", "recipe"
#: Multiply-accumulates that take the recipe about 1 ms.
TILED = 500_000
#: Fixes the tiles that are looked at.
SEED = 1
#: Types that trials make inputs of.
TYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")
#: What TIR calls a reduction among the kinds of a block's axes.
_REDUCTION = 2


def workload_of(name: str, function: tirx.PrimFunc) -> Generic | None:
    """What ``function`` computes, as a workload; None where it cannot be tuned: several results, or types without test data."""
    shapes = tuple((tuple(int(extent) for extent in param.shape), str(param.dtype)) for param in function.params)
    if any(dtype not in TYPES for _, dtype in shapes) or _results(function) != 1:
        return None
    # The lowering numbers equal names: "matmul", "matmul1".
    name = name.rstrip("0123456789") or name
    return Generic(name, shapes, _sums(function), tvm.ir.save_json(function.without_attr("global_symbol")))


def reference(workload: Generic) -> tirx.PrimFunc:
    """The function as TVM's lowering wrote it."""
    return _function(workload.function)


def space(workload: Generic, target: Target) -> dict[str, list[int | str]]:
    """The recipe, and MetaSchedule's sketches with the decisions they leave open."""
    knobs: dict[str, list[int | str]] = {SKETCH: [RECIPE]}
    for sketch in sketches.sketches(workload.function, target):
        knobs[SKETCH].append(sketch.name)
        knobs |= sketch.knobs
    return knobs


def default(workload: Generic, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Sums of a size that is felt in tiles that the registers suggest; all else by the recipe."""
    first = {name: values[0] for name, values in space(workload, target).items()}
    return {**first, **untuned(workload, target)}


def untuned(workload: Generic, target: Target) -> dict[str, int | str]:
    """As ``default``, with the knobs alone that decide something: quick where the recipe serves."""
    found = {each.name: each for each in sketches.sketches(workload.function, target)} if workload.macs >= TILED else {}
    points = guess.points(found, target, 1, SEED)
    return {SKETCH: points[0][0], **points[0][1]} if points else {SKETCH: RECIPE}


def emit(workload: Generic, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space. Raises ScheduleError for points that do not fit together."""
    function = reference(workload)
    if knobs[SKETCH] == RECIPE:
        made, notes = schedule(function), ""
    else:
        sketch = next(each for each in sketches.sketches(workload.function, target) if each.name == knobs[SKETCH])
        made, notes = sketch.function(knobs, target), f"by MetaSchedule, sketch {sketch.name}"
    arguments = tuple(Argument((index,), *spec) for index, spec in enumerate(workload.shapes[:-1]))
    return Kernel(made, arguments, notes=notes)


@cache
def _function(text: str) -> tirx.PrimFunc:
    return tvm.ir.load_json(text)


def _blocks(function: tirx.PrimFunc) -> list[SBlock]:
    """Its loop nests' innermost blocks, in order."""
    sch = Schedule(function.with_attr("global_symbol", "main"))
    return [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]


def _results(function: tirx.PrimFunc) -> int:
    """How many of its arguments it writes."""
    written = [region.source for block in _blocks(function) for region in block.writes]
    return sum(any(each.same_as(param) for each in written) for param in function.params)


def _sums(function: tirx.PrimFunc) -> int:
    """Iterations of its sums: what stands for multiply-accumulates."""
    reducing = [
        block for block in _blocks(function) if any(int(var.iter_type) == _REDUCTION for var in block.iter_vars)
    ]
    return sum(prod(int(var.dom.extent) for var in block.iter_vars) for block in reducing)
