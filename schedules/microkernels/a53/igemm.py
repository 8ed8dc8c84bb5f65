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
from bitkiln.schedules.microkernels.a53.rescale import Constants, rescaled

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
    """``void symbol(out, int64 pitch, panel, weights, table, places, int64 segments)``.

    ``panel``: int16 [steps][8], as ``PackWhole`` lays it out. ``weights``: int16 [segments * segment][8]. ``places``: int32
    [segments * segment], the byte offsets in ``panel`` of what they are multiplied by. Result m, int8 [8], is written at
    ``out`` + m * ``pitch``: clip(round(float(sum + bias) * factor) + zero, low, high), with numbers from ``table``
    (``rescale``). ``segments`` is a multiple of ``together``, and not 0. Of weights and places ``AHEAD`` more are read.
    """

    pixels: int
    segment: int

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_igemm_{self.pixels}x{CHANNELS}s{self.segment}_a53"

    @property
    def together(self) -> int:
        """Segments of an iteration of the loop: one, or two where one is too short to load ahead in."""
        return 2 if self.segment < 3 else 1

    @property
    def steps(self) -> int:
        """Steps of an iteration of the loop."""
        return self.segment * self.together

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        pixels = range(_SHORT, _SHORT + self.pixels)
        registers = {
            "x0": "results",
            "x1": "bytes from pixel to pixel of the results",
            "x2": "panel of pixels",
            "x3": "weights",
            "x4": "table: biases, factors, limits",
            "x5": "places of pixels",
            "x6": "segments left",
            "x7": "the next place",
            "x8": "upper half of the first pixels",
            "x9, x10": "upper halves of vectors on their way",
            "x11": "pixels to fetch",
            "v0-v7": "pixels and weights of a few steps",
            asm.span(pixels): "sums of the segment, 16 bits",
            asm.span(range(_LONG, _LONG + 2 * self.pixels)): "sums, 32 bits",
        }
        lines = [*enter, *self._begin(), *self._loop(), *self._widened(), *self._end(), *leave, "ret"]
        return asm.routine(self.symbol, lines, registers)

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

    def _begin(self) -> Iterator[str]:
        pixels, weights = self._slots()
        yield from ("ldp w9, w10, [x5]", "ldr w7, [x5, #8]", "add x8, x2, #8", "mov x11, x2")
        yield from (f"ldp q{_LONG}, q{_LONG + 1}, [x4]", f"ldr q{pixels[0]}, [x2, x9]", f"ldr q{weights[0]}, [x3]")
        yield from (f"ldr d{pixels[1]}, [x2, x10]", "ldr x9, [x8, x10]", f"ldr x10, [x3, #{_STEP + 8}]")
        yield from (f"movi v{_SHORT + i}.2d, #0" for i in range(self.pixels))
        for i in range(2, 2 * self.pixels, 2):
            yield from (f"mov v{_LONG + i + half}.16b, v{_LONG + half}.16b" for half in (0, 1))

    def _loop(self) -> Iterator[str]:
        """The segments. From one to the next x9 and x10 hold upper halves of pixels and of weights, x7 the place after."""
        yield "1:"
        for step in range(self.steps):
            yield from self._step(step)
        yield "b.ne 1b"

    def _step(self, step: int) -> Iterator[str]:
        steps, last = self.steps, step == self.steps - 1
        pixels, weights = self._slots()
        x, w = pixels[step], weights[step]
        next_w, next_x, later = weights[(step + 1) % steps], pixels[(step + 1) % steps], pixels[(step + 2) % steps]
        guests = self._guests(step)
        products = list(self._products(step, x, w))
        half = len(products) // 2
        yield from (f"ldr d{next_w}, [x3, #{_STEP * (step + 1)}]", f"ins v{next_x}.d[1], x9")
        yield from asm.beside(products[:half], guests[0])
        yield from (f"ldr d{later}, [x2, x7]", f"ins v{next_w}.d[1], x10")
        ends = [*guests[1], *(self._moves() if last else [])]
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

    def _products(self, step: int, x: int, w: int) -> Iterator[str]:
        """The products of a step. Those that begin a segment follow the widening of the one before."""
        begins = step % self.segment == 0
        for pixel in range(self.pixels):
            short = _SHORT + pixel
            if begins:
                yield from self._widen(pixel)
            yield f"{'mul' if begins else 'mla'} v{short}.8h, v{w}.8h, v{x}.h[{pixel}]"

    def _widen(self, pixel: int) -> Iterator[str]:
        long, short = _LONG + 2 * pixel, _SHORT + pixel
        yield f"saddw v{long}.4s, v{long}.4s, v{short}.4h"
        yield f"saddw2 v{long + 1}.4s, v{long + 1}.4s, v{short}.8h"

    def _widened(self) -> Iterator[str]:
        """The last segment's sums."""
        for pixel in range(self.pixels):
            yield from self._widen(pixel)

    def _end(self) -> Iterator[str]:
        """Results, in the registers of the sums of 16 bits."""
        longs = [(_LONG + 2 * pixel, _LONG + 2 * pixel + 1) for pixel in range(self.pixels)]
        results = range(_SHORT, _SHORT + self.pixels)
        yield from _CONSTANTS.loads("x4")
        yield from rescaled(longs, results, _CONSTANTS)
        for result in results:
            yield f"str d{result}, [x0]"
            if result != results[-1]:
                yield "add x0, x0, x1"
