"""First layers in A32 for the Cortex-A53, by the generator of ``a53.stem`` with 16 vector registers.

A tile has half the pixels: 4, or 2 x 2 where their maximum is taken, x 8 channels, and 8 registers for what feeds their sums.
Those are q0..q7, the only ones whose lanes can be factors. The C call is that of ``a53.stem``; of the 64-bit arguments the
lower halves count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm as rules
from bitkiln.schedules.microkernels.a53 import stem, stream
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.stem import CHANNELS
from bitkiln.schedules.microkernels.a53_32 import asm
from bitkiln.schedules.microkernels.a53_32.steps import A32 as STEPS
from bitkiln.schedules.microkernels.a53_32.stream import A32 as STREAM

_ROWS = tuple(f"r{i}" for i in range(6))
_CLAIMED, _WEIGHTS = "r6", "r7"
#: Free between the sums and the next tile: the first carriers.
_SCRATCH, _SECOND = "r8", "r9"
#: Of a loop over the kernel's rows, which has one pointer to the image.
_LEFT, _IMAGE_PITCH = "r1", "r2"
#: Words on the stack, from the stack pointer on.
_OUT, _PITCH, _TILES, _ROOM = 0, 4, 8, 12
#: Arguments on the stack, in bytes from its top at the call.
_IMAGE, _IMAGE_PITCH_ARGUMENT, _PACKED, _OPERANDS, _COUNT, _CLAIMS = 0, 8, 16, 20, 24, 32
_FRAME = asm.FRAME + _ROOM


@dataclass(frozen=True)
class Stem(stem.Stem):
    """As ``a53.stem.Stem``."""

    fetching: ClassVar[bool] = False
    row_pointers: ClassVar[Sequence[str]] = _ROWS
    weights: ClassVar[str] = _WEIGHTS
    operand_registers: ClassVar[Sequence[int]] = tuple(range(8))
    words: ClassVar[Sequence[str]] = ("r8 r9", "r10 r11", "r12 lr")
    writer: ClassVar[stream.Writer] = STREAM
    step_writer: ClassVar[steps_a53.Writer] = STEPS

    @property
    def pixels(self) -> int:
        """Output pixels of a tile's row, before pooling."""
        return 2 if self.pool else 4

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"{super().symbol}_32"

    @property
    def looped(self) -> bool:
        """As ``a53.stem.Stem.looped``; there are also no pointers to so many rows."""
        return self.kernel[0] > len(_ROWS) or super().looped

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)

    def sum(self, row: int, pixel: int, vector: int) -> int:
        """Register of a sum: behind the operands."""
        return len(self.operand_registers) + super().sum(row, pixel, vector)

    def load_rows(self, registers: Sequence[int], first: int) -> list[str]:
        """As ``a53.stem.Stem.load_rows``."""
        begin = [f"ldr {_SCRATCH}, [sp, #{_FRAME + _OPERANDS}]"] if not first else []
        pairs = [asm.doubles(registers[at : at + 2]) for at in range(0, len(registers), 2)]
        return begin * bool(pairs) + [f"vld1.32 {{{pair}}}, [{_SCRATCH}]!" for pair in pairs]

    def maximum(self, a: int, b: int) -> str:
        """As ``a53.stem.Stem.maximum``."""
        return f"vmax.f32 q{a}, q{a}, q{b}"


