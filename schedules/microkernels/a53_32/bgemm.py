"""The binary product in A32 for the Cortex-A53: counts of differing bits, or the bits of a comparison with bounds.

The arithmetic is that of ``a53.bgemm_tile``: exclusive or, bits counted in bytes, added up; three operations of 128 bits for
128 products. With 16 vector registers a tile has up to 4 pixels x 2 vectors of 8 channels: 8 accumulators, 2 weights, 4 pixels,
2 temporaries. Around the arithmetic stand loads that no 128-bit operation waits for:

- a pixel's word is an ``ldrh`` beside an operation, and a ``vdup``, of which two issue in a cycle;
- a vector of weights is a ``vldr d``, two ``ldr`` beside operations, and ``vmov d, r, r`` beside a ``vldr``.

A step of the whole tile takes 28 cycles for 1024 products. That a ``vdup`` or ``vmov d, r, r`` takes one half of the datapath
in this state too, nobody has measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53.bgemm_tile import MAX_SEGMENT
from bitkiln.schedules.microkernels.a53_32 import asm

#: How far ahead lines of weights are fetched, in bytes.
_AHEAD = 256
_FIRST_WEIGHT, _FIRST_PIXEL, _TEMPORARIES = 8, 10, (14, 15)
_PANELS, _WEIGHTS, _OUT, _STRIDE, _COUNT = ("r0", "r12"), "r1", "r2", "r3", "lr"
_WORDS = ("r4", "r5", "r6", "r7")
_HIGH = (("r8", "r9"), ("r10", "r11"))


class Tile:
    """The arithmetic of a tile of ``pixels`` x ``vectors`` of 8 channels."""

    def __init__(self, pixels: int, vectors: int, words: int) -> None:
        if not (1 <= pixels <= 4 and 1 <= vectors <= 2):
            raise ValueError(f"a tile of {pixels} pixels x {vectors} vectors needs more registers than there are")
        self.pixels, self.vectors, self.words = pixels, vectors, words
        self.accumulators = list(range(pixels * vectors))
        parts = -(-words // MAX_SEGMENT)
        longest = -(-words // parts)
        #: Steps of each segment.
        self.lengths = [longest] * (words // longest) + ([words % longest] if words % longest else [])
        #: Bytes of the stack that the counts of earlier segments take.
        self.room = 16 * len(self.accumulators) if len(self.lengths) > 1 else 0

    @property
    def registers(self) -> dict[str, str]:
        """What the product keeps where."""
        return {
            ", ".join(_PANELS): "panel of patches, of the first pair of pixels and of the second",
            _WEIGHTS: "weights",
            ", ".join(_WORDS): "words of pixels on their way",
            "r8-r11": "upper halves of weights on their way",
            _COUNT: "steps left",
            rules.span(self.accumulators, "q"): f"counts, {self.pixels} pixels x {self.vectors} vectors of 8 channels",
            "q8, q9": "weights of a word",
            "q10-q13": "a word of each pixel",
            "q14, q15": "differing bits of a pixel",
        }

    def counts(self) -> Iterator[str]:
        """Leaves the counts in the accumulators; the stack has ``room``."""
        if self.pixels > 2:
            yield from asm.add(_PANELS[1], _PANELS[0], 4 * self.words)
        yield from self._pixel_loads()
        for pixel in range(self.pixels):
            yield f"vdup.16 q{_FIRST_PIXEL + pixel}, {_WORDS[pixel]}"
        registers = ", ".join(f"d{2 * _FIRST_WEIGHT + i}" for i in range(2 * self.vectors))
        yield from (f"vld1.16 {{{registers}}}, [{_WEIGHTS}]!", *self._pixel_moves())
        labels = count(1)
        for number, length in enumerate(self.lengths):
            yield from self._step(first=True)
            if length > 1:
                label = next(labels)
                yield from (f"mov {_COUNT}, #{length - 1}", f"{label}:")
                yield from self._step(first=False)
                yield f"bne {label}b"
            yield from self._widen(number)

    def _pixel_loads(self) -> list[str]:
        return [f"ldrh {_WORDS[p]}, [{_PANELS[p // 2]}, #{2 * (p % 2)}]" for p in range(self.pixels)]

    def _pixel_moves(self) -> list[str]:
        return [f"add {pointer}, {pointer}, #4" for pointer in _PANELS[: -(-self.pixels // 2)]]

    def _step(self, first: bool) -> Iterator[str]:
        """One word of every pixel with that of every channel. ``first`` begins a segment: counts replace what was there.

        What the next step needs is loaded on the way, each behind its register's last reader.
        """
        guests = [*self._pixel_loads(), *self._pixel_moves()]
        for vector in range(self.vectors):
            words = zip(_HIGH[vector], (8, 12), strict=True)
            guests += [f"ldr {register}, [{_WEIGHTS}, #{16 * vector + at}]" for register, at in words]
        guests += [f"pld [{_WEIGHTS}, #{_AHEAD}]"] + ([] if first else [f"subs {_COUNT}, {_COUNT}, #1"])
        waiting = iter(guests)
        pairs = [range(at, min(at + 2, self.pixels)) for at in range(0, self.pixels, 2)]
        groups = [(pair, vector) for pair in pairs for vector in range(self.vectors)]
        for pair, vector in groups:
            both = list(zip(pair, _TEMPORARIES, strict=False))
            for pixel, temporary in both:
                yield f"veor q{temporary}, q{_FIRST_PIXEL + pixel}, q{_FIRST_WEIGHT + vector}"
                yield from (text for text in [next(waiting, "")] if text)
            if vector == self.vectors - 1:
                if pair is pairs[-1]:
                    yield from waiting  # What follows takes what these have loaded.
                yield from (f"vdup.16 q{_FIRST_PIXEL + pixel}, {_WORDS[pixel]}" for pixel in pair)
                if pair is pairs[-1]:
                    yield from self._load_weights()
            accumulators = [pixel * self.vectors + vector for pixel in pair]
            for (_, temporary), accumulator in zip(both, accumulators, strict=True):
                yield f"vcnt.8 q{accumulator if first else temporary}, q{temporary}"
                yield from (text for text in [next(waiting, "")] if text)
            for (_, temporary), accumulator in () if first else zip(both, accumulators, strict=True):
                yield f"vadd.i8 q{accumulator}, q{accumulator}, q{temporary}"
                yield from (text for text in [next(waiting, "")] if text)

    def _load_weights(self) -> Iterator[str]:
        """Those of the next step: each lower half beside the other vector's upper half."""
        for vector in range(self.vectors):
            other = self.vectors - 1 - vector
            yield f"vldr d{2 * (_FIRST_WEIGHT + vector)}, [{_WEIGHTS}, #{16 * vector}]"
            yield f"vmov d{2 * (_FIRST_WEIGHT + other) + 1}, {', '.join(_HIGH[other])}"
        yield f"add {_WEIGHTS}, {_WEIGHTS}, #{16 * self.vectors}"

    def _widen(self, number: int) -> Iterator[str]:
        """Bytes to 16 bits, and added to the counts of the segments before."""
        yield from (f"vpaddl.u8 q{a}, q{a}" for a in self.accumulators)
        if not self.room:
            return
        yield f"mov {_COUNT}, sp"
        low, high = 2 * _TEMPORARIES[0], 2 * _TEMPORARIES[0] + 1
        for accumulator in self.accumulators:
            if number:
                yield f"vld1.16 {{d{low}, d{high}}}, [{_COUNT}]"
                yield f"vadd.i16 q{accumulator}, q{accumulator}, q{_TEMPORARIES[0]}"
            yield f"vst1.16 {{d{2 * accumulator}, d{2 * accumulator + 1}}}, [{_COUNT}]!"

    def framed(self, lines: Sequence[str]) -> list[str]:
        """``lines`` with the registers that have to be kept on the stack, and the room below them."""
        enter = [f"sub sp, sp, #{self.room}"] if self.room else []
        leave = [f"add sp, sp, #{self.room}"] if self.room else []
        return [*asm.ENTER, *enter, *lines, *leave, *asm.LEAVE]


