"""Counts of differing bits between patches and weights, for the Cortex-A53: tiles of pixels x vectors of 8 channels.

A lane is an output channel. A step takes one 16-bit word of the patch: the word of a pixel in all lanes, exclusive or with
the word of 8 channels, bits counted in bytes (``cnt``) and added up in byte accumulators: three operations for 128 bits,
one a cycle. Bytes hold 31 steps of at most 8; after such a *segment* they are widened to 16 bits (``uaddlp``).

Around the arithmetic stand only loads that the core issues in a cycle each (measured on a Raspberry Pi 3):

- ``ld2r`` broadcasts a word of two pixels, which lie side by side in the panel;
- a vector of weights is an ``ldr d``, an ``ldr x`` beside arithmetic and an ``ins`` beside the next vector's ``ldr d``
  (``ldr q`` would block the pipe for two cycles).

Registers of a 6 x 32 tile: 24 accumulators, 4 weights, 2 pixels, 2 temporaries. Each load goes to the register whose last
reader has just issued, far enough before its next reader. A step of that tile takes 80 cycles for 3072 MACs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from bitkiln.schedules.microkernels.a53 import asm

#: Steps that a byte accumulator holds.
MAX_SEGMENT = 31
#: How far ahead of their use weights are fetched into the cache, in bytes: those of deep layers come from memory.
_AHEAD = 256
#: Bytes that a kernel may read behind its panel and its weights: loads run one step ahead.
OVERREAD = _AHEAD + 64
#: Registers besides accumulators and weights.
WORKING = 4

_PANEL, _WEIGHTS = "x0", "x1"
_COUNT = "x8"
_REPEATS = "x23"
_PAIRS = [f"x{i}" for i in range(9, 15)]
_HIGH = ["x15", "x16"]


def fits(pixels: int, vectors: int) -> bool:
    """Whether a tile's accumulators and weights leave the working registers free."""
    return pixels * vectors + vectors + WORKING <= 32 and -(-pixels // 2) <= len(_PAIRS)


@dataclass(frozen=True)
class Touch:
    """Memory that the end of a tile will use: ``lines`` cache lines a pixel, from ``start`` on every ``stride`` bytes.

    Prefetches (prfm) fetch it while the product is computed. ``pointer`` is a register of the routine's own.
    """

    start: str
    pointer: str
    stride: str
    lines: int


@dataclass(frozen=True)
class _Loop:
    """``steps`` steps, with the touches of a pixel beside each."""

    steps: int
    touched: tuple[tuple[Touch, tuple[int, ...]], ...] = ()

    def head(self) -> Iterator[str]:
        """Pointers to the first pixel's lines."""
        yield from (f"mov {touch.pointer}, {touch.start}" for touch, _ in self.touched)

    def beside(self) -> Iterator[str]:
        """What issues beside the arithmetic of a step."""
        for touch, lines in self.touched:
            yield from (f"prfm pldl1keep, [{touch.pointer}, #{64 * line}]" for line in lines)
            yield f"add {touch.pointer}, {touch.pointer}, {touch.stride}"


class Tile:
    """The arithmetic of a tile."""

    def __init__(self, pixels: int, vectors: int, words: int) -> None:
        if not fits(pixels, vectors):
            raise ValueError(f"a tile of {pixels} pixels x {vectors} vectors needs more registers than there are")
        self.pixels, self.vectors = pixels, vectors
        self.accumulators = list(range(pixels * vectors))
        self.weights = list(range(28 - vectors, 28))
        self.temporaries, self.pair = (28, 29), (30, 31)
        #: Registers that hold nothing once the counts are in the accumulators.
        self.free = list(range(pixels * vectors, 32))
        self.pairs = -(-pixels // 2)
        self.words = words
        count = -(-words // MAX_SEGMENT)
        longest = -(-words // count)
        #: Steps of each segment.
        self.lengths = [longest] * (words // longest) + ([words % longest] if words % longest else [])

    def saved(self, first: int = 23) -> tuple[list[str], list[str]]:
        """Prologue and epilogue of a routine that uses the x registers from ``first`` (odd) to x23."""
        repeats = any(repeats > 1 for _, _, repeats in self._groups(()))
        return asm.saved(first, 25 if repeats or first < 23 else first, vectors=True)

    @property
    def registers(self) -> dict[str, str]:
        """What the product keeps where."""
        return {
            _PANEL: "panel of patches",
            _WEIGHTS: "weights",
            asm.span(self.accumulators): f"counts, {self.pixels} pixels x {self.vectors} vectors of 8 channels",
            asm.span(self.weights): "weights of a word",
            asm.span(self.temporaries): "differing bits of a pixel",
            asm.span(self.pair): "a word of two pixels",
        }

    def with_scratch(self, lines: Sequence[str]) -> list[str]:
        """``lines`` with room for the counts at the stack pointer."""
        frame = 16 * len(self.accumulators)
        return [f"sub sp, sp, #{frame}", *lines, f"add sp, sp, #{frame}"]

    def segments(self, scratch: str, touches: Sequence[Touch] = ()) -> Iterator[str]:
        """Leaves the counts in the accumulators; ``scratch`` points to room for them."""
        stride = self.words * 4
        yield f"mov {_PAIRS[0]}, {_PANEL}"
        for i in range(1, self.pairs):
            yield from asm.add(_PAIRS[i], _PAIRS[i - 1], stride)
        yield from (f"ldr q{register}, [{_WEIGHTS}, #{16 * i}]" for i, register in enumerate(self.weights))
        yield f"add {_WEIGHTS}, {_WEIGHTS}, #{16 * self.vectors}"
        yield f"ld2r {{v{self.pair[0]}.8h, v{self.pair[1]}.8h}}, [{_PAIRS[0]}], #4"
        labels = count(1)
        for number, loops, repeats in self._groups(touches):
            again = next(labels) if repeats > 1 else 0
            if again:
                yield from (f"mov {_REPEATS}, #{repeats}", f"{again}:")
            yield from self._step(first=True)
            for loop in loops:
                label = next(labels)
                yield from (*loop.head(), f"mov {_COUNT}, #{loop.steps}", f"{label}:")
                yield from self._step(first=False, beside=list(loop.beside()))
                yield f"b.ne {label}b"
            yield from self._widen(scratch, number)
            if again:
                yield from (f"subs {_REPEATS}, {_REPEATS}, #1", f"b.ne {again}b")

    @property
    def cycles(self) -> int:
        """Cycles of the arithmetic alone."""
        return 3 * self.words * self.pixels * self.vectors

    def _groups(self, touches: Sequence[Touch]) -> list[tuple[int, list[_Loop], int]]:
        """Segments by number with their loops; like ones between the first and the last stand once, with their number."""
        groups: list[tuple[int, list[_Loop], int]] = []
        for number, loops in enumerate(self._loops(touches)):
            first, before, repeats = groups[-1] if groups else (0, None, 0)
            if first > 0 and number < len(self.lengths) - 1 and loops == before:
                groups[-1] = first, loops, repeats + 1
            else:
                groups.append((number, loops, 1))
        return groups

    def _loops(self, touches: Sequence[Touch]) -> list[list[_Loop]]:
        """The loops of each segment behind its first step.

        Line fills are few and slow, so each line of all pixels gets a loop of its own, a fill a step, where steps suffice.
        Without a loop as long as that nothing is fetched ahead: the arithmetic is too short to hide it.
        """
        rests = [length - 1 for length in self.lengths]
        jobs = [(touch, line) for touch in touches for line in range(touch.lines)]
        share = -(-len(jobs) // max(1, sum(rest // self.pixels for rest in rests)))
        loops: list[list[_Loop]] = []
        for rest in rests:
            segment = []
            while rest >= self.pixels and jobs:
                segment.append(_Loop(self.pixels, _by_touch(jobs[:share])))
                jobs, rest = jobs[share:], rest - self.pixels
            loops.append([*segment, *_plain(rest)])
        return loops

    def _step(self, first: bool, beside: Sequence[str] = ()) -> Iterator[str]:
        """One word of every pixel with that of every channel. ``first`` begins a segment: counts replace what was there.

        The weights and the first pair of the next step are loaded on the way, each behind its register's last reader.
        ``beside``: integer instructions to issue beside the arithmetic.
        """
        guests = iter([f"prfm pldl1keep, [{_WEIGHTS}, #{_AHEAD}]", *beside])
        for pair in range(self.pairs):
            for i, weight in enumerate(self.weights):
                rows = range(2 * pair, min(2 * pair + 2, self.pixels))
                accumulators = [self.accumulators[row * self.vectors + i] for row in rows]
                lanes = list(zip(self.temporaries, self.pair, accumulators, strict=False))
                yield from (f"eor v{t}.16b, v{pixel}.16b, v{weight}.16b" for t, pixel, _ in lanes)
                if pair == i == 0 and not first:
                    yield f"subs {_COUNT}, {_COUNT}, #1"
                if i == self.vectors - 1:
                    pointer = _PAIRS[(pair + 1) % self.pairs]
                    yield f"ld2r {{v{self.pair[0]}.8h, v{self.pair[1]}.8h}}, [{pointer}], #4"
                counts = [f"cnt v{acc if first else t}.16b, v{t}.16b" for t, _, acc in lanes]
                if pair == self.pairs - 1:
                    yield from self._load_weight(i)
                    # The high half is an integer load, free beside the count.
                    counts.insert(1, f"ldr {_HIGH[i % len(_HIGH)]}, [{_WEIGHTS}, #{16 * i + 8}]")
                yield from counts
                if not first:
                    for t, _, acc in lanes:
                        yield f"add v{acc}.16b, v{acc}.16b, v{t}.16b"
                        yield from islice(guests, 1)
        yield from guests
        yield f"add {_WEIGHTS}, {_WEIGHTS}, #{16 * self.vectors}"
        yield self._join(self.vectors - 1)

    def _load_weight(self, i: int) -> Iterator[str]:
        """The low half of weight ``i``; beside it the high half of the one before, in one cycle."""
        yield f"ldr d{self.weights[i]}, [{_WEIGHTS}, #{16 * i}]"
        if i:
            yield self._join(i - 1)

    def _join(self, i: int) -> str:
        return f"ins v{self.weights[i]}.d[1], {_HIGH[i % len(_HIGH)]}"

    def _widen(self, scratch: str, segment: int) -> Iterator[str]:
        """Ends a segment: bytes to 16 bits, added to those in ``scratch``; the last segment leaves them in registers.

        Written as a pipeline over the accumulators, so that no operation waits for the one before it.
        """
        size, last = len(self.accumulators), segment == len(self.lengths) - 1
        for i in range(size + 3):
            if segment and i < size:
                yield f"ldr q{self.temporaries[i % 2]}, [{scratch}, #{16 * i}]"
            if i < size:
                acc = self.accumulators[i]
                yield f"uaddlp v{acc}.8h, v{acc}.16b"
            if segment and 0 <= i - 1 < size:
                acc = self.accumulators[i - 1]
                yield f"add v{acc}.8h, v{acc}.8h, v{self.temporaries[(i - 1) % 2]}.8h"
            if not last and 0 <= i - 3 < size:
                yield f"str q{self.accumulators[i - 3]}, [{scratch}, #{16 * (i - 3)}]"


def _plain(steps: int) -> list[_Loop]:
    return [_Loop(steps)] if steps else []


def _by_touch(jobs: Sequence[tuple[Touch, int]]) -> tuple[tuple[Touch, tuple[int, ...]], ...]:
    touches = dict.fromkeys(touch for touch, _ in jobs)
    return tuple((touch, tuple(line for other, line in jobs if other == touch)) for touch in touches)
