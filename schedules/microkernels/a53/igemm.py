"""The product of whole numbers of 8 bits for the Cortex-A53, whose sums stay in 16 bits for a segment of products.

``mla`` multiplies 8 numbers of 16 bits in a cycle, twice what 32 bits allow, as long as no sum leaves 16 bits. So sums
of ``segment`` products are kept in 16 bits, and then added to those of 32 bits by ``saddw``. ``schedules.qconv2d.segments``
plans which steps make a segment; a table says where in the panel of pixels each finds its numbers.

A step multiplies a number of each pixel by those of 8 output channels: ``pixels`` products and two vectors to load, each as
``ldr d``, ``ldr x`` beside a product and ``ins`` beside the next vector's ``ldr d``. A vector of pixels is loaded two
steps before its products, one of weights a step before. The sums of the segment before are widened between the products of
the first step. So ``segment`` steps take ``segment * (pixels + 2) + 2 * pixels`` cycles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES, Constants, rescaled

#: Output channels of a panel.
CHANNELS = 8
#: Steps of weights, and places of pixels, that are loaded beyond the last one.
AHEAD = 4
#: Bytes by which lines of weights and of pixels are fetched ahead; pixels are not read in order, but within a window.
_FETCHED, _FETCHED_PIXELS = 384, 1024
_LINE, _STEP = 64, 16
_SHORT, _LONG = 8, 16
_CONSTANTS = Constants(factors=(0, 1), zero=2, low=3, high=4)


@dataclass(frozen=True)
class WholeProduct:
    """``void symbol(out, int64 pitch, pixels, weights, table, places, const int32 *counts, int64 panels, int64 steps)``.

    For each of ``panels`` of 8 output channels: ``pixels``: int16 [..][8], as ``PackWhole`` lays it out. ``weights``: int16
    [panels][steps][8]. ``places``: int32 [panels][steps], the byte offsets in ``pixels`` of what they are multiplied by.
    ``counts``: int32 [panels], how many segments are multiplied: a multiple of ``together``, and at least ``least``.
    Result m of panel p, int8 [8], is written at ``out`` + m * ``pitch`` + 8 p: clip(round(float(sum + bias) * factor) + zero,
    low, high), with numbers from ``table`` [panels] (``rescale``); without ``limits`` clip is left out, as int8 does it. Of
    weights and places ``AHEAD`` more are read.
    """

    pixels: int
    segment: int
    limits: bool = True

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_igemm_{self.pixels}x{CHANNELS}s{self.segment}{'_clip' if self.limits else ''}_a53"

    @property
    def together(self) -> int:
        """Segments of an iteration of the loop: one, or two where one is too short to load ahead in."""
        return 2 if self.segment < 3 else 1

    @property
    def least(self) -> int:
        """The least number of segments: two iterations, of which the first is written out."""
        return 2 * self.together

    @property
    def steps(self) -> int:
        """Steps of an iteration of the loop."""
        return self.segment * self.together

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        registers = {
            "x0": "results",
            "x1": "bytes from pixel to pixel of the results",
            "x2": "pixels",
            "x3, x12": "weights, those of the next panel",
            "x4": "table: biases, factors, limits",
            "x5, x13": "places of pixels, those of the next panel",
            "x6": "segments left",
            "x7": "the next place",
            "x8": "upper half of the first pixels",
            "x9, x10": "upper halves of vectors on their way",
            "x11": "pixels to fetch",
            "x14, x15": "counts of segments, panels left",
            "x16, x17": "bytes from panel to panel of weights and of places",
            "v0-v7": "pixels and weights of a few steps",
            asm.span(range(_SHORT, _SHORT + self.pixels)): "sums of the segment, 16 bits",
            asm.span(range(_LONG, _LONG + 2 * self.pixels)): "sums, 32 bits",
        }
        setup = [
            *(f"ldr x17, [sp, #{asm.frame_bytes(0, 0, vectors=True)}]", "mov x14, x6", "mov x15, x7"),
            *("lsl x16, x17, #4", "lsl x17, x17, #2", "mov x12, x3", "mov x13, x5"),
        ]
        body = ["0:", *self._begin(), *self._first(), *self._loop(), *self._widened(), *self._end(), *self._next()]
        return asm.routine(self.symbol, [*enter, *setup, *body, *leave, "ret"], registers)

    def _slots(self) -> tuple[list[int], list[int]]:
        """Registers of the pixels and of the weights of each step, such that what is loaded ahead overwrites nothing."""
        steps = self.steps
        count = 3 if steps % 3 == 0 else 5 if steps == 5 else 4
        pixels = [step % count for step in range(steps)]
        spare = range(count, count + 2 + steps % 2)
        weights = [spare[step % 2] for step in range(steps)]
        if steps % 2:
            weights[-1] = spare[2]
        return pixels, weights

    @property
    def _bias(self) -> int:
        """The first of the registers of the biases: the last pixel's sums, which get theirs last."""
        return _LONG + 2 * (self.pixels - 1)

    def _begin(self) -> Iterator[str]:
        pixels, weights = self._slots()
        yield from ("mov x3, x12", "mov x5, x13", "ldr w6, [x14], #4", "ldp w9, w10, [x5]", "ldr w7, [x5, #8]")
        yield from ("add x12, x12, x16", "add x13, x13, x17", "add x8, x2, #8", "mov x11, x2")
        yield from (f"ldr q{weights[0]}, [x3]", f"ldp q{self._bias}, q{self._bias + 1}, [x4]")
        yield from (f"ldr q{pixels[0]}, [x2, x9]", f"ldr d{pixels[1]}, [x2, x10]")
        yield from ("ldr x9, [x8, x10]", f"ldr x10, [x3, #{_STEP + 8}]")

    def _first(self) -> Iterator[str]:
        """The first iteration, and of the next one the step that adds the first segment's sums to the biases."""
        for step in range(self.steps):
            yield from self._step(step, None if step < self.segment else self._bias)
        if self.together == 1:
            yield from (*self._step(0, self._bias), "b 2f")

    def _loop(self) -> Iterator[str]:
        """The segments. From one to the next x9 and x10 hold upper halves of pixels and of weights, x7 the place after."""
        yield from ("1:", *self._step(0), "2:")
        for step in range(1, self.steps):
            yield from self._step(step)
        yield "b.ne 1b"

    def _step(self, step: int, sums: int | None = 0) -> Iterator[str]:
        """One step; one that begins a segment adds the sums of the one before to ``sums``, as ``_products`` says."""
        steps = self.steps
        pixels, weights = self._slots()
        next_w, next_x, later = weights[(step + 1) % steps], pixels[(step + 1) % steps], pixels[(step + 2) % steps]
        guests = self._guests(step)
        products = list(self._products(step, sums))
        half = len(products) // 2
        yield from (f"ldr d{next_w}, [x3, #{_STEP * (step + 1)}]", f"ins v{next_x}.d[1], x9")
        yield from asm.beside(products[:half], guests[0])
        yield from (f"ldr d{later}, [x2, x7]", f"ins v{next_w}.d[1], x10")
        ends = [*guests[1], *(self._moves() if step == steps - 1 else [])]
        yield from asm.beside(products[half:], ends)

    def _guests(self, step: int) -> tuple[list[str], list[str]]:
        """What issues beside the products of a step before its second vector load, and behind it."""
        first = ["ldr x9, [x8, x7]"]
        second = [f"ldr x10, [x3, #{_STEP * (step + 2) + 8}]", f"ldr w7, [x5, #{4 * (step + 3)}]"]
        if step % (_LINE // _STEP) == 0:
            first.append(f"prfm pldl1keep, [x3, #{_FETCHED + _STEP * step}]")
            first.append(f"prfm pldl1keep, [x11, #{_FETCHED_PIXELS + _STEP * step}]")
        return first, second

    def _moves(self) -> list[str]:
        size = _STEP * self.steps
        moves = [f"add {pointer}, {pointer}, #{size}" for pointer in ("x3", "x11")]
        return [*moves, f"add x5, x5, #{4 * self.steps}", f"subs x6, x6, #{self.together}"]

    def _products(self, step: int, sums: int | None) -> Iterator[str]:
        """The products of a step. Those that begin a segment follow the widening of the one before.

        ``sums``: None where there was none before, the register of biases where those are its first sums, else 0.
        """
        pixels, weights = self._slots()
        begins = step % self.segment == 0
        for pixel in range(self.pixels):
            if begins and sums is not None:
                yield from self._widen(pixel, sums)
            operation = "mul" if begins else "mla"
            yield f"{operation} v{_SHORT + pixel}.8h, v{weights[step]}.8h, v{pixels[step]}.h[{pixel}]"

    def _widen(self, pixel: int, sums: int = 0) -> Iterator[str]:
        long, short = _LONG + 2 * pixel, _SHORT + pixel
        before = sums or long
        yield f"saddw v{long}.4s, v{before}.4s, v{short}.4h"
        yield f"saddw2 v{long + 1}.4s, v{before + 1}.4s, v{short}.8h"

    def _widened(self) -> Iterator[str]:
        """The last segment's sums."""
        for pixel in range(self.pixels):
            yield from self._widen(pixel)

    def _end(self) -> Iterator[str]:
        """Results, in the registers of the sums of 16 bits."""
        longs = [(_LONG + 2 * pixel, _LONG + 2 * pixel + 1) for pixel in range(self.pixels)]
        results = range(_SHORT, _SHORT + self.pixels)
        yield from _CONSTANTS.loads("x4")
        yield from rescaled(longs, results, _CONSTANTS, self.limits)
        yield "mov x9, x0"
        for result in results:
            yield f"str d{result}, [x9]"
            if result != results[-1]:
                yield "add x9, x9, x1"

    def _next(self) -> Iterator[str]:
        """On to the next panel."""
        yield from (f"add x0, x0, #{CHANNELS}", f"add x4, x4, #{TABLE_BYTES}", "subs x15, x15, #1", "b.ne 0b")
