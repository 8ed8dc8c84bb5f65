"""Winograd's transform of products to outputs in A32 for the Cortex-A53: four channels at a time, along y, then along x.

C call: ``(float *out, const float *products, const float *bias, int32 vectors)``: ``products`` are [point y][point x],
``pitch`` bytes from point to point; ``out`` gets the outputs of a vector of four channels in the order of ``places``, then
those of the next four. A ``Finish`` is applied to them; without a bias its pointer is not used. All outputs have the product
at point 1, so the bias is added there.

A tile has more points than there are registers. So a line of them is transformed at a time, as many lines side by side as the
registers hold, and the values between the two halves wait on the stack. Instructions are listed cycle by cycle: the first in
the program's order whose operands are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np

from bitkiln.schedules.microkernels.a53.sgemm import Finish
from bitkiln.schedules.microkernels.a53_32 import asm

#: Values as sparse sums of values of the stage before: of each (index, coefficient); the first coefficient is 1.
Stage = tuple[tuple[tuple[int, float], ...], ...]

_OUT, _PRODUCTS, _BIAS, _LEFT, _BETWEEN, _SCRATCH = "r0", "r1", "r2", "r3", "r12", "lr"
_REGISTERS = 16
#: The base of loads lies so far behind the first product: offsets reach as far both ways.
_MIDDLE = 640
#: Cycles until a result can be read.
_ADD, _MULTIPLY_ADD, _LOAD, _STORE = 4, 8, 4, 0
#: Lines that are transformed side by side.
_SIDE_BY_SIDE = 2


@dataclass(frozen=True)
class ResultTransform:
    """The micro-kernel of a tile of so many ``points``, ``along`` y and x, whose products lie ``pitch`` bytes apart."""

    name: str
    points: tuple[int, int]
    along: tuple[tuple[Stage, ...], tuple[Stage, ...]]
    pitch: int
    finish: Finish
    #: What it can finish with.
    activations: ClassVar[frozenset[str]] = frozenset({"relu", "leaky", "clip"})

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_transform_{self.name}_{self.pitch}{self.finish.words}_a53_32"

    @property
    def factors(self) -> list[float]:
        """What is in lanes: the sizes of all coefficients but 1, and a slope."""
        rows = [row for stages in self.along for stage in stages for row in stage]
        found = {abs(coefficient) for row in rows for _, coefficient in row} - {1}
        return [*sorted(found), *(self.finish.values if self.finish.activation == "leaky" else ())]

    @property
    def bounds(self) -> list[float]:
        """What fills registers: the bounds of an activation."""
        return {"relu": [0.0], "clip": list(self.finish.values)}.get(self.finish.activation, [])

    @property
    def first_bound(self) -> int:
        """The register of the first of the ``bounds``."""
        return -(-len(self.factors) // 4)

    @property
    def places(self) -> dict[tuple[int, int], int]:
        """Where in ``out`` the output (y, x) is, in vectors."""
        return _written(self)[1]

    def assembly(self) -> str:
        """Its text."""
        lines, _, room = _written(self)
        text = [
            *asm.ENTER,
            f"sub sp, sp, #{room}",
            *(line for i, value in enumerate(self.factors) for line in _constant(f"vmov s{i}", value)),
            *(
                line
                for i, value in enumerate(self.bounds, self.first_bound)
                for line in _constant(f"vdup.32 q{i}", value)
            ),
            f"add {_PRODUCTS}, {_PRODUCTS}, #{_MIDDLE}",
            "1:",
            f"mov {_BETWEEN}, sp",
            *lines,
            f"add {_PRODUCTS}, {_PRODUCTS}, #16",
            *([f"add {_BIAS}, {_BIAS}, #16"] if self.finish.bias else []),
            f"subs {_LEFT}, {_LEFT}, #1",
            "bgt 1b",
            f"add sp, sp, #{room}",
            *asm.LEAVE,
        ]
        registers = {
            _OUT: "outputs",
            _PRODUCTS: f"products, {_MIDDLE} bytes behind the first",
            _BETWEEN: "values between the halves",
            _LEFT: "vectors left",
            "s0...": "factors: " + ", ".join(map(str, self.factors)),
            **({f"q{self.first_bound}...": "bounds: " + ", ".join(map(str, self.bounds))} if self.bounds else {}),
            "other q": "values",
        }
        return asm.routine(self.symbol, text, registers)


def _constant(into: str, value: float) -> list[str]:
    return [*asm.constant(_SCRATCH, int(np.float32(value).view("uint32"))), f"{into}, {_SCRATCH}"]


@dataclass(eq=False)
class _Operation:
    """An instruction on values: ``text`` of the registers of its result and of its sources."""

    text: Callable[[int, Sequence[int]], Sequence[str]]
    sources: Sequence[_Operation]
    latency: int
    cycles: int = 1
    has_result: bool = True
    #: Whether the result takes the place of the first source.
    in_place: bool = False
    stored: tuple[int, int] | None = None


@cache
def _written(kernel: ResultTransform) -> tuple[list[str], dict[tuple[int, int], int], int]:
    """The instructions for a vector; where they store outputs; bytes between the halves."""
    points_y, points_x = kernel.points
    room = _REGISTERS - kernel.first_bound - len(kernel.bounds)
    columns = []
    for x in range(points_x):
        values = [_load(_PRODUCTS, (y * points_x + x) * kernel.pitch - _MIDDLE) for y in range(points_y)]
        before = list(values)
        if x == 1 and kernel.finish.bias:
            before.append(_load(_BIAS, 0))
            values[1] = _sum("vadd", values[1], before[-1])
            before.append(values[1])
        columns.append([*before, *_line(values, kernel.along[0], kernel.factors, x)])
    lines, between = _schedule(columns, _BETWEEN, room)
    rows = []
    for y in range(len(kernel.along[0][-1])):
        values = [_load("sp", 16 * between[x, y]) for x in range(points_x)]
        rows.append([*values, *_line(values, kernel.along[1], kernel.factors, y, kernel)])
    more, places = _schedule(rows, _OUT, room)
    return [*lines, *more], places, 16 * len(between)


def _load(base: str, at: int) -> _Operation:
    return _Operation(
        lambda to, _: [f"vldr d{2 * to + half}, [{base}, #{at + 8 * half}]" for half in range(2)], (), _LOAD, cycles=2
    )


def _line(
    values: Sequence[_Operation],
    stages: Sequence[Stage],
    factors: Sequence[float],
    number: int,
    finishes: ResultTransform | None = None,
) -> list[_Operation]:
    """The operations on ``values`` of a line, up to stores of its results; those of the last half are finished."""
    operations: list[_Operation] = []
    for stage in stages:
        # Sums of several values of coefficient 1 first: the others can then take their first value's place.
        order = sorted(range(len(stage)), key=lambda i: (len(stage[i]) > 1, -sum(abs(c) == 1 for _, c in stage[i])))
        results: dict[int, _Operation] = {}
        for index in order:
            (first, _), *terms = stage[index]
            total = values[first]
            for term, coefficient in sorted(terms, key=lambda term: abs(term[1]) != 1):
                total = _add(total, values[term], coefficient, factors)
                operations.append(total)
            results[index] = total
        values = [results[i] for i in range(len(stage))]
    for result, value in enumerate(values):
        if finishes:
            operations += _activation(finishes, value)
            value = operations[-1] if finishes.finish.activation else value
        store = _Operation(lambda _, by: [f"q{by[0]}"], (value,), _STORE, has_result=False, stored=(number, result))
        operations.append(store)
    return operations


def _sum(name: str, a: _Operation, b: _Operation) -> _Operation:
    return _Operation(lambda to, by: [f"{name}.f32 q{to}, q{by[0]}, q{by[1]}"], (a, b), _ADD)


def _add(total: _Operation, term: _Operation, coefficient: float, factors: Sequence[float]) -> _Operation:
    if abs(coefficient) == 1:
        return _sum("vadd" if coefficient > 0 else "vsub", total, term)
    lane = factors.index(abs(coefficient))
    name, factor = "vmla" if coefficient > 0 else "vmls", f"d{lane // 2}[{lane % 2}]"
    return _Operation(
        lambda to, by: [f"{name}.f32 q{to}, q{by[1]}, {factor}"], (total, term), _MULTIPLY_ADD, in_place=True
    )


def _activation(kernel: ResultTransform, value: _Operation) -> list[_Operation]:
    """The operations of the activation on ``value``."""
    if kernel.finish.activation == "leaky":
        lane = len(kernel.factors) - 1
        scaled = _Operation(lambda to, by: [f"vmul.f32 q{to}, q{by[0]}, d{lane // 2}[{lane % 2}]"], (value,), _ADD)
        return [scaled, _sum("vmax", value, scaled)]
    operations = []
    for number, name in enumerate(("vmax", "vmin")[: len(kernel.bounds)]):
        value = _bounded(name, value, kernel.first_bound + number)
        operations.append(value)
    return operations


def _bounded(name: str, value: _Operation, bound: int) -> _Operation:
    return _Operation(lambda to, by: [f"{name}.f32 q{to}, q{by[0]}, q{bound}"], (value,), _ADD)


@dataclass
class _Machine:
    """Registers and cycles while a half is written."""

    free: list[int]
    uses: dict[_Operation, int]
    cycle: int = 0
    register: dict[_Operation, int] = field(default_factory=dict)
    ready: dict[_Operation, int] = field(default_factory=dict)

    def can_begin(self, operation: _Operation) -> int | None:
        """The cycle in which ``operation`` can issue, None if a source is not computed or no register free."""
        if any(source not in self.register for source in operation.sources):
            return None
        dies = any(self.uses[source] == 1 for source in operation.sources)
        if operation.in_place:
            dies = self.uses[operation.sources[0]] == 1
        if operation.has_result and not self.free and not dies:
            return None
        return max([self.cycle, *(self.ready[source] for source in operation.sources)])

    def issue(self, operation: _Operation) -> Iterator[str]:
        """Its instructions."""
        self.cycle = max([self.cycle, *(self.ready[source] for source in operation.sources)])
        sources = [self.register[source] for source in operation.sources]
        for source in operation.sources:
            self.uses[source] -= 1
        keeps = operation.in_place and self.uses[operation.sources[0]] > 0
        if keeps:
            copy = self.free.pop(0)
            yield f"vmov q{copy}, q{sources[0]}"
            self.cycle += 1
        for source, register in zip(operation.sources, sources, strict=True):
            if self.uses[source] == 0:
                self.free.append(register)
        if operation.has_result:
            if keeps:
                to = copy
            else:
                to = sources[0] if operation.in_place else self.free[0]
                self.free.remove(to)
            self.register[operation] = to
            yield from operation.text(to, sources)
        else:
            yield from operation.text(0, sources)
        self.ready[operation] = self.cycle + operation.latency
        self.cycle += operation.cycles


def _schedule(
    lines: Sequence[list[_Operation]], target: str, registers: int
) -> tuple[list[str], dict[tuple[int, int], int]]:
    """The instructions of ``lines``, in the last of so many registers, and the order of their stores."""
    first = _REGISTERS - registers
    uses: dict[_Operation, int] = {}
    for operation in (each for line in lines for each in line):
        uses.setdefault(operation, 0)
        for source in operation.sources:
            uses[source] += 1
    machine = _Machine(list(range(first, _REGISTERS)), uses)
    text: list[str] = []
    places: dict[tuple[int, int], int] = {}
    waiting = [list(line) for line in lines]
    while any(waiting):
        candidates = [
            (begin, rank, operation, line)
            for rank, line in enumerate([line for line in waiting if line][:_SIDE_BY_SIDE])
            for operation in line
            if (begin := machine.can_begin(operation)) is not None
        ]
        if not candidates:
            raise ValueError("two lines of a transform have more values than there are registers")
        _, _, operation, line = min(candidates, key=lambda each: each[:2])
        line.remove(operation)
        written = list(machine.issue(operation))
        if operation.stored is not None:
            places[operation.stored] = len(places)
            written = [f"vst1.32 {{{asm.doubles([int(written[0][1:])])}}}, [{target}]!"]
        text += written
    return text, places
