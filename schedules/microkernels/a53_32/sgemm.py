"""Float matrix tiles in A32 for the Cortex-A53, by the generator of ``a53.sgemm`` with 16 vector registers.

The C call is that of ``a53.sgemm``; of the 64-bit arguments the lower halves count. There is no address of two registers for a
vector load, so pixels' pointers move on themselves; and each row of taps begins anew, because a pointer that moves cannot be
loaded from ahead in the next row. Nothing is read behind the last value of a pixel. ``vmla`` rounds the product and the sum,
where A64's ``fmla`` rounds once: results differ in the last bits.

Scalars are lanes of d0..d15 alone, so pixels come first in the register file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53 import sgemm
from bitkiln.schedules.microkernels.a53.sgemm import STEP
from bitkiln.schedules.microkernels.a53_32 import asm

#: Pixels' pointers; weights; steps left of a row; carriers of high halves, the last of them only where no pixel needs it.
_POINTERS = [f"r{i}" for i in range(8)]
_WEIGHTS, _LEFT = "r8", "r9"
_CARRIERS = ("r10 r11", "r12 lr")
#: What pauses read: the last register that they can, of weights that were loaded long before.
_IDLE = 7
#: How far ahead lines of weights are fetched, in bytes.
_AHEAD = 768
#: Words on the stack, from the stack pointer on.
_OUT, _PITCH, _ROW, _ROWS, _ROOM = 0, 4, 8, 12, 20
#: Arguments on the stack, in bytes from its top at the call.
_IMAGE, _PIXELS, _PACKED, _TABLE, _COUNT, _STEPS, _PANELS, _PANEL_PITCH, _IMAGE_PITCH = 0, 4, 8, 12, 16, 24, 32, 40, 56


@dataclass(frozen=True)
class Sgemm(sgemm.Sgemm):
    """The micro-kernel of one tile size. It has no ``finish`` and fetches nothing of the image."""

    file: ClassVar[int] = 16

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_sgemm_{self.tile_m}x{self.tile_n}_a53_32"

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)

    def sum(self, m: int, vector: int) -> int:
        """Register of a sum: behind all others."""
        return self.file - self.tile_m * self.vectors + super().sum(m, vector)

    def places(self, weights: int, pixels: int) -> tuple[int, int]:
        """The first registers of pixels and of weights, of which there are so many."""
        return 0, pixels

    def multiply(self, total: int, weight: int, pixel: int, lane: int) -> str:
        """A vector of sums plus weights times a value of a pixel."""
        return f"vmla.f32 q{total}, q{weight}, d{2 * pixel + lane // 2}[{lane % 2}]"

    def load(self, key: tuple[str, int, int], register: int, after: int, before: int) -> rules.Load:
        """The load of a vector of weights, ("weight", k, vector), or of two pixels' values, ("pixel", k / 2, pair)."""
        kind, k, number = key
        if kind == "weight":
            at, step = (k * self.tile_n + number * 4) * 4, self.tile_n * 4 * STEP
            low, high = f"[{_WEIGHTS}, #{at}]", f"[{_WEIGHTS}, #{at + 8}]"
            ahead = (f"[{_WEIGHTS}, #{at + step}]", f"[{_WEIGHTS}, #{at + step + 8}]")
            return rules.Load(register, low, high, ahead, after, before)
        pair = _POINTERS[2 * number : min(2 * number + 2, self.tile_m)]
        now = [f"[{pointer}, #{8 * k}]" for pointer in pair]
        then = [f"[{pointer}, #{8 * k + 16}]" for pointer in pair]
        second, later = (now[1], then[1]) if len(pair) == 2 else (None, None)
        return rules.Load(register, now[0], second, (then[0], later), after, before)

    def weave(self, arithmetic: Sequence[str], loads: Sequence[rules.Load], idle: int) -> rules.Loop:
        """The loop of these."""
        size = self.tile_n * 4 * STEP
        hints = [f"pld [{_WEIGHTS}, #{_AHEAD + at}]" for at in range(0, size, 64)]
        moves = {pointer: f"add {pointer}, {pointer}, #{4 * STEP}" for pointer in _POINTERS[: self.tile_m]}
        moves[_WEIGHTS] = f"add {_WEIGHTS}, {_WEIGHTS}, #{size}"
        free = _POINTERS[self.tile_m + self.tile_m % 2 :]
        carriers = [*_CARRIERS, *(f"{free[i]} {free[i + 1]}" for i in range(0, len(free) - 1, 2))]
        control = [f"subs {_LEFT}, {_LEFT}, #1"]
        return rules.Loop(arithmetic, loads, control, "bgt", "1", carriers, _IDLE, hints, asm.A32, moves, unbroken=True)


