"""Assembly routines for the Cortex-A53: framing, and the order of a loop of arithmetic and vector loads.

The rules that the order follows (published measurements of the core's issue):

- one 128-bit arithmetic operation a cycle; an integer operation or integer load may issue beside it;
- ``ldr d`` takes a cycle of the vector pipe and pairs with ``ins``; ``ldr q`` takes two;
- **no vector load issues in the cycle 4 after an fmla**, so loads stand in a train, one every 4 cycles: a load in cycle t
  is allowed because cycle t - 4 held a load too, and no arithmetic.

So a 128-bit vector is loaded as ``ldr d`` (low half), ``ldr x`` beside arithmetic (high half), and ``ins`` beside the next
vector's ``ldr d``: one cycle of the vector pipe each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest

#: Cycles from ``ldr d`` until arithmetic may read the vector: the ``ins`` one train slot later, and its latency.
LOAD_TO_USE = 7


class Arithmetic(str):
    """The text of an instruction of the vector pipe: an integer operation or a load may issue beside it."""


class Product(Arithmetic):
    """``total`` += ``left`` * ``right`` in float lanes; ``first``: ``total`` = ``left`` * ``right``. Operands as written."""

    total: int
    left: str
    right: str

    def __new__(cls, total: int, left: str, right: str, first: bool = False) -> Product:
        """The instruction."""
        made = super().__new__(cls, f"{'fmul' if first else 'fmla'} v{total}.4s, {left}, {right}")
        made.total, made.left, made.right = total, left, right
        return made

    def beginning(self) -> Product:
        """The same product as the first of its sum."""
        return Product(self.total, self.left, self.right, first=True)


def routine(symbol: str, lines: Iterable[str], registers: Mapping[str, str]) -> str:
    """``lines`` as a function: hidden, so that libraries never share it, and aligned to a cache line.

    ``registers`` says what each holds while the routine works: a table on top of it, for who reads it beside a disassembly.
    """
    width = max(map(len, registers))
    table = [f"// {name:{width}}  {meaning}" for name, meaning in registers.items()]
    head = [
        *table,
        ".text",
        f".hidden {symbol}",
        f".globl {symbol}",
        f".type {symbol}, %function",
        ".p2align 6",
        f"{symbol}:",
    ]
    return "\n".join([*head, *("    " + line if not line.endswith(":") else line for line in lines)]) + (
        f"\n    .size {symbol}, . - {symbol}\n"
    )


def named(name: str, lines: Sequence[str]) -> list[str]:
    """``lines`` with the name of what they do beside the first."""
    return [f"{line}  // {name}" if at == 0 else line for at, line in enumerate(lines)]


def span(numbers: Sequence[int], kind: str = "v") -> str:
    """Registers of adjacent numbers, as a table names them: "v0-v7"."""
    return f"{kind}{numbers[0]}" + (f"-{kind}{numbers[-1]}" if len(numbers) > 1 else "")


def beside(lines: Sequence[str], guests: Sequence[str]) -> list[str]:
    """``guests``, integer operations, in order: one behind each of ``lines``, vector arithmetic, and the rest behind them."""
    return [text for pair in zip_longest(lines, guests) for text in pair if text]


def saved(first: int, last: int, vectors: bool) -> tuple[list[str], list[str]]:
    """Prologue and epilogue that keep x``first``..x``last`` (an even number of them) and, if ``vectors``, d8..d15."""
    pairs = _pairs(first, last, vectors)
    if not pairs:
        return [], []
    frame = frame_bytes(first, last, vectors)
    enter = [f"sub sp, sp, #{frame}", *(f"stp {a}, {b}, [sp, #{16 * i}]" for i, (a, b) in enumerate(pairs))]
    leave = [*(f"ldp {a}, {b}, [sp, #{16 * i}]" for i, (a, b) in enumerate(pairs)), f"add sp, sp, #{frame}"]
    return enter, leave


def frame_bytes(first: int, last: int, vectors: bool) -> int:
    """How far ``saved`` moves the stack pointer: arguments on the stack are that much further up."""
    return 16 * len(_pairs(first, last, vectors))


def _pairs(first: int, last: int, vectors: bool) -> list[tuple[str, str]]:
    pairs = [(f"x{i}", f"x{i + 1}") for i in range(first, last, 2)]
    return pairs + ([(f"d{i}", f"d{i + 1}") for i in range(8, 16, 2)] if vectors else [])


def add(target: str, source: str, value: int) -> list[str]:
    """``target = source + value`` for a value of up to 24 bits."""
    high, low = value >> 12, value & 0xFFF
    lines = [f"add {target}, {source}, #{high}, lsl #12"] if high else []
    if low or not high:
        lines.append(f"add {target}, {target if high else source}, #{low}")
    return lines


@dataclass(frozen=True)
class Halves:
    """How an instruction set loads 128 bits, each instruction a cycle of the vector pipe or beside one.

    ``low``: of a register's number and an address. ``word``: of a carrier, an address and which of the ``words`` integer loads
    that bring the high half. ``join``: of a register's number and a carrier. ``pause``: an operation of the vector pipe that
    changes nothing, of the number of a register that it may read.
    """

    words: int
    low: Callable[[int, str], str]
    word: Callable[[str, str, int], str]
    join: Callable[[int, str], str]
    pause: Callable[[int], str]


A64 = Halves(
    words=1,
    low=lambda register, address: f"ldr d{register}, {address}",
    word=lambda carrier, address, _: f"ldr {carrier}, {address}",
    join=lambda register, carrier: f"ins v{register}.d[1], {carrier}",
    pause=lambda register: f"fmov wzr, s{register}",
)


@dataclass(frozen=True)
class Load:
    """A vector load inside a loop.

    ``register``: number of the v register. ``low``, ``high``: addresses of its halves as the iteration that uses the value
    writes them; no ``high``: only 64 bits. ``ahead``: the two addresses as the iteration before writes them, None where the
    load must not move there. ``after``, ``before``: indices into the loop's arithmetic, of the last reader of the
    register's old value (negative: in the iteration before) and of the first reader of the new one.
    """

    register: int
    low: str
    high: str | None
    ahead: tuple[str, str | None] | None
    after: int
    before: int

    def addresses(self, moved: bool) -> tuple[str, str | None]:
        """Of its halves, as this iteration writes them or, where the load is ``moved``, the one before."""
        return self.ahead if moved and self.ahead else (self.low, self.high)


@dataclass(frozen=True)
class Loop:
    """A loop whose ``loads`` are woven into its ``arithmetic`` in the order the core likes.

    ``control``: integer operations that end an iteration, in order; the last two may change addresses, the others must
    not change those that later loads use. ``branch`` closes it, e.g. "b.ge". ``scratch``: what carries high halves, e.g. x
    registers. ``idle``: a v register that the loop does not write with arithmetic.
    ``hints``: prefetches of cache lines; they issue beside arithmetic, evenly spread, as far as there is room.
    ``moves``: operations that move a pointer, by its name: each behind the last instruction that uses it.
    ``unbroken``: one train of loads may run through the whole loop and on into the next iteration.
    """

    arithmetic: Sequence[str]
    loads: Sequence[Load]
    control: Sequence[str]
    branch: str
    label: str
    scratch: Sequence[str]
    idle: int
    hints: Sequence[str] = ()
    halves: Halves = A64
    moves: Mapping[str, str] = field(default_factory=dict)
    unbroken: bool = False

    @cached_property
    def _found(self) -> _Plan | None:
        # Cheap to judge, dearer to complete: complete them from the best on until one works out.
        drafts = sorted(_drafts(self), key=lambda draft: draft.period + draft.late)
        return next((plan for plan in (_complete(self, draft) for draft in drafts) if plan), None)

    @property
    def feasible(self) -> bool:
        """Whether an order exists that respects the registers' lives."""
        return self._found is not None

    @property
    def _plan(self) -> _Plan:
        if self._found is None:
            raise ValueError("no order of the loop respects the lives of its registers")
        return self._found

    def head(self) -> list[str]:
        """Loads what the first iteration expects from the one before."""
        placed = [(load, slot) for load, slot in self._plan.placed if slot.low < 0]
        whole = [(load, slot) for load, slot in placed if slot.join < 0 and load.high]
        lines = []
        # As many high halves under way as there are registers that carry them: alone each would wait for its own.
        for first in range(0, len(whole), len(self.scratch)):
            group = list(zip(whole[first : first + len(self.scratch)], self.scratch, strict=False))
            for (load, _), temp in group:
                lines += [self.halves.word(temp, str(load.high), i) for i in range(self.halves.words)]
            lines += [self.halves.low(load.register, load.low) for (load, _), _ in group]
            lines += [self.halves.join(load.register, temp) for (load, _), temp in group]
        for load, slot in self._plan.placed:
            if slot.join >= 0 and load.high:
                temp = self.scratch[slot.temp]
                lines += [self.halves.word(temp, load.high, i) for i, high in enumerate(slot.highs) if high < 0]
            if slot.low < 0 and not (slot.join < 0 and load.high):
                lines.append(self.halves.low(load.register, load.low))
        return lines

    def body(self) -> list[str]:
        """The iteration, with its label and its branch."""
        return [f"{self.label}:", *self.iteration(), f"{self.branch} {self.label}b"]

    def iteration(self, last: bool = False) -> list[str]:
        """The iteration alone; its last instruction is arithmetic, beside which a branch may issue.

        Of the ``last`` one nothing is loaded that another iteration would use.
        """
        period, slots = self._plan.period, self._plan.placed
        pipe: dict[int, list[str]] = dict(zip(self._plan.cycles, ([text] for text in self.arithmetic), strict=True))
        for load, slot in slots:
            if not (last and slot.low < 0):
                address = load.addresses(slot.low < 0)[0]
                pipe.setdefault(slot.low % period, []).insert(0, self.halves.low(load.register, address))
            if load.high and not (last and slot.join < 0):
                joined = self.halves.join(load.register, self.scratch[slot.temp])
                pipe.setdefault(slot.join % period, []).append(joined)
        for cycle, text in zip(self._plan.control_cycles(self), self.control, strict=True):
            pipe[cycle].append(text)
        for load, slot in slots:
            for i, cycle in enumerate(slot.highs if load.high else ()):
                if not (last and cycle < 0):
                    high = str(load.addresses(cycle < 0)[1])
                    pipe[cycle % period].append(self.halves.word(self.scratch[slot.temp], high, i))
        alone = [cycle for cycle in self._plan.cycles[:-1] if len(pipe[cycle]) == 1]
        for i, hint in enumerate(self.hints[: len(alone)]):
            pipe[alone[len(alone) * i // len(self.hints)]].append(hint)
        for _, slot in slots:
            # Without an instruction there the pause would close up, and the load would wait four cycles.
            pipe.setdefault((slot.low - 4) % period, [self.halves.pause(self.idle)])
        if self._plan.unbroken:
            for cycle in range(period):
                pipe.setdefault(cycle, [self.halves.pause(self.idle)])
        self._move(pipe)
        return [text for cycle in sorted(pipe) for text in pipe[cycle]]

    def _move(self, pipe: dict[int, list[str]]) -> None:
        """Puts each of ``moves`` beside arithmetic that issues alone, or else where it costs half a cycle."""
        for pointer, text in self.moves.items():
            used = max(cycle for cycle, texts in pipe.items() if any(f"[{pointer}," in line for line in texts))
            behind = [cycle for cycle in sorted(pipe) if used < cycle < self._plan.cycles[-1] and len(pipe[cycle]) == 1]
            pipe[behind[0] if behind else max(used, self._plan.cycles[-2])].append(text)

    @property
    def cycles(self) -> int:
        """Cycles of an iteration when every load hits, by the rules above."""
        return self._plan.period + self._plan.late


@dataclass(frozen=True)
class _Slot:
    """Cycles of a load's instructions; negative: in the iteration before. ``temp`` carries its high half."""

    low: int
    highs: tuple[int, ...]
    join: int
    temp: int


@dataclass(frozen=True)
class _Draft:
    """A place for every low half.

    ``cycles``: when each arithmetic instruction issues; ``lows``: when each load's low half does (negative: in the iteration
    before); ``late``: cycles by which loads miss their first readers; ``unbroken``: whether one train runs through the loop.
    """

    period: int
    cycles: tuple[int, ...]
    lows: tuple[tuple[Load, int], ...]
    late: int
    unbroken: bool

    def control_cycles(self, loop: Loop) -> tuple[int, ...]:
        """When integer operations issue: beside the last arithmetic but one, and those before it."""
        return self.cycles[-len(loop.control) - 1 : -1]


@dataclass(frozen=True)
class _Plan(_Draft):
    """A draft with the places of all instructions."""

    placed: tuple[tuple[Load, _Slot], ...]


def _drafts(loop: Loop) -> Iterable[_Draft]:
    """Every place for the trains of loads, and every way to distribute the loads on them.

    A train costs two cycles beside its loads: a pause in front, because arithmetic 4 cycles before would hold the first
    load up, and one behind for the last ``ins``. But a long train loads much at once, which needs registers.
    """
    count, loads = len(loop.arithmetic), sorted(loop.loads, key=lambda load: load.before)
    for trains, group in itertools.product(range(1, 5), (1, 2, 3)):
        # Each group of g loads side by side is followed by 4 - g operations: the smallest g that leaves no cycle idle is
        # best, a larger one loads faster.
        if group < 3 and count * group < (4 - group) * (len(loads) - group * trains):
            continue
        slots, busy = _trains(len(loads), trains, group, count + len(loads) + 2 * group * trains)
        period = max(count + len(busy), max(slots) + 8)
        for start in range(period):
            taken = {(start + cycle) % period for cycle in busy}
            if not taken.isdisjoint(range(period - 3, period)):
                continue
            cycles = tuple(cycle for cycle in range(period) if cycle not in taken)
            cycles = cycles[len(cycles) - count :]
            yield from _assignments(loads, [start + cycle for cycle in slots], cycles, period)
    if loop.unbroken:
        yield from _unbroken(count, loads)


def _unbroken(count: int, loads: Sequence[Load]) -> Iterable[_Draft]:
    """A load every fourth cycle, and no end to the train; cycles that neither loads nor arithmetic fill are pauses."""
    period = 4 * max(len(loads), -(-count // 3))
    for first in range(3):
        between = [cycle for cycle in range(period) if cycle % 4 != first]
        idle = len(between) - count
        # Pauses late in the loop have room beside them for what moves pointers.
        for at in range(count - 1, 0, -max(1, count // 8)):
            cycles = (*between[:at], *between[at + idle :])
            yield from _assignments(loads, range(first, period, 4)[: len(loads)], cycles, period, unbroken=True)


def _trains(loads: int, trains: int, group: int, period: int) -> tuple[list[int], set[int]]:
    """Cycles of the loads of evenly spread trains, and all cycles in which no arithmetic may issue."""
    slots: list[int] = []
    for train in range(trains):
        first = max(4 + period * train // trains, slots[-1] + 8 if slots else 0)
        size = loads * (train + 1) // trains - loads * train // trains
        slots += [first + 4 * (i // group) + i % group for i in range(size)]
    return slots, {cycle + shift for cycle in slots for shift in (-4, 0, 4)}


def _assignments(
    loads: Sequence[Load], slots: Sequence[int], cycles: tuple[int, ...], period: int, unbroken: bool = False
) -> Iterable[_Draft]:
    """Loads in the order of their deadlines onto the slots, for each way to begin."""
    count = len(cycles)

    def when(index: int) -> int:
        return cycles[index % count] + period * (index // count)

    # This is most of the time of compiling: what a load asks for is worked out once, not for each way to begin.
    asked = []
    for load in loads:
        use = when(load.before)
        asked.append((load, when(load.after), min(use, period) - 4, use, -period if load.ahead else 0))
    for turn in range(2 * len(loads)):
        lows, late = [], 0
        for i, (load, after, deadline, use, least) in enumerate(asked):
            lap, number = divmod(i - turn, len(loads))
            low = slots[number] + lap * period
            if low >= period:
                low -= period
            if low <= after or low >= deadline or low < least:
                break
            if low + LOAD_TO_USE > use:
                late += low + LOAD_TO_USE - use
            lows.append((load, low))
        else:
            yield _Draft(period, cycles, tuple(lows), late, unbroken)


def _complete(loop: Loop, draft: _Draft) -> _Plan | None:
    """The draft with cycles and registers for the high halves."""
    free = set(draft.cycles) - set(draft.control_cycles(loop)) - {draft.cycles[-1]}
    taken: list[set[int]] = [set() for _ in loop.scratch]
    placed = []
    for load, low in draft.lows:
        beside = (
            _beside(low, free, taken, draft.period, 0 if not load.ahead else -draft.period, loop.halves.words)
            if load.high
            else ((low,), 0)
        )
        if not beside:
            return None
        placed.append((load, _Slot(low, beside[0], low + 4, beside[1])))
    return _Plan(draft.period, draft.cycles, draft.lows, draft.late, draft.unbroken, tuple(placed))


def _beside(
    low: int, free: set[int], taken: list[set[int]], period: int, least: int, words: int
) -> tuple[tuple[int, ...], int] | None:
    """Cycles beside arithmetic, and a scratch register, for the high half of the vector that begins to load at ``low``."""
    spots = [high for high in range(low + 1, max(low - 12 * words, least - 1), -1) if high % period in free]
    for last in range(len(spots) - words + 1):
        highs = spots[last : last + words][::-1]
        life = {cycle % period for cycle in range(highs[0], low + 5)}
        temp = next((i for i, cycles in enumerate(taken) if not cycles & life), None)
        if temp is not None:
            free.difference_update(high % period for high in highs)
            taken[temp] |= life
            return tuple(highs), temp
    return None
