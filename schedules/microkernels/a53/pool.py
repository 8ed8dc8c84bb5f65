"""A row of pooled pixels for the Cortex-A53: all taps of a window at once, a cache line of channels at a time.

C call: ``(float *out, const float *row0, *row1, *row2, int64 column0, column1, column2, int64 pixels)``: the maximum or the
average over the window whose taps lie ``column`` bytes from each row's pointer; the next pixel's lie ``stride`` pixels
further. Rows and columns that the window lacks are not read. Results follow each other.

Before a pixel's arithmetic, prefetches (prfm) fetch the lines of the next one, row by row: in the order of memory, in
which the core's prefetcher runs ahead of them. Taps alone, column beside column, would be more streams than it follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bitkiln.schedules.microkernels.a53 import asm

#: Channels that are reduced side by side: a cache line.
BLOCK = 16
#: The longest window along an axis.
MOST = 3

_VECTORS, _LINE = 4, 64
_OUT, _PIXELS, _LEFT, _STEP, _FETCH, _SCALE = "x0", "x7", "x1", "x2", "x3", 20
#: Sums, and taps on their way: two sets, so that one is loaded while the other is used.
_SUMS, _SETS = range(4), (range(4, 8), range(16, 20))


@dataclass(frozen=True)
class PoolRow:
    """The micro-kernel of one window; ``channels`` is a multiple of 16."""

    #: Registers of taps on their way; of a line to fetch and of the bytes to the next pixel, and how it is fetched.
    sets: ClassVar[tuple[range, range]] = _SETS
    fetching: ClassVar[tuple[str, str, str]] = (_FETCH, _STEP, "prfm pldl1keep,")
    kind: str
    kernel: tuple[int, int]
    stride: int
    channels: int

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_pool_{self.kind}{self.kernel[0]}x{self.kernel[1]}s{self.stride}_{self.channels}c_a53"

    def assembly(self) -> str:
        """Its text."""
        step, skip = self.stride * self.channels * 4, (self.stride - 1) * self.channels * 4
        lines = [
            *(
                f"add {self._pointers[row * self.kernel[1] + column]}, x{1 + row}, x{4 + column}"
                for row in range(self.kernel[0])
                for column in range(self.kernel[1])
            ),
            *self._scale(),
            f"mov {_STEP}, #{step & 0xFFFF}",
            *([f"movk {_STEP}, #{step >> 16}, lsl #16"] if step >> 16 else []),
            "1:",
            f"cmp {_PIXELS}, #1",
            f"mov {_LEFT}, #{self.channels // BLOCK}",
            "b.le 2f",
            *self._fetches(),
            "2:",
            *self._line(),
            f"subs {_LEFT}, {_LEFT}, #1",
            "b.gt 2b",
            *(line for pointer in self._pointers for line in (asm.add(pointer, pointer, skip) if skip else [])),
            f"subs {_PIXELS}, {_PIXELS}, #1",
            "b.gt 1b",
            "ret",
        ]
        return asm.routine(self.symbol, lines, self._registers)

    @property
    def _registers(self) -> dict[str, str]:
        scale = {f"v{_SCALE}": "what sums are multiplied with"} if self.kind == "avg" else {}
        return {
            _OUT: "result",
            _PIXELS: "pixels left",
            _LEFT: "cache lines of channels left",
            _STEP: "bytes from a pixel's taps to the next one's",
            _FETCH: "line that is fetched ahead",
            asm.span([int(pointer[1:]) for pointer in self._pointers], "x"): "taps, row by row",
            asm.span(_SUMS): f"{'sums' if scale else 'maxima'} of 16 channels",
            f"{asm.span(_SETS[0])}, {asm.span(_SETS[1])}": "taps on their way, in turn",
            **scale,
        }

    @property
    def _pointers(self) -> list[str]:
        return [f"x{8 + tap}" for tap in range(self.kernel[0] * self.kernel[1])]

    def _scale(self) -> list[str]:
        """What a sum is multiplied with for an average."""
        if self.kind == "max":
            return []
        bits = int(np.float32(1 / (self.kernel[0] * self.kernel[1])).view("uint32"))
        return [f"mov w1, #{bits & 0xFFFF}", f"movk w1, #{bits >> 16}, lsl #16", f"dup v{_SCALE}.4s, w1"]

    def _line(self) -> list[str]:
        """Sixteen channels of a pixel."""
        first, *others = self._pointers
        lines = self._load(_SUMS, first)
        # One tap is loaded while the one before it is combined.
        for number, pointer in enumerate(others):
            lines += self._load(self.sets[number % 2], pointer)
            if number:
                lines += self._combine(self.sets[1 - number % 2])
        if others:
            lines += self._combine(self.sets[1 - len(others) % 2])
        return [*lines, *(self._scaled() if self.kind == "avg" else []), *self._stored()]

    def _load(self, registers: range, pointer: str) -> list[str]:
        first = registers[0]
        return [f"ldp q{first + i}, q{first + i + 1}, [{pointer}, #{16 * i}]" for i in range(0, _VECTORS, 2)]

    def _combine(self, tap: range) -> list[str]:
        mnemonic = "fmax" if self.kind == "max" else "fadd"
        return [f"{mnemonic} v{s}.4s, v{s}.4s, v{value}.4s" for s, value in zip(_SUMS, tap, strict=True)]

    def _scaled(self) -> list[str]:
        return [f"fmul v{s}.4s, v{s}.4s, v{_SCALE}.4s" for s in _SUMS]

    def _stored(self) -> list[str]:
        """The sums are written, and all pointers move on."""
        stores = [f"stp q{a}, q{a + 1}, [{_OUT}, #{16 * a}]" for a in range(0, _VECTORS, 2)]
        return [*stores, *(f"add {pointer}, {pointer}, #{_LINE}" for pointer in (*self._pointers, _OUT))]

    def _fetches(self) -> list[str]:
        """Loads of the lines that the next pixel does not share with this one, row by row in the order of memory."""
        fetch, step, mnemonic = self.fetching
        column = max(0, self.kernel[1] - self.stride)
        return [
            line
            for row in range(self.kernel[0])
            for line in (
                f"add {fetch}, {self._pointers[row * self.kernel[1] + column]}, {step}",
                *(f"{mnemonic} [{fetch}, #{at}]" for at in range(0, self.stride * self.channels * 4, _LINE)),
            )
        ]
