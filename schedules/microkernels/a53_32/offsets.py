"""How far an image lies from another in memory, in A32, as ``a53.offsets``."""

from __future__ import annotations

from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import offsets
from bitkiln.schedules.microkernels.a53_32 import asm


@dataclass(frozen=True)
class Offset(offsets.Offset):
    """As ``a53.offsets.Offset``."""

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return "bk_offset_a53_32"

    def assembly(self) -> str:
        """Its text."""
        registers = {"r0": "where the offset goes", "r1": "where within", "r2": "first image", "r3": "other image"}
        lines = ("ldr r1, [r1]", "sub r2, r3, r2", "add r1, r1, r2", "str r1, [r0]", "bx lr")
        return asm.routine(self.symbol, lines, registers)
