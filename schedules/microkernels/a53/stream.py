"""Orders a straight line of multiply-adds and the vector loads that feed it for the Cortex-A53, and names its registers.

The rules are those of ``asm``: one 128-bit operation a cycle; ``ldr d`` takes a cycle of the vector pipe, is not allowed
4 cycles after an fmla, and pairs with ``ins``; ``ldr x`` goes beside arithmetic. Loads therefore run in trains, one every
4 cycles, each train begun by one pause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.asm import Arithmetic, Product

#: Cycles from ``ldr x`` to ``ins``, between the loads of a train, and from ``ins`` to arithmetic.
WORD_TO_JOIN, TRAIN, JOIN_TO_USE = 3, 4, 2
#: A 128-bit load issues in 2 cycles and is usable 4 cycles after it began.
QUAD_ISSUE, QUAD_TO_USE = 2, 4
#: A train begins when so many registers are free, or when the next value is needed within so many operations.
WORTH_A_TRAIN, URGENT = 4, 20


@dataclass(frozen=True)
class Value:
    """128 bits at ``base`` + ``offset`` bytes. Uses that are far apart get different ``tag``s, and are loaded again."""

    base: str
    offset: int
    tag: int = 0


@dataclass(frozen=True)
class MultiplyAdd:
    """v``sum`` += ``vector`` * lane ``lane`` of ``scalar``, or without a lane each times its own; ``first`` starts the sum
    instead of adding to it."""

    sum: int
    vector: Value
    scalar: Value
    lane: int | None
    first: bool


@dataclass(frozen=True)
class Writer:
    """How an instruction set writes a stream.

    ``whole``: a load of 128 bits, of a register's number and a value. ``multiply``: of an operation and the numbers of the
    registers that hold its vector and its scalar.
    """

    halves: asm.Halves
    whole: Callable[[int, Value], Sequence[str]]
    multiply: Callable[[MultiplyAdd, int, int], str]


def _multiply(operation: MultiplyAdd, vector: int, scalar: int) -> str:
    factor = f"v{scalar}.4s" if operation.lane is None else f"v{scalar}.s[{operation.lane}]"
    return Product(operation.sum, f"v{vector}.4s", factor, operation.first)


A64 = Writer(asm.A64, lambda register, value: [f"ldr q{register}, [{value.base}, #{value.offset}]"], _multiply)


def schedule(
    operations: Sequence[MultiplyAdd], registers: Sequence[int], words: Sequence[str], writer: Writer = A64
) -> tuple[list[str], int]:
    """The instructions of ``operations`` with their loads, and the cycles they take when every load hits.

    ``registers``: v registers for operands, free before and after; ``words``: what carries high halves, e.g. x registers.
    Raises ValueError where the values in use at one moment do not fit the registers.
    """
    stream = _Stream(operations, registers, words, writer)
    stream.preload()
    while stream.position < len(operations):
        stream.issue_cycle()
    return stream.lines, stream.cycle


def alone(lines: Sequence[str]) -> list[int]:
    """The places of arithmetic that has nothing beside it yet."""
    return [
        at
        for at, (line, following) in enumerate(pairwise(lines))
        if isinstance(line, Arithmetic) and isinstance(following, Arithmetic)
    ]


def with_guests(lines: Sequence[str], guests: Sequence[str]) -> list[str]:
    """``guests`` evenly spread beside arithmetic that has nothing beside it yet."""
    places = alone(lines)
    beside = {places[len(places) * i // len(guests)]: guest for i, guest in enumerate(guests)} if places else {}
    return [text for at, line in enumerate(lines) for text in (line, *([beside[at]] if at in beside else []))]


class _Stream:
    """The machine's state while the line is written, cycle by cycle."""

    def __init__(
        self, operations: Sequence[MultiplyAdd], registers: Sequence[int], words: Sequence[str], writer: Writer
    ) -> None:
        self.writer = writer
        self.operations = operations
        self.free = list(registers)
        self.words = list(words)
        self.lines: list[str] = []
        self.cycle = 0
        self.position = 0
        self.first_use: dict[Value, int] = {}
        self.last_use: dict[Value, int] = {}
        for position, operation in enumerate(operations):
            for value in (operation.vector, operation.scalar):
                self.first_use.setdefault(value, position)
                self.last_use[value] = position
        self.waiting = sorted(self.first_use, key=lambda value: self.first_use[value])
        self.register: dict[Value, int] = {}
        self.ready: dict[Value, int] = {}
        #: Values whose high half has yet to be loaded; the one of which so many words are; then those on the way: value, word,
        #: cycle of arrival.
        self.halves: list[Value] = []
        self.begun: tuple[Value, str, int] | None = None
        self.joins: list[tuple[Value, str, int]] = []
        self.next_load: int | None = None

    def preload(self) -> None:
        """The first operations' values by whole loads: no fmla is under way that would hold them up."""
        while self.waiting and self.free and self.first_use[self.waiting[0]] < URGENT:
            value = self._take_register()
            self.lines += self.writer.whole(self.register[value], value)
            self.ready[value] = self.cycle + QUAD_TO_USE
            self.cycle += QUAD_ISSUE

    def issue_cycle(self) -> None:
        """Whatever one cycle of the vector pipe does, with what goes beside it."""
        if self.next_load == self.cycle and self.waiting and self.free:
            self._load()
            self.next_load = self.cycle + TRAIN
        elif self.next_load == self.cycle:
            self.next_load = None
            if not self._join():
                return
        elif self.next_load is None and self._wants_train():
            self.next_load = self.cycle + TRAIN
            if not self._join():
                self._pause()
        else:
            self._multiply()
        self.cycle += 1

    def _wants_train(self) -> bool:
        if not self.waiting or not self.free:
            return False
        urgent = self.first_use[self.waiting[0]] - self.position <= URGENT
        return urgent or len(self.free) >= min(WORTH_A_TRAIN, len(self.waiting))

    def _take_register(self) -> Value:
        value = self.waiting.pop(0)
        self.register[value] = self.free.pop(0)
        return value

    def _load(self) -> None:
        value = self._take_register()
        self.lines.append(self.writer.halves.low(self.register[value], f"[{value.base}, #{value.offset}]"))
        self.halves.append(value)
        self._join()

    def _load_word(self) -> bool:
        if self.begun is None:
            if not self.halves or not self.words:
                return False
            self.begun = self.halves.pop(0), self.words.pop(0), 0
        value, word, loaded = self.begun
        self.lines.append(self.writer.halves.word(word, f"[{value.base}, #{value.offset + 8}]", loaded))
        self.begun = value, word, loaded + 1
        if loaded + 1 == self.writer.halves.words:
            self.begun = None
            self.joins.append((value, word, self.cycle + WORD_TO_JOIN))
        return True

    def _join(self) -> bool:
        """Joins the oldest high half to its register, if it has arrived."""
        if not self.joins or self.joins[0][2] > self.cycle:
            return False
        value, word, _ = self.joins.pop(0)
        self.lines.append(self.writer.halves.join(self.register[value], word))
        self.ready[value] = self.cycle + JOIN_TO_USE
        self.words.append(word)
        return True

    def _pause(self) -> None:
        """Keeps an fmla out of this cycle: without an instruction of the vector pipe the gap would close up."""
        previous = self.operations[max(self.position - 1, 0)].vector
        register = self.register.get(previous, self.register[self.operations[0].vector])
        self.lines.append(Arithmetic(self.writer.halves.pause(register)))

    def _multiply(self) -> None:
        """The next multiply-add; while its operands are under way, whatever brings them nearer."""
        operation = self.operations[self.position]
        operands = (operation.vector, operation.scalar)
        if any(self.ready.get(value, self.cycle + 1) > self.cycle for value in operands):
            moves = self._join() or self._load_word() or self.joins or self.next_load is not None
            if not moves and any(value not in self.ready for value in operands):
                raise ValueError("the values of one moment do not fit the registers")
            return
        vector, scalar = (self.register[value] for value in operands)
        self.lines.append(self.writer.multiply(operation, vector, scalar))
        self._load_word()
        for value in dict.fromkeys(operands):
            if self.last_use[value] == self.position:
                self.free.append(self.register[value])
        self.position += 1