@cache
def _assembly(tile: Stem) -> str:
    rows = _ROWS[: tile.image_rows]
    claims = _claims(tile)
    sums = _rows(tile) if tile.looped else asm.within_reach(stem.sums_of(tile)[0], _WEIGHTS)
    lines = [
        *asm.ENTER,
        f"sub sp, sp, #{_ROOM}",
        f"str r0, [sp, #{_OUT}]",
        f"str r2, [sp, #{_PITCH}]",
        f"ldr {_SECOND}, [sp, #{_FRAME + _COUNT}]",
        f"ldr {rows[0]}, [sp, #{_FRAME + _IMAGE}]",
        f"ldr {_SCRATCH}, [sp, #{_FRAME + _IMAGE_PITCH_ARGUMENT}]",
        f"ldr {_WEIGHTS}, [sp, #{_FRAME + _PACKED}]",
        *([f"ldr {_CLAIMED}, [sp, #{_FRAME + _CLAIMS}]"] if tile.claims else []),
        f"str {_SECOND}, [sp, #{_TILES}]",
        *(f"add {b}, {a}, {_SCRATCH}" for a, b in pairwise(rows)),
        "1:",
        *stream.with_guests(sums, [] if tile.looped else claims),
        *rules.beside(stem.epilogue(tile), claims if tile.looped else []),
        *rules.named("store", _store(tile)),
        *(line for row in rows for line in asm.move(row, tile.tile_bytes)),
        f"ldr {_SECOND}, [sp, #{_TILES}]",
        f"subs {_SECOND}, {_SECOND}, #1",
        f"str {_SECOND}, [sp, #{_TILES}]",
        "bgt 1b",
        f"add sp, sp, #{_ROOM}",
        *asm.LEAVE,
    ]
    registers = {
        ", ".join(rows): "image rows of the tile",
        _WEIGHTS: "weights",
        **({_CLAIMED: "lines that later tiles store"} if tile.claims else {}),
        ", ".join(tile.words): "upper halves of vectors on their way",
        rules.span(tile.sums, "q"): f"sums, {tile.rows} x {tile.pixels} pixels x {CHANNELS} channels",
        rules.span(tile.operand_registers, "q"): "image and weights, then the steps' numbers",
    }
    return asm.routine(tile.symbol, lines, registers)


def _claims(tile: Stem) -> list[str]:
    """Writes as many bytes as the tile's results have; what is written does not matter."""
    if not tile.claims:
        return []
    size = tile.pixels // tile.rows * CHANNELS * 4
    return [
        *(f"str {_WEIGHTS}, [{_CLAIMED}, #{at}]" for at in range(0, size, 4)),
        f"add {_CLAIMED}, {_CLAIMED}, #{size}",
    ]


def _rows(tile: Stem) -> list[str]:
    """The sums by a loop over the kernel's rows, which leaves the pointers as they were."""
    row, height = _ROWS[0], tile.kernel[0]
    size = tile.kernel[1] * tile.channels * CHANNELS * 4
    return [
        *(f"vmov.i32 q{register}, #0" for register in tile.sums),
        f"mov {_LEFT}, #{height}",
        "2:",
        *asm.within_reach(stem.sums_of(tile)[0], _WEIGHTS),
        f"ldr {_IMAGE_PITCH}, [sp, #{_FRAME + _IMAGE_PITCH_ARGUMENT}]",
        *asm.move(_WEIGHTS, size),
        f"subs {_LEFT}, {_LEFT}, #1",
        f"add {row}, {row}, {_IMAGE_PITCH}",
        "bgt 2b",
        *asm.constant(_LEFT, height),
        f"mls {row}, {_IMAGE_PITCH}, {_LEFT}, {row}",
        f"ldr {_WEIGHTS}, [sp, #{_FRAME + _PACKED}]",
    ]


def _store(tile: Stem) -> list[str]:
    lines = [
        f"ldr {_SCRATCH}, [sp, #{_OUT}]",
        f"ldr {_SECOND}, [sp, #{_PITCH}]",
        *(stem.pool(tile) if tile.pool else []),
    ]
    for pixel in range(0, tile.pixels, tile.rows):
        sums = asm.doubles([tile.sum(0, pixel, vector) for vector in range(CHANNELS // 4)])
        lines.append(f"vst1.32 {{{sums}}}, [{_SCRATCH}], {_SECOND}")
    return [*lines, f"str {_SCRATCH}, [sp, #{_OUT}]"]
