"""Products of packed pixels in A32 for the Cortex-A53: 6 pixels x 8 output channels, values of the pixels side by side.

C call: ``(float *out, int64 out_pitch, const float *pixels, const float *weights, int64 steps, int64 panels, int64 next_out)``,
pitches in bytes; of the 64-bit arguments the lower halves count. For each panel ``out[m][n] = sum over k < 4*steps of
pixels[k][m] * weights[k][n]``; then ``out`` goes on by ``next_out`` and weights to what follows; so do the pixels, unless all
panels ``share`` them. 24 bytes behind the last pixels and ``a53.sgemm.AHEAD_BYTES`` behind the weights may be read.

Twelve sums leave four registers: two of weights, and four halves of which three hold a k's pixels. So a k has 7 halves to load
for 12 products, in 16 cycles: a load every 4 cycles, which no ``vmla`` holds up (``a53.asm``), and three products between.

====  ===============================  ==========================================
load  ``vldr`` and, beside it, a join  products, and words that are loaded beside
====  ===============================  ==========================================
0     weights 1, pixels 4 and 5        weights 0 x pixels 0, 1, 2
1     next pixels 0 and 1, weights 1   weights 0 x pixels 3, 4, 5: next weights 0
2     next weights 0                   weights 1 x pixels 0, 1, 2: next pixels 4, 5
3     next pixels 2 and 3, weights 0   weights 1 x pixels 3, 4, 5: next weights 1
====  ===============================  ==========================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53.asm import Arithmetic
from bitkiln.schedules.microkernels.a53.sgemm import STEP
from bitkiln.schedules.microkernels.a53_32 import asm

_OUT, _PITCH, _PIXELS, _WEIGHTS, _LEFT, _PANELS, _NEXT, _STEPS = (f"r{i}" for i in range(8))
_CARRIERS = ("r8 r9", "r10 r11")
_TO, _BEGIN = "r12", "lr"
#: Arguments on the stack, in bytes from its top at the call.
_ARGUMENTS = {_PIXELS: 0, _WEIGHTS: 4, _STEPS: 8, _PANELS: 16, _NEXT: 24}
_FIRST_SUM, _WEIGHT = 4, (2, 3)
#: How far ahead lines are fetched, in bytes.
_WEIGHTS_AHEAD, _PIXELS_AHEAD = 768, 256


@dataclass(frozen=True)
class Panels:
    """The micro-kernel; its panels ``share`` their pixels, or each has its own."""

    share: bool = False
    tile_m: ClassVar[int] = 6
    tile_n: ClassVar[int] = 8

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_panels_{self.tile_m}x{self.tile_n}{'_shared' if self.share else ''}_a53_32"

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)


class _Pointer:
    """A pointer that goes on within an iteration: offsets are those from where it was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.moved = 0

    def __call__(self, offset: int) -> str:
        return f"[{self.name}, #{offset - self.moved}]"

    def move(self, by: int) -> str:
        self.moved += by
        return f"add {self.name}, {self.name}, #{by}"


def _sum(pixel: int, vector: int) -> int:
    return _FIRST_SUM + 2 * pixel + vector


def _words(number: int, address: str) -> list[str]:
    """Loads of the high half that the ``number``-th join takes."""
    return [asm.A32.word(_CARRIERS[number % 2], address, i) for i in range(asm.A32.words)]


def _join(double: int, number: int) -> str:
    return f"vmov d{double}, {_CARRIERS[number % 2].replace(' ', ', ')}"


def _head() -> list[str]:
    """What the first k expects to be there or under way."""
    pixels, weights = _Pointer(_PIXELS), _Pointer(_WEIGHTS)
    low = 2 * _WEIGHT[0]
    return [
        *_words(0, pixels(16)),
        *_words(1, weights(24)),
        f"vldr d{low}, {weights(0)}",
        f"vldr d{low + 1}, {weights(8)}",
        f"vldr d0, {pixels(0)}",
        f"vldr d1, {pixels(8)}",
    ]


