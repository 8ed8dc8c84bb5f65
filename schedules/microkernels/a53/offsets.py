"""How far an image lies from another in memory: a product that reads several goes from one to the next by such offsets.

C call: ``(int32 *to, const int32 *within, const void *first, const void *other)``: writes to ``to`` the bytes from ``first`` to
place ``within`` of ``other``. Both are in one block of memory, so that the offset fits.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm


@dataclass(frozen=True)
class Offset:
    """The routine."""

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return "bk_offset_a53"

    def assembly(self) -> str:
        """Its text."""
        registers = {"x0": "where the offset goes", "x1": "where within", "x2": "first image", "x3": "other image"}
        lines = ("ldr w4, [x1]", "sub x5, x3, x2", "add w4, w4, w5", "str w4, [x0]", "ret")
        return asm.routine(self.symbol, lines, registers)
