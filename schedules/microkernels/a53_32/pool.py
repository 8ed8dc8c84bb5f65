"""A row of pooled pixels in A32 for the Cortex-A53, as ``a53.pool``: loads move the pointers of the taps on themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53 import pool
from bitkiln.schedules.microkernels.a53.pool import BLOCK
from bitkiln.schedules.microkernels.a53_32 import asm

#: Registers; the taps are r0..r8.
_OUT, _LEFT, _STEP, _FETCH, _PIXELS = "r9", "r10", "r11", "r12", "lr"
#: Arguments on the stack, in bytes from its top at the call.
_COLUMNS, _COUNT = 0, 24
#: Sums, taps on their way in turn, and what sums are multiplied with.
_SUMS, _SETS, _SCALE = range(4), (range(8, 12), range(12, 16)), 4


@dataclass(frozen=True)
class PoolRow(pool.PoolRow):
    """As ``a53.pool.PoolRow``."""

    sets: ClassVar[tuple[range, range]] = _SETS
    fetching: ClassVar[tuple[str, str, str]] = (_FETCH, _STEP, "pld")

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"{super().symbol}_32"

    def assembly(self) -> str:
        """Its text."""
        step, skip = self.stride * self.channels * 4, (self.stride - 1) * self.channels * 4
        lines = [
            *asm.ENTER,
            f"mov {_OUT}, r0",
            *self._begin(),
            f"ldr {_PIXELS}, [sp, #{asm.FRAME + _COUNT}]",
            *asm.constant(_STEP, step),
            "1:",
            f"cmp {_PIXELS}, #1",
            f"mov {_LEFT}, #{self.channels // BLOCK}",
            "ble 2f",
            *self._fetches(),
            "2:",
            *self._line(),
            f"subs {_LEFT}, {_LEFT}, #1",
            "bgt 2b",
            *(line for pointer in self._pointers for line in asm.move(pointer, skip)),
            f"subs {_PIXELS}, {_PIXELS}, #1",
            "bgt 1b",
            *asm.LEAVE,
        ]
        scale = {f"q{_SCALE}": "what sums are multiplied with"} if self.kind == "avg" else {}
        registers = {
            _OUT: "result",
            _PIXELS: "pixels left",
            _LEFT: "cache lines of channels left",
            _STEP: "bytes from a pixel's taps to the next one's",
            _FETCH: "line that is fetched ahead",
            ", ".join(self._pointers): "taps, row by row",
            rules.span(_SUMS, "q"): f"{'sums' if scale else 'maxima'} of 16 channels",
            f"{rules.span(_SETS[0], 'q')}, {rules.span(_SETS[1], 'q')}": "taps on their way, in turn",
            **scale,
        }
        return asm.routine(self.symbol, lines, registers)

    @property
    def _pointers(self) -> list[str]:
        return [f"r{tap}" for tap in range(self.kernel[0] * self.kernel[1])]

    def _begin(self) -> list[str]:
        """The taps' pointers, from those of rows in r1..r3 and from columns; and the scale."""
        rows, columns = self.kernel
        spare = (_LEFT, _STEP, _FETCH)
        lines = [f"mov {kept}, r{1 + row}" for row, kept in enumerate(spare[:rows])]
        for column in range(columns):
            lines.append(f"ldr {_PIXELS}, [sp, #{asm.FRAME + _COLUMNS + 8 * column}]")
            lines += [f"add r{row * columns + column}, {spare[row]}, {_PIXELS}" for row in range(rows)]
        if self.kind == "avg":
            bits = asm.pattern(1 / (rows * columns))
            lines += [*asm.constant(_LEFT, bits), f"vdup.32 q{_SCALE}, {_LEFT}"]
        return lines

    def _load(self, registers: range, pointer: str) -> list[str]:
        return [f"vld1.32 {{{asm.doubles(registers[at : at + 2])}}}, [{pointer}]!" for at in (0, 2)]

    def _combine(self, tap: range) -> list[str]:
        mnemonic = "vmax" if self.kind == "max" else "vadd"
        return [f"{mnemonic}.f32 q{s}, q{s}, q{value}" for s, value in zip(_SUMS, tap, strict=True)]

    def _scaled(self) -> list[str]:
        return [f"vmul.f32 q{s}, q{s}, q{_SCALE}" for s in _SUMS]

    def _stored(self) -> list[str]:
        return [f"vst1.32 {{{asm.doubles(_SUMS[at : at + 2])}}}, [{_OUT}]!" for at in (0, 2)]
