"""Bytes of eight pixels side by side, widened, for the product of whole numbers on the Cortex-A53.

Eight bytes of each of eight pixels are turned round by three rounds of ``zip`` and widened: 8 loads, 12 zips, 8 widenings and
8 stores, a cycle each, for 64 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm

#: Pixels of a panel, and bytes of a row that are taken at once.
PIXELS = PIECE = 8
_POINTERS = [f"x{i}" for i in range(8, 16)]


@dataclass(frozen=True)
class PackWhole:
    """``void symbol(panel, image, const int32 *pixels, const int32 *rows, int64 count, int64 pieces)``.

    Writes panel int16 [count][pieces * 8][8]: for each of ``count`` rows, ``pieces`` * 8 bytes of each of eight pixels. A
    pixel's row begins at byte ``pixels[..]`` + ``rows[..]`` of the image int8.
    """

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return "bk_ipack_a53"

    def assembly(self) -> str:
        """The routine."""
        registers = {
            "x0": "panel",
            "x1": "image",
            "x2": "offsets of pixels",
            "x3": "offsets of rows",
            "x4": "rows left",
            "x5, x6": "pieces of a row, and those left",
            "x7": "the row",
            f"{_POINTERS[0]}-{_POINTERS[-1]}": "pixels",
            "v0-v7": "bytes of pixels, then numbers of the panel",
            "v16-v27": "bytes on their way",
        }
        return asm.routine(self.symbol, self._lines(), registers)

    def _lines(self) -> Iterator[str]:
        yield from ("1:", "ldrsw x7, [x3], #4", "add x7, x1, x7", "mov x6, x5")
        for first, second in zip(_POINTERS[::2], _POINTERS[1::2], strict=True):
            yield f"ldpsw {first}, {second}, [x2, #{8 * (_POINTERS.index(first) // 2)}]"
        yield from (f"add {pointer}, x7, {pointer}" for pointer in _POINTERS)
        yield "2:"
        for number in (0, 4, 1, 5, 2, 6, 3, 7):
            yield f"ldr d{number}, [{_POINTERS[number]}], #{PIECE}"
        yield from (f"zip1 v{16 + i}.16b, v{i}.16b, v{i + 4}.16b" for i in range(4))
        yield "subs x6, x6, #1"
        for i in range(2):
            yield from (f"zip{half} v{19 + 2 * i + half}.16b, v{16 + i}.16b, v{18 + i}.16b" for half in (1, 2))
        for i in range(2):
            yield from (f"zip{half} v{23 + 2 * i + half}.16b, v{20 + i}.16b, v{22 + i}.16b" for half in (1, 2))
        for i in range(4):
            yield f"sshll v{2 * i}.8h, v{24 + i}.8b, #0"
            yield f"sshll2 v{2 * i + 1}.8h, v{24 + i}.16b, #0"
        yield from (f"stp q{2 * i}, q{2 * i + 1}, [x0, #{32 * i}]" for i in range(4))
        yield from (f"add x0, x0, #{2 * PIXELS * PIECE}", "b.ne 2b")
        yield from ("subs x4, x4, #1", "b.ne 1b", "ret")
