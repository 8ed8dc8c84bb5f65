"""Winograd's transforms in A32 for the Cortex-A53, four channels at a time: of the image, and of products to outputs.

``ResultTransform``: ``(float *out, const float *products, const float *bias, int32 vectors)``: ``products`` are
[point y][point x], ``pitch`` bytes from point to point; ``out`` gets the outputs of a vector of four channels in the order of
``places``, then those of the next four. A ``Finish`` is applied to them; without a bias its pointer is not used. All outputs
have the product at point 1, so the bias is added there.

``DataTransform``: ``(float *out, const float *image, int32 pitch, int32 vectors)``: the points of a tile from ``image`` on,
whose rows are ``pitch`` bytes apart, to ``out[point y][point x][channel]``, ``side`` floats from channel to channel.

A tile has more points than there are registers. So a line of them is transformed at a time, as many lines side by side as the
registers hold, and the values between the two halves wait on the stack. Instructions are listed cycle by cycle: the first in
the program's order whose operands are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import ClassVar

from bitkiln.schedules.microkernels.a53.sgemm import Finish
from bitkiln.schedules.microkernels.a53_32 import asm

#: Values as sparse sums of values of the stage before: of each (index, coefficient); the first coefficient is 1.
Stage = tuple[tuple[tuple[int, float], ...], ...]

#: Stores of the register with the result of a line, (line, number).
_Store = Callable[[tuple[int, int], int], list[str]]

_LANES = 4
_OUT, _PRODUCTS, _BIAS, _LEFT, _BETWEEN, _SCRATCH = "r0", "r1", "r2", "r3", "r12", "lr"
#: Of a transform of the image: its rows' pitch, a pointer to each row, and bytes from a channel to the next one's value.
_IMAGE_PITCH, _IMAGE_ROWS, _STEP, _SIDE = "r2", tuple(f"r{i}" for i in range(4, 10)), "r10", "r11"
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
        return [*_factors(self.along), *(self.finish.values if self.finish.activation == "leaky" else ())]

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


def _factors(along: Iterable[Sequence[Stage]]) -> list[float]:
    """The sizes of all coefficients but 1."""
    rows = [row for stages in along for stage in stages for row in stage]
    return sorted({abs(coefficient) for row in rows for _, coefficient in row} - {1})


def _constant(into: str, value: float) -> list[str]:
    return [*asm.constant(_SCRATCH, asm.pattern(value)), f"{into}, {_SCRATCH}"]


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
    lines, between = _schedule(columns, _stored_next(_BETWEEN), room)
    rows = []
    for y in range(len(kernel.along[0][-1])):
        values = [_load("sp", 16 * between[x, y]) for x in range(points_x)]
        rows.append([*values, *_line(values, kernel.along[1], kernel.factors, y, kernel)])
    more, places = _schedule(rows, _stored_next(_OUT), room)
    return [*lines, *more], places, 16 * len(between)


def _stored_next(pointer: str) -> _Store:
    """Stores one behind the other."""
    return lambda _place, register: [f"vst1.32 {{{asm.doubles([register])}}}, [{pointer}]!"]


@dataclass(frozen=True)
class DataTransform:
    """The micro-kernel of tiles of so many ``points``, ``along`` y and x; ``pixel`` floats from pixel to pixel of the image."""

    name: str
    points: tuple[int, int]
    along: tuple[tuple[Stage, ...], tuple[Stage, ...]]
    pixel: int
    channels: int
    side: int
    #: The most points along y.
    most: ClassVar[int] = len(_IMAGE_ROWS)

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_data_transform_{self.name}_{self.pixel}to{self.channels}c{self.side}_a53_32"

    def assembly(self) -> str:
        """Its text."""
        factors = _factors(self.along)
        rows, width = _IMAGE_ROWS[: self.points[0]], self.points[1] * self.pixel * 4
        lines, room = self._vector(factors)
        text = [
            *asm.ENTER,
            f"sub sp, sp, #{room}",
            *(line for i, value in enumerate(factors) for line in _constant(f"vmov s{i}", value)),
            f"mov {rows[0]}, {_PRODUCTS}",
            *(f"add {row}, {before}, {_IMAGE_PITCH}" for before, row in pairwise(rows)),
            *asm.constant(_STEP, self.pixel * 4),
            f"mov {_SIDE}, #{4 * self.side}",
            "1:",
            f"mov {_BETWEEN}, sp",
            *lines,
            f"add {_OUT}, {_OUT}, #{16 * self.side}",
            *asm.constant(_SCRATCH, width - 16),
            *(f"sub {row}, {row}, {_SCRATCH}" for row in rows),
            f"subs {_LEFT}, {_LEFT}, #1",
            "bgt 1b",
            f"add sp, sp, #{room}",
            *asm.LEAVE,
        ]
        registers = {
            _OUT: "points",
            ", ".join(rows): "rows of the image",
            f"{_STEP}, {_SIDE}": "bytes from pixel to pixel, and from channel to channel of the points",
            _BETWEEN: "values between the halves",
            _LEFT: "vectors left",
            "s0...": "factors: " + ", ".join(map(str, factors)),
            "other q": "values",
        }
        return asm.routine(self.symbol, text, registers)

    def _vector(self, factors: Sequence[float]) -> tuple[list[str], int]:
        """The instructions for a vector of channels; bytes between the halves."""
        points_y, points_x = self.points
        room = _REGISTERS - -(-len(factors) // 4)
        lines = []
        for y in range(points_y):
            values = [_load_next(_IMAGE_ROWS[y]) for _ in range(points_x)]
            lines.append([*values, *_line(values, self.along[1], factors, y)])
        text, between = _schedule(lines, _stored_next(_BETWEEN), room)
        columns = []
        for x in range(points_x):
            values = [_load("sp", 16 * between[y, x]) for y in range(points_y)]
            columns.append([*values, *_line(values, self.along[0], factors, x, store_cycles=_LANES)])
        more, _ = _schedule(columns, self._stored_by_lanes, room)
        return [*text, *more], 16 * len(between)

    def _stored_by_lanes(self, place: tuple[int, int], register: int) -> list[str]:
        x, y = place
        offset = (y * self.points[1] + x) * self.channels * self.side * 4
        lanes = [f"d{2 * register + lane // 2}[{lane % 2}]" for lane in range(_LANES)]
        return [*asm.add(_SCRATCH, _OUT, offset), *(f"vst1.32 {{{lane}}}, [{_SCRATCH}], {_SIDE}" for lane in lanes)]


def _load(base: str, at: int) -> _Operation:
    return _Operation(
        lambda to, _: [f"vldr d{2 * to + half}, [{base}, #{at + 8 * half}]" for half in range(2)], (), _LOAD, cycles=2
    )


def _load_next(pointer: str) -> _Operation:
    """A load from an image row, whose pointer goes on to the next pixel."""
    return _Operation(lambda to, _: [f"vld1.32 {{{asm.doubles([to])}}}, [{pointer}], {_STEP}"], (), _LOAD, cycles=2)


def _line(
    values: Sequence[_Operation],
    stages: Sequence[Stage],
    factors: Sequence[float],
    number: int,
    finishes: ResultTransform | None = None,
    store_cycles: int = 1,
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
        operations.append(
            _Operation(
                lambda _, by: [f"q{by[0]}"], (value,), _STORE, store_cycles, has_result=False, stored=(number, result)
            )
        )
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
    lines: Sequence[list[_Operation]], store: _Store, registers: int
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
            written = store(operation.stored, int(written[0][1:]))
        text += written
    return text, places