@dataclass(frozen=True)
class Counts:
    """As ``a53.bgemm.Counts``."""

    pixels: int
    vectors: int
    words: int

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_a53_32"

    def assembly(self) -> str:
        """The routine."""
        tile = Tile(self.pixels, self.vectors, self.words)
        store = [f"vst1.16 {{d{2 * a}, d{2 * a + 1}}}, [{_OUT}]!" for a in tile.accumulators]
        lines = tile.framed([*tile.counts(), *rules.named("store", store)])
        return asm.routine(self.symbol, lines, {**tile.registers, _OUT: "counts"})


@dataclass(frozen=True)
class Bits:
    """As ``a53.bgemm.Bits``, of one threshold.

    Where the pixels have rows of bounds of their own, be they "some" or "each", every pixel's is looked up.
    """

    pixels: int
    vectors: int
    words: int
    rows: str = "one"
    thresholds: int = 1

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_bits_{self.rows}_a53_32"

    def assembly(self) -> str:
        """The routine."""
        tile = Tile(self.pixels, self.vectors, self.words)
        lines = [
            *tile.counts(),
            *rules.named("compare", [*self._compare(tile)]),
            *rules.named("pack bits", [*self._pack(tile)]),
        ]
        registers = {**tile.registers, _OUT: "result", _STRIDE: "bytes from pixel to pixel of the result"}
        return asm.routine(self.symbol, tile.framed(lines), registers)

    def _compare(self, tile: Tile) -> Iterator[str]:
        """Masks in the accumulators: all ones where the count is below the bound."""
        stack = asm.FRAME + tile.room
        yield f"ldr r4, [sp, #{stack}]"
        registers = ", ".join(f"d{2 * _FIRST_WEIGHT + i}" for i in range(2 * self.vectors))
        if self.rows == "one":
            yield f"vld1.16 {{{registers}}}, [r4]"
        else:
            yield from (f"ldr r5, [sp, #{stack + 4}]", f"lsl r7, {_STRIDE}, #4")
        for pixel in range(self.pixels):
            if self.rows != "one":
                yield from (f"ldr r6, [r5, #{4 * pixel}]", "mla r6, r6, r7, r4", f"vld1.16 {{{registers}}}, [r6]")
            for vector in range(self.vectors):
                accumulator = pixel * self.vectors + vector
                yield f"vcgt.u16 q{accumulator}, q{_FIRST_WEIGHT + vector}, q{accumulator}"

    def _pack(self, tile: Tile) -> Iterator[str]:
        """Lanes' masks to bits, bytes in order of pixels, and their stores."""
        powers = 2 * _TEMPORARIES[0]
        yield from ("movw r4, #0x0201", "movt r4, #0x0804", "movw r5, #0x2010", "movt r5, #0x8040")
        yield f"vmov d{powers}, r4, r5"
        masks = [2 * accumulator for accumulator in tile.accumulators]
        yield from (f"vmovn.i16 d{mask}, q{mask // 2}" for mask in masks)
        yield from (f"vand d{mask}, d{mask}, d{powers}" for mask in masks)
        for _ in range(3):
            pairs = [(masks[i], masks[min(i + 1, len(masks) - 1)]) for i in range(0, len(masks), 2)]
            yield from (f"vpadd.i8 d{a}, d{a}, d{b}" for a, b in pairs)
            masks = [a for a, _ in pairs]
        size = 8 * self.vectors
        yield from (f"vst1.{size} {{d{masks[0]}[{pixel}]}}, [{_OUT}], {_STRIDE}" for pixel in range(self.pixels))
