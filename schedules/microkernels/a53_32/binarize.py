"""Comparisons of floats with thresholds, packed to bits, in A32 for the Cortex-A53: as ``a53.binarize``.

Sixteen floats are compared and narrowed at a time, the masks of a batch wait as bytes in four registers. Pixels come one after
the other, so that one pointer goes through them.

NEON takes denormals for zero in this state. A threshold between zero and the smallest normal number would be one of zero, which
zeros reach; so it has to be ``smallest``, and denormals have the bit of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bitkiln.schedules.microkernels.a53 import binarize
from bitkiln.schedules.microkernels.a53.binarize import BATCH
from bitkiln.schedules.microkernels.a53_32 import asm

_SOURCE, _BITS, _PIXELS, _STRIDE, _BITS_STRIDE, _TABLE, _FLIPS = (f"r{i}" for i in range(7))
_LEFT, _POINTER, _SKIP, _TO, _SCRATCH = "r7", "r8", "r9", "r10", "r11"
#: Arguments on the stack, in bytes from its top at the call.
_BITS_STRIDE_ARGUMENT, _TABLE_ARGUMENT, _FLIPS_ARGUMENT = 0, 4, 8
#: Registers: floats on their way, which flips of 64 bits follow; thresholds; powers of two. Masks of a batch are in d0-d7.
_FLOATS, _FLIP, _THRESHOLDS, _POWERS = 8, 16, 12, 4
#: Floats at a time.
_GROUP = 16


@dataclass(frozen=True)
class Binarize(binarize.Binarize):
    """As ``a53.binarize.Binarize``."""

    smallest: ClassVar[float] = float(np.finfo("float32").tiny)

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"{super().symbol}_32"

    def assembly(self) -> str:
        """The routine."""
        frame = 16 + 36
        lines = [
            "push {r4-r11, lr}",
            "vpush {d8-d9}",
            f"ldr {_BITS_STRIDE}, [sp, #{frame + _BITS_STRIDE_ARGUMENT}]",
            f"ldr {_TABLE}, [sp, #{frame + _TABLE_ARGUMENT}]",
            f"ldr {_FLIPS}, [sp, #{frame + _FLIPS_ARGUMENT}]",
            *asm.constant(_SCRATCH, 0x08040201),
            *asm.constant(_TO, 0x80402010),
            *(f"vmov d{2 * _POWERS + half}, {_SCRATCH}, {_TO}" for half in range(2)),
            *([f"vld1.32 {{d{2 * _THRESHOLDS}[], d{2 * _THRESHOLDS + 1}[]}}, [{_TABLE}]"] if self.shared else []),
            f"sub {_SKIP}, {_STRIDE}, #{4 * self.block}",
            "1:",
            f"lsr {_LEFT}, {_STRIDE}, #{(4 * self.block).bit_length() - 1}",
            "2:",
            f"mov {_POINTER}, {_SOURCE}",
            *self._batch(),
            *self._store(),
            "bne 2b",
            *self._next(),
            "vpop {d8-d9}",
            "pop {r4-r11, pc}",
        ]
        registers = {
            _SOURCE: "floats",
            _BITS: "bits",
            _PIXELS: "pixels left",
            f"{_STRIDE}, {_BITS_STRIDE}": "bytes from pixel to pixel of floats and of bits",
            _TABLE: "thresholds",
            _FLIPS: "flips",
            _LEFT: "blocks of channels left",
            f"{_POINTER}, {_SKIP}": "the batch's next floats, bytes from the end of a pixel's block to the next pixel's",
            "d0-d7": "masks of 64 floats, then their bits",
            f"q{_POWERS}": "powers of two",
            f"q{_FLOATS}-q{_FLOATS + 3}": "floats, then masks",
            f"q{_THRESHOLDS}" + ("" if self.shared else f"-q{_THRESHOLDS + 3}"): "thresholds",
        }
        return asm.routine(self.symbol, lines, registers)

    def _batch(self) -> Iterator[str]:
        """64 bits in d0."""
        each = min(self.block, _GROUP)
        for first in range(0, BATCH, _GROUP):
            if not self.shared and first and first % self.block == 0 and self.block > _GROUP:
                yield f"sub {_TABLE}, {_TABLE}, #{4 * self.block}"
            if not self.shared and (first == 0 or self.block > _GROUP):
                yield from _loads(_TABLE, _THRESHOLDS, each)
            for at in range(0, _GROUP, each):
                yield from _loads(_POINTER, _FLOATS + at // 4, each)
                if (first + at + each) % self.block == 0:
                    yield f"add {_POINTER}, {_POINTER}, {_SKIP}"
            yield f"pld [{_POINTER}, #256]"
            for i in range(_GROUP // 4):
                threshold = _THRESHOLDS if self.shared else _THRESHOLDS + i % (each // 4)
                yield f"vcge.f32 q{_FLOATS + i}, q{_FLOATS + i}, q{threshold}"
            # The halves of a register that both come from others: the second of a pair goes to the first one's upper half.
            for i in range(0, _GROUP // 4, 2):
                yield f"vmovn.i32 d{2 * (_FLOATS + i)}, q{_FLOATS + i}"
                yield f"vmovn.i32 d{2 * (_FLOATS + i) + 1}, q{_FLOATS + i + 1}"
            for i in range(0, _GROUP // 4, 2):
                yield f"vmovn.i16 d{first // 8 + i // 2}, q{_FLOATS + i}"
        yield f"vld1.8 {{d{_FLIP}}}, [{_FLIPS}]!"
        yield from (f"vand q{i}, q{i}, q{_POWERS}" for i in range(4))
        for step in (1, 2, 4):
            yield from (f"vpadd.i8 d{i}, d{i}, d{i + step}" for i in range(0, 8, 2 * step))
        yield f"veor d0, d0, d{_FLIP}"

    def _store(self) -> Iterator[str]:
        yield f"mov {_TO}, {_BITS}"
        yield f"subs {_LEFT}, {_LEFT}, #1"
        yield f"add {_SOURCE}, {_SOURCE}, #{4 * self.block}"
        size = self.block
        if size == BATCH:
            yield f"vst1.8 {{d0}}, [{_TO}]"
        else:
            yield from (f"vst1.{size} {{d0[{i}]}}, [{_TO}], {_BITS_STRIDE}" for i in range(self.pixels))
        yield f"add {_BITS}, {_BITS}, #{self.block // 8}"

    def _next(self) -> Iterator[str]:
        """Moves on to the next pixels; the last ones are done together with some before them, once more."""
        yield f"subs {_PIXELS}, {_PIXELS}, #{self.pixels}"
        yield "beq 3f"
        yield f"lsr {_SCRATCH}, {_STRIDE}, #{(4 * self.block).bit_length() - 1}"
        yield f"sub {_FLIPS}, {_FLIPS}, {_SCRATCH}, lsl #3"
        if not self.shared:
            yield f"sub {_TABLE}, {_TABLE}, {_STRIDE}"
        for pointer, stride in ((_SOURCE, _STRIDE), (_BITS, _BITS_STRIDE)):
            yield from [f"add {pointer}, {pointer}, {stride}"] * (self.pixels - 1)
        if self.pixels > 1:
            yield from (f"cmp {_PIXELS}, #{self.pixels}", "bge 1b", f"sub {_SCRATCH}, {_PIXELS}, #{self.pixels}")
            yield f"mla {_SOURCE}, {_SCRATCH}, {_STRIDE}, {_SOURCE}"
            yield f"mla {_BITS}, {_SCRATCH}, {_BITS_STRIDE}, {_BITS}"
            yield f"mov {_PIXELS}, #{self.pixels}"
        yield from ("b 1b", "3:")


def _loads(pointer: str, first: int, floats: int) -> list[str]:
    """``floats`` of them to registers from q``first`` on; the pointer goes on."""
    return [
        f"vld1.32 {{{asm.doubles(range(at, min(at + 2, first + floats // 4)))}}}, [{pointer}]!"
        for at in range(first, first + floats // 4, 2)
    ]
