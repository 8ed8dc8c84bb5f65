"""Depthwise convolution in A32 for the Cortex-A53, by the generator of ``a53.depthwise`` with 16 vector registers.

The C calls are those of ``a53.depthwise``; of the 64-bit arguments the lower halves count. Vector loads reach no further than a
row of the block, so each image row of a tile has a pointer. There is no room for weights that two image rows have in common:
each row loads its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53 import depthwise, stream
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.depthwise import BLOCK, LANES
from bitkiln.schedules.microkernels.a53_32 import asm
from bitkiln.schedules.microkernels.a53_32.steps import A32 as STEPS
from bitkiln.schedules.microkernels.a53_32.stream import A32 as STREAM

_VECTOR, _LINE = 4 * LANES, 4 * BLOCK
_ROWS = tuple(f"r{i}" for i in range(6))
_WEIGHTS, _FETCH = "r6", "r7"
#: Free between the sums: the carriers.
_OUT, _PITCH, _ROW, _WIDE, _SCRATCH = "r8", "r9", "r10", "r11", "lr"
#: Words on the stack, from the stack pointer on.
_OUT_WORD, _OPERANDS_WORD, _LEFT_WORD, _ROOM = 0, 4, 8, 12
_FRAME = asm.FRAME + _ROOM
#: Arguments on the stack, from the stack pointer on.
_FETCH_ARGUMENT, _TILES, _COUNT = _FRAME, _FRAME + 8, _FRAME + 16
#: The largest offset of a vector load.
_REACH = 1020
#: Lines that ``Gather`` fetches ahead: as many as can be under way.
_AHEAD = 3


@dataclass(frozen=True)
class Gather(depthwise.Gather):
    """As ``a53.depthwise.Gather``."""

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"{super().symbol}_32"

    def assembly(self) -> str:
        """Its text."""
        pieces = [asm.doubles(range(at, min(at + 2, self.vectors))) for at in range(0, self.vectors, 2)]
        pitch, size = self.channels * 4, self.vectors * _VECTOR
        copy = [f"vld1.32 {{{piece}}}, [r1]!" for piece in pieces]
        copy += asm.move("r1", pitch - size) if pitch != size else []
        copy += [f"vst1.32 {{{piece}}}, [r0]!" for piece in pieces]
        copy += asm.move("r0", _LINE - size) if size != _LINE else []
        lines = [
            *asm.constant("r12", pitch),
            *asm.add("r3", "r1", _AHEAD * pitch),
            "1:",
            "pld [r3]",
            "add r3, r3, r12",
            *copy,
            "subs r2, r2, #1",
            "bgt 1b",
            "bx lr",
        ]
        registers = {
            "r0": "block",
            "r1": "image",
            "r2": "pixels left",
            "r3, r12": "line that is fetched ahead, bytes between pixels",
            rules.span(range(self.vectors), "q"): "a pixel",
        }
        return asm.routine(self.symbol, lines, registers)


@dataclass(frozen=True)
class Depthwise(depthwise.Depthwise):
    """As ``a53.depthwise.Depthwise``."""

    file: ClassVar[int] = 16
    words: ClassVar[Sequence[str]] = ("r8 r9", "r10 r11", "r12 lr")
    writer: ClassVar[stream.Writer] = STREAM

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"{super().symbol}_32"

    @property
    def _rows(self) -> Sequence[str]:
        """A pointer for each image row of a tile."""
        count = (self.tile[0] - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
        if count > len(_ROWS):
            raise ValueError(f"{self.symbol}: no registers for {count} rows")
        return _ROWS[:count]

    def _weight(self, tap: int, place: int) -> stream.Value:
        return stream.Value(_WEIGHTS, tap * _VECTOR, tag=place)

    def _value(self, place: int, column: int) -> stream.Value:
        if column * _LINE > _REACH - _VECTOR or math.prod(self.kernel) * _VECTOR > _REACH:
            raise ValueError(f"{self.symbol}: no load reaches so far")
        return stream.Value(self._rows[place], column * _LINE)

    def assembly(self) -> str:
        """Its text."""
        lines = [
            *asm.ENTER,
            f"sub sp, sp, #{_ROOM}",
            f"str r0, [sp, #{_OUT_WORD}]",
            f"str r3, [sp, #{_OPERANDS_WORD}]",
            f"mov {_WEIGHTS}, r2",
            f"ldr {_FETCH}, [sp, #{_FETCH_ARGUMENT}]",
            "mov r0, r1",
            *asm.constant(_SCRATCH, self.block_width * _LINE),
            *(f"add {row}, {before}, {_SCRATCH}" for before, row in zip(self._rows, self._rows[1:], strict=False)),
            f"ldr {_SCRATCH}, [sp, #{_COUNT}]",
            "1:",
            f"str {_SCRATCH}, [sp, #{_LEFT_WORD}]",
            "2:",
            *stream.with_guests(self._sums[0], self._fetches()),
            *self._finish(),
            f"ldr {_SCRATCH}, [sp, #{_LEFT_WORD}]",
            f"subs {_SCRATCH}, {_SCRATCH}, #1",
            f"str {_SCRATCH}, [sp, #{_LEFT_WORD}]",
            "bgt 2b",
            *self._next_tile(),
            "bgt 1b",
            f"add sp, sp, #{_ROOM}",
            *asm.LEAVE,
        ]
        registers = {
            ", ".join(self._rows): "rows of the block",
            _WEIGHTS: "weights",
            _FETCH: "lines that are fetched ahead",
            ", ".join(self.words): "upper halves of vectors on their way",
            rules.span(range(math.prod(self.tile)), "q"): f"sums, {self.tile[0]} x {self.tile[1]} pixels of 4 channels",
            "other q": "image and weights, then the steps' numbers",
        }
        return asm.routine(self.symbol, lines, registers)

    def _fetches(self) -> list[str]:
        return [f"pld [{_FETCH}, #{_LINE * line}]" for line in range(self.fetched)]

    def _finish(self) -> list[str]:
        """The steps, the stores, and the pointers moved on to the next vector."""
        tile = range(math.prod(self.tile))
        lines = [f"ldr {_SCRATCH}, [sp, #{_OPERANDS_WORD}]"] if steps_a53.rows(self.steps) else []
        for step in self.steps:
            rows = range(tile.stop, tile.stop + steps_a53.rows([step]))
            lines += [f"vld1.32 {{{asm.doubles([register])}}}, [{_SCRATCH}]!" for register in rows]
            lines += steps_a53.lines(step, [(total, rows) for total in tile], range(rows.stop, self.file), STEPS)
        lines += [f"str {_SCRATCH}, [sp, #{_OPERANDS_WORD}]"] if steps_a53.rows(self.steps) else []
        lines += [f"ldr {_OUT}, [sp, #{_OUT_WORD}]", *asm.constant(_PITCH, self.channels * 4)]
        lines += [*asm.constant(_WIDE, self.out_width * self.channels * 4)] if self.tile[0] > 1 else []
        lines += [f"add {_SCRATCH}, {_OUT}, #{_VECTOR}", f"str {_SCRATCH}, [sp, #{_OUT_WORD}]"]
        moves = [f"add {row}, {row}, #{_VECTOR}" for row in self._rows]
        moves += asm.move(_WEIGHTS, math.prod(self.kernel) * _VECTOR)
        moves += asm.move(_FETCH, self.fetched * _LINE) if self.fetched else []
        stores = []
        for row in range(self.tile[0]):
            stores += [f"add {_ROW}, {_OUT}, {_WIDE}"] if row + 1 < self.tile[0] else []
            sums = tile[row * self.tile[1] : (row + 1) * self.tile[1]]
            stores += [f"vst1.32 {{{asm.doubles([total])}}}, [{_OUT}], {_PITCH}" for total in sums]
            stores += [f"mov {_OUT}, {_ROW}"] if row + 1 < self.tile[0] else []
        return [*lines, *rules.named("store", rules.beside(stores, moves))]

    def _next_tile(self) -> list[str]:
        """Moves all pointers from behind the last vector to the next tile's first; "gt" holds where there is one."""
        lines = [f"ldr {_WIDE}, [sp, #{_COUNT}]"]
        for pointer, each in ((_WEIGHTS, math.prod(self.kernel)), (_ROW, steps_a53.rows(self.steps))):
            lines += [f"ldr {_ROW}, [sp, #{_OPERANDS_WORD}]"] if pointer == _ROW else []
            lines += [*asm.constant(_SCRATCH, each * _VECTOR), f"mls {pointer}, {_SCRATCH}, {_WIDE}, {pointer}"]
        lines += [
            f"str {_ROW}, [sp, #{_OPERANDS_WORD}]",
            f"lsl {_WIDE}, {_WIDE}, #4",
            f"ldr {_OUT}, [sp, #{_OUT_WORD}]",
        ]
        for pointers, step in (
            (self._rows, self.tile[1] * self.strides[1] * _LINE),
            ((_OUT,), self.tile[1] * self.channels * 4),
        ):
            lines += [*asm.constant(_SCRATCH, step), f"sub {_SCRATCH}, {_SCRATCH}, {_WIDE}"]
            lines += [f"add {pointer}, {pointer}, {_SCRATCH}" for pointer in pointers]
        return [
            *lines,
            f"str {_OUT}, [sp, #{_OUT_WORD}]",
            f"ldr {_WIDE}, [sp, #{_TILES}]",
            f"subs {_WIDE}, {_WIDE}, #1",
            f"str {_WIDE}, [sp, #{_TILES}]",
            f"ldr {_SCRATCH}, [sp, #{_COUNT}]",
        ]
