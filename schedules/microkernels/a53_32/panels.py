"""Products of packed pixels in A32 for the Cortex-A53: 6 pixels x 8 output channels, values of the pixels side by side.

C call: ``(float *out, int64 out_pitch, const float *pixels, const float *weights, int64 steps, int64 panels, int64 next_out,
const float *bias, const float *fetched, float *claimed)``, pitches in bytes; of the 64-bit arguments the lower halves count.
For each panel ``out[m][n] = sum over k < 4*steps of pixels[k][m] * weights[k][n]``; then ``out`` goes on by ``next_out`` and
weights to what follows; so do the pixels, unless all panels ``share`` them. 24 bytes behind the last pixels and
``a53.sgemm.AHEAD_BYTES`` behind the weights may be read.

Where panels share pixels a ``Finish`` is applied to the sums; its bias, or the sums that it goes on with, are added behind
them. Lines from ``fetched`` on are fetched, ``fetch`` bytes a step; as many bytes as a panel's results have are written to
``claimed``, which goes on from panel to panel. Where nothing is added, fetched or claimed, these arguments are not used.

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
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53 import stream
from bitkiln.schedules.microkernels.a53.asm import Arithmetic
from bitkiln.schedules.microkernels.a53.sgemm import STEP, Finish
from bitkiln.schedules.microkernels.a53_32 import asm
from bitkiln.schedules.microkernels.a53_32.steps import A32 as STEPS

_OUT, _PITCH, _PIXELS, _WEIGHTS, _LEFT, _PANELS, _NEXT, _STEPS = (f"r{i}" for i in range(8))
_CARRIERS = ("r8 r9", "r10 r11")
_FETCHED, _CLAIMED = "r12", "lr"
#: Free between the sums of panels that share their pixels.
_SCRATCH = "r8"
#: Arguments on the stack, in bytes from its top at the call.
_ARGUMENTS = {_PIXELS: 0, _WEIGHTS: 4, _STEPS: 8, _PANELS: 16, _NEXT: 24}
_BIAS, _FETCHED_ARGUMENT, _CLAIMED_ARGUMENT = 32, 36, 40
_FIRST_SUM, _WEIGHT = 4, (2, 3)
_NO_FINISH = Finish()
#: How far ahead lines are fetched, in bytes.
_WEIGHTS_AHEAD, _PIXELS_AHEAD = 768, 256


@dataclass(frozen=True)
class Panels:
    """The micro-kernel; its panels ``share`` their pixels, or each has its own. ``fetch``: bytes that a step fetches."""

    share: bool = False
    finish: Finish = _NO_FINISH
    fetch: int = 0
    tile_m: ClassVar[int] = 6
    tile_n: ClassVar[int] = 8
    #: Registers that the sums leave to a finish, which needs panels that share their pixels.
    free: ClassVar[int] = _FIRST_SUM

    def __post_init__(self) -> None:
        if not self.share and (self.finish != _NO_FINISH or self.fetch):
            raise ValueError("panels with pixels of their own have no finish and fetch nothing else")

    @property
    def symbol(self) -> str:
        """Its name."""
        fetch = f"_fetch{self.fetch}" if self.fetch else ""
        return (
            f"bk_panels_{self.tile_m}x{self.tile_n}{'_shared' if self.share else ''}{self.finish.words}{fetch}_a53_32"
        )

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


def _iteration(begins: bool, fetch: int) -> Iterator[str]:
    """``STEP`` values of k, of which the first begins the sums if so said. The last product has nothing beside it.

    Beside products lines of weights are fetched, and ``fetch`` bytes of something else, or, if 0, lines of pixels.
    """
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

        other = f"[{_FETCHED}, #{fetch // 2 * (k // 2)}]" if fetch else pixels(_PIXELS_AHEAD + column)
        fetched = f"pld {weights(_WEIGHTS_AHEAD + row)}" if k % 2 else f"pld {other}"
        gone_on = f"add {_FETCHED}, {_FETCHED}, #{fetch}" if last and fetch else ""
        yield from (f"vldr d{low[1]}, {weights(row + 16)}", _join(now[2], 3 * k))
        yield from products(0, 0, [f"subs {_LEFT}, {_LEFT}, #1" if last else "", fetched, gone_on])
        yield from (f"vldr d{then[0]}, {pixels(column + 24)}", _join(low[1] + 1, 3 * k + 1))
        moved = pixels.move(24 * STEP) if last else ""
        yield from products(0, 1, [moved, *_words(3 * k + 2, weights(row + 40))])
        yield f"vldr d{low[0]}, {weights(row + 32)}"
        moved = weights.move(32 * STEP) if last else ""
        yield from products(1, 0, [moved, *_words(3 * k + 3, pixels(column + 40))])
        yield from (f"vldr d{then[1]}, {pixels(column + 32)}", _join(low[0] + 1, 3 * k + 2))
        ahead = _words(3 * k + 4, weights(row + 56))
        yield from products(1, 1, ahead if last else ["", *ahead])


def _claims(kernel: Panels, first: Sequence[str]) -> tuple[list[str], list[str]]:
    """Stores that claim as many bytes as a panel's results have: those beside the ``first`` step's products, and the others."""
    if not kernel.finish.claims:
        return [], []
    size = kernel.tile_m * kernel.tile_n * 4
    stores = [f"str {_OUT}, [{_CLAIMED}, #{at}]" for at in range(0, size, 4)]
    room = len(stream.alone(first))
    return stores[:room], [*stores[room:], f"add {_CLAIMED}, {_CLAIMED}, #{size}"]


def _finish(kernel: Panels, guests: Sequence[str]) -> list[str]:
    """The finish of a panel, ``guests`` beside it; registers of pixels, weights and what is on its way are free."""
    finish = kernel.finish
    sums = [_sum(pixel, vector) for pixel in range(kernel.tile_m) for vector in range(2)]
    lines: list[str] = []
    if finish.bias:
        lines = [
            f"ldr {_SCRATCH}, [sp, #{asm.FRAME + _BIAS}]",
            f"vld1.32 {{{asm.doubles((0, 1))}}}, [{_SCRATCH}]!",
            f"str {_SCRATCH}, [sp, #{asm.FRAME + _BIAS}]",
        ]
    if finish.goes_on:
        lines = [f"ldr {_SCRATCH}, [sp, #{asm.FRAME + _BIAS}]"]
        for pair in range(0, len(sums), 4):
            lines += [f"vld1.32 {{{asm.doubles((at, at + 1))}}}, [{_SCRATCH}]!" for at in (0, 2)]
            lines += [f"vadd.f32 q{total}, q{total}, q{i}" for i, total in enumerate(sums[pair : pair + 4])]
        lines.append(f"str {_SCRATCH}, [sp, #{asm.FRAME + _BIAS}]")
    arithmetic = [f"vadd.f32 q{total}, q{total}, q{total % 2}" for total in sums] if finish.bias else []
    if finish.activation:
        constants = (*finish.values, *steps_a53.assembly(finish.activation).constants)
        # Behind the bias, so that its registers are free once it is added.
        rows = range(kernel.free - len(constants), kernel.free)
        for register, value in zip(rows, constants, strict=True):
            lines += [*asm.constant(_SCRATCH, asm.pattern(value)), f"vdup.32 q{register}, {_SCRATCH}"]
        values = [(total, rows) for total in sums]
        arithmetic += steps_a53.lines(finish.activation, values, range(rows.start), STEPS)
    return [*lines, *rules.beside(arithmetic, guests)]


@cache
def _assembly(kernel: Panels) -> str:
    rows = [asm.doubles([_sum(pixel, 0), _sum(pixel, 1)]) for pixel in range(kernel.tile_m)]
    first = list(_iteration(True, kernel.fetch))
    claims, more = _claims(kernel, first)
    begin = f"ldr {_PIXELS}, [sp, #{asm.FRAME + _ARGUMENTS[_PIXELS]}]"
    lines = [
        *asm.ENTER,
        f"mov {_PITCH}, r2",
        *(f"ldr {register}, [sp, #{asm.FRAME + at}]" for register, at in _ARGUMENTS.items()),
        *(f"sub {_NEXT}, {_NEXT}, {_PITCH}" for _ in range(kernel.tile_m)),
        *([f"ldr {_FETCHED}, [sp, #{asm.FRAME + _FETCHED_ARGUMENT}]"] if kernel.fetch else []),
        *([f"ldr {_CLAIMED}, [sp, #{asm.FRAME + _CLAIMED_ARGUMENT}]"] if kernel.finish.claims else []),
        *([] if kernel.share else _head()),
        "1:",
        *([begin, *_head()] if kernel.share else []),
        f"mov {_LEFT}, {_STEPS}",
        *rules.named("first step", stream.with_guests(first, claims)),
        "ble 3f",
        "2:",
        *_iteration(False, kernel.fetch),
        "bgt 2b",
        "3:",
        *_finish(kernel, more),
        *rules.named("store", [f"vst1.32 {{{row}}}, [{_OUT}], {_PITCH}" for row in rows]),
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
        f"{_PANELS}, {_STEPS}": "panels left, their steps",
        _NEXT: "bytes from behind a panel's last result to the next one's first",
        "r8-r11": "upper halves of vectors on their way",
        **({_FETCHED: "lines that are fetched"} if kernel.fetch else {}),
        **({_CLAIMED: "lines that a later tile stores"} if kernel.finish.claims else {}),
        "d0-d3": "pixels, three halves a k in turn",
        rules.span(_WEIGHT, "q"): "weights",
        "q4-q15": "sums, 6 pixels x 2 vectors of 4 channels",
    }
    return asm.routine(kernel.symbol, lines, registers)
