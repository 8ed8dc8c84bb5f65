"""Patches of bits into panels of pixel pairs, in A32 for the Cortex-A53: the panel is that of ``a53.bpack``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53_32 import asm

_PIECE = 8
#: Pieces of a run that are written out instead of looped over.
_UNROLLED = 16


@dataclass(frozen=True)
class PackPairs:
    """As ``a53.bpack.PackPairs``. Nothing else is read or written."""

    runs: int
    run_bytes: int

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_bpack_pairs_{self.runs}x{self.run_bytes}_a53_32"

    def assembly(self) -> str:
        """The routine."""
        registers = {
            "r0": "panel",
            "r1": "image",
            "r2": "offsets of patches",
            "r3": "offsets of runs",
            "r4": "pairs left",
            "r5, r6": "the pair's patches",
            "r7, r8": "offsets of runs, runs left",
            "r9, r10": "the patches' pieces",
            "d0-d3": "pieces on their way",
        }
        return asm.routine(self.symbol, self._lines(), registers)

    def _lines(self) -> Iterator[str]:
        yield from ("push {r4-r11, lr}", "ldr r4, [sp, #36]")
        yield from ("1:", "ldr r5, [r2], #4", "ldr r6, [r2], #4", "add r5, r5, r1", "add r6, r6, r1")
        yield from ("mov r7, r3", f"mov r8, #{self.runs}")
        yield from ("2:", "ldr r11, [r7], #4", "add r9, r5, r11", "add r10, r6, r11")
        pieces = self.run_bytes // _PIECE
        if pieces > _UNROLLED:
            yield from (*asm.constant("r11", pieces), "3:", *self._piece(0), "subs r11, r11, #1", "bne 3b")
        else:
            for number in range(pieces):
                yield from self._piece(number % 2)
        for _ in range(self.run_bytes % _PIECE // 2):
            yield from ("ldrh r11, [r9], #2", "ldrh lr, [r10], #2", "orr r11, r11, lr, lsl #16", "str r11, [r0], #4")
        yield from ("subs r8, r8, #1", "bne 2b", "subs r4, r4, #1", "bne 1b", "pop {r4-r11, pc}")

    def _piece(self, number: int) -> Iterator[str]:
        """Eight bytes of each pixel."""
        a, b = 2 * number, 2 * number + 1
        yield from (f"vld1.16 {{d{a}}}, [r9]!", f"vld1.16 {{d{b}}}, [r10]!", f"vzip.16 d{a}, d{b}")
        yield f"vst1.16 {{d{a}, d{b}}}, [r0]!"