def _iteration(begins: bool) -> Iterator[str]:
    """``STEP`` values of k, of which the first begins the sums if so said. The last product has nothing beside it."""
    pixels, weights = _Pointer(_PIXELS), _Pointer(_WEIGHTS)
    for k in range(STEP):
        last = k == STEP - 1
        now, then = ([(3 * k + i) % 4 for i in range(first, first + 3)] for first in (0, 3))
        low = [2 * weight for weight in _WEIGHT]
        row, column = 32 * k, 24 * k
        mnemonic = "vmul" if begins and k == 0 else "vmla"

        def products(
            vector: int, half: int, guests: Sequence[str], now: Sequence[int] = now, mnemonic: str = mnemonic
        ) -> Iterator[str]:
            for pixel, guest in zip_longest(range(3 * half, 3 * half + 3), guests, fillvalue=""):
                factor = f"d{now[int(pixel) // 2]}[{int(pixel) % 2}]"
                yield Arithmetic(f"{mnemonic}.f32 q{_sum(int(pixel), vector)}, q{_WEIGHT[vector]}, {factor}")
                yield from (text for text in [guest] if text)

        fetched = f"pld {weights(_WEIGHTS_AHEAD + row)}" if k % 2 else f"pld {pixels(_PIXELS_AHEAD + column)}"
        yield from (f"vldr d{low[1]}, {weights(row + 16)}", _join(now[2], 3 * k))
        yield from products(0, 0, [f"subs {_LEFT}, {_LEFT}, #1" if last else "", fetched])
        yield from (f"vldr d{then[0]}, {pixels(column + 24)}", _join(low[1] + 1, 3 * k + 1))
        moved = pixels.move(24 * STEP) if last else ""
        yield from products(0, 1, [moved, *_words(3 * k + 2, weights(row + 40))])
        yield f"vldr d{low[0]}, {weights(row + 32)}"
        moved = weights.move(32 * STEP) if last else ""
        yield from products(1, 0, [moved, *_words(3 * k + 3, pixels(column + 40))])
        yield from (f"vldr d{then[1]}, {pixels(column + 32)}", _join(low[0] + 1, 3 * k + 2))
        ahead = _words(3 * k + 4, weights(row + 56))
        yield from products(1, 1, ahead if last else ["", *ahead])


@cache
def _assembly(kernel: Panels) -> str:
    rows = [asm.doubles([_sum(pixel, 0), _sum(pixel, 1)]) for pixel in range(kernel.tile_m)]
    lines = [
        *asm.ENTER,
        f"mov {_PITCH}, r2",
        *(f"ldr {register}, [sp, #{asm.FRAME + at}]" for register, at in _ARGUMENTS.items()),
        *([f"mov {_BEGIN}, {_PIXELS}"] if kernel.share else _head()),
        "1:",
        *([f"mov {_PIXELS}, {_BEGIN}", *_head()] if kernel.share else []),
        f"mov {_LEFT}, {_STEPS}",
        *rules.named("first step", list(_iteration(True))),
        "ble 3f",
        "2:",
        *_iteration(False),
        "bgt 2b",
        "3:",
        f"mov {_TO}, {_OUT}",
        *rules.named("store", [f"vst1.32 {{{row}}}, [{_TO}], {_PITCH}" for row in rows]),
        f"subs {_PANELS}, {_PANELS}, #1",
        f"add {_OUT}, {_OUT}, {_NEXT}",
        "bgt 1b",
        *asm.LEAVE,
    ]
    registers = {
        _OUT: "result",
        _PITCH: "bytes from pixel to pixel of the result",
        _PIXELS: "pixels",
        _WEIGHTS: "weights",
        _LEFT: "steps left of a sum",
        f"{_PANELS}, {_NEXT}, {_STEPS}": "panels left, bytes between their results, their steps",
        "r8-r11": "upper halves of vectors on their way",
        "d0-d3": "pixels, three halves a k in turn",
        rules.span(_WEIGHT, "q"): "weights",
        "q4-q15": "sums, 6 pixels x 2 vectors of 4 channels",
    }
    return asm.routine(kernel.symbol, lines, registers)
