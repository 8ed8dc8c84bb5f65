"""MetaSchedule's space of a function: the programs its rules derive, and the decisions they leave open.

A sketch is such a program; its sampling steps are knobs, of tiles all ways to split the loop. A record holds the sketch's
number and the decisions, from which the program is derived again: the rules are the same for equal versions of TVM.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir.schedule import Schedule, ScheduleError, Trace

from bitkiln import targets
from bitkiln.schedules.metaschedule import derive, postprocs
from bitkiln.targets import Target

#: Sampling steps by the name of their instruction.
TILE, CHOICE = "SamplePerfectTile", "SampleCategorical"
_DECISION = re.compile(r", decision=(\[[^]]*\]|-?\d+)")


#: The knob that says how many steps a loop that is unrolled may have.
UNROLL = "unroll"


@dataclass(frozen=True)
class Sketch:
    """A derived program: ``steps`` names the knob of each sampling step of ``trace``, ``knobs`` their values."""

    name: str
    module: tvm.IRModule
    trace: Trace
    steps: tuple[str, ...]
    knobs: Mapping[str, list[int | str]]

    def schedule(self, knobs: Mapping[str, int | str], target: Target) -> Schedule:
        """The program with the decisions of ``knobs``, its loops unrolled and run in vectors and threads.

        Raises ScheduleError where the decisions do not fit together.
        """
        trace = self.trace
        for step, name in zip(sampling_steps(trace), self.steps, strict=True):
            trace = trace.with_decision(step, _decision(step, knobs[name]), remove_postproc=True)
        sch = Schedule(self.module, error_render_level="none")
        trace.apply_to_schedule(sch, remove_postproc=True)
        sch.enter_postproc()
        with tvm.target.Target(target.tvm_target()):
            for rule in postprocs(self.module, target):
                if not rule.apply(sch):
                    raise ScheduleError(f"sketch {self.name} cannot be brought into loops at {dict(knobs)}")
        return sch

    def function(self, knobs: Mapping[str, int | str], target: Target) -> tirx.PrimFunc:
        """The scheduled function."""
        return self.schedule(knobs, target).mod["main"].without_attr("global_symbol")

    def values(self, trace: Trace) -> dict[str, int | str]:
        """The knobs' values in a trace of this sketch."""
        steps = zip(sampling_steps(trace), self.steps, strict=True)
        return {name: _value(step, trace.decisions[step]) for step, name in steps}


def sketches(function: str, target: Target) -> tuple[Sketch, ...]:
    """The sketches of a function, given as TVM's JSON, that leave something to decide; numbered from 0."""
    return _sketches(function, target.name)


@cache
def _sketches(function: str, target_name: str) -> tuple[Sketch, ...]:
    target = targets.load(target_name)
    module = tvm.IRModule({"main": tvm.ir.load_json(function).with_attr("global_symbol", "main")})
    found: dict[str, Trace] = {}
    for sch in derive(module, target):
        kinds = {step.kind.name for step in sch.trace.insts if step.kind.name.startswith("Sample")}
        if kinds and kinds <= {TILE, CHOICE}:
            found.setdefault(signature(sch.trace), sch.trace.simplified(remove_postproc=True))
    return tuple(_sketch(str(number), module, trace) for number, trace in enumerate(found.values()))


def signature(trace: Trace) -> str:
    """What tells a sketch from the others of its function: its instructions, without the decisions."""
    return "\n".join(_DECISION.sub("", line) for line in trace.simplified(remove_postproc=True).as_python())


def sampling_steps(trace: Trace) -> list[Any]:
    """The sampling instructions of a trace, in order."""
    return [step for step in trace.insts if step.kind.name in (TILE, CHOICE)]


def _sketch(name: str, module: tvm.IRModule, trace: Trace) -> Sketch:
    names, knobs = [], {}
    seen: Counter[str] = Counter()
    for step in sampling_steps(trace):
        knob, values = _knob(step, trace.decisions[step])
        seen[knob] += 1
        knob += f" {chr(ord('a') + seen[knob] - 1)}" if seen[knob] > 1 else ""
        names.append(knob)
        knobs[knob] = values
    return Sketch(name, module, trace, tuple(names), knobs)


def _knob(step: Any, decision: Any) -> tuple[str, list[int | str]]:
    """The name of a step's knob and its values."""
    if step.kind.name == CHOICE:
        return UNROLL, list(_choices(step))
    parts, innermost = int(step.attrs[0]), int(step.attrs[1])
    extent = 1
    for factor in decision:
        extent *= int(factor)
    values = [_text(split) for split in splits(extent, parts) if split[-1] <= innermost]
    return f"{extent} in {parts}", list(values)


def _choices(step: Any) -> list[int]:
    return [int(value) for value in step.attrs[0]]


def splits(extent: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write ``extent`` as a product of so many factors, in order."""
    if parts == 1:
        return [(extent,)]
    return [(first, *rest) for first in _divisors(extent) for rest in splits(extent // first, parts - 1)]


@cache
def _divisors(number: int) -> tuple[int, ...]:
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return tuple(sorted({*small, *(number // size for size in small)}))


def _text(split: tuple[int, ...]) -> str:
    return "x".join(map(str, split))


def _value(step: Any, decision: Any) -> int | str:
    return (
        _choices(step)[int(decision)] if step.kind.name == CHOICE else _text(tuple(int(factor) for factor in decision))
    )


def _decision(step: Any, value: int | str) -> Any:
    return (
        _choices(step).index(int(value))
        if step.kind.name == CHOICE
        else [int(factor) for factor in str(value).split("x")]
    )