@cache
def _assembly(tile: Sgemm) -> str:
    arguments = _ROOM + asm.FRAME
    loop, pointers = tile.loop, _POINTERS[: tile.tile_m]
    sums = [tile.sum(m, v) for m in range(tile.tile_m) for v in range(tile.vectors)]
    lines = [
        *asm.ENTER,
        f"sub sp, sp, #{_ROOM}",
        f"str r0, [sp, #{_OUT}]",
        f"str r2, [sp, #{_PITCH}]",
        f"ldr {_WEIGHTS}, [sp, #{arguments + _PACKED}]",
        "4:",
        f"ldr r12, [sp, #{arguments + _TABLE}]",
        f"ldr lr, [sp, #{arguments + _COUNT}]",
        *(f"vmov.i32 q{register}, #0" for register in sums),
        f"str lr, [sp, #{_ROWS}]",
        "2:",
        *rules.named("next row", [f"ldr r11, [sp, #{arguments + _IMAGE}]"]),
        "ldr lr, [r12], #4",
        f"str r12, [sp, #{_ROW}]",
        f"ldr r12, [sp, #{arguments + _PIXELS}]",
        "add r11, r11, lr",
        *(f"ldr {pointer}, [r12, #{4 * m}]" for m, pointer in enumerate(pointers)),
        *(f"add {pointer}, {pointer}, r11" for pointer in pointers),
        f"ldr {_LEFT}, [sp, #{arguments + _STEPS}]",
        *loop.head(),
        f"subs {_LEFT}, {_LEFT}, #1",
        "beq 3f",
        *loop.body(),
        "3:",
        *rules.named("last step of a row", loop.iteration(last=True)),
        f"ldr lr, [sp, #{_ROWS}]",
        f"ldr r12, [sp, #{_ROW}]",
        "subs lr, lr, #1",
        f"str lr, [sp, #{_ROWS}]",
        "bgt 2b",
        *rules.named("store", _store(tile, arguments)),
        "bgt 4b",
        f"add sp, sp, #{_ROOM}",
        *asm.LEAVE,
    ]
    table = {
        ", ".join(pointers): "pixels",
        _WEIGHTS: "weights",
        _LEFT: "steps left of a row",
        "r10, r11, r12, lr": "upper halves of vectors on their way",
        rules.span(sums, "q"): f"sums, {tile.tile_m} pixels x {tile.vectors} vectors of 4 channels",
        "other q": "pixels, then weights",
    }
    return asm.routine(tile.symbol, lines, table)


def _store(tile: Sgemm, arguments: int) -> list[str]:
    """Stores a panel's results and goes on to the next one, if any: then "gt" holds."""
    first = [2 * tile.sum(m, 0) for m in range(tile.tile_m)]
    rows = ["{" + ", ".join(f"d{at + i}" for i in range(2 * tile.vectors)) + "}" for at in first]
    return [
        f"ldr r0, [sp, #{_OUT}]",
        f"ldr r1, [sp, #{_PITCH}]",
        f"ldr r2, [sp, #{arguments + _PANEL_PITCH}]",
        "mov r3, r0",
        *(f"vst1.32 {row}, [r3], r1" for row in rows),
        "add r0, r0, r2",
        f"str r0, [sp, #{_OUT}]",
        f"ldr r0, [sp, #{arguments + _IMAGE}]",
        f"ldr r2, [sp, #{arguments + _IMAGE_PITCH}]",
        f"ldr r1, [sp, #{arguments + _PANELS}]",
        "add r0, r0, r2",
        f"str r0, [sp, #{arguments + _IMAGE}]",
        "subs r1, r1, #1",
        f"str r1, [sp, #{arguments + _PANELS}]",
    ]
