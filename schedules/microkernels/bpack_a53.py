"""Patches of bits into panels of pixel pairs, for the Cortex-A53.

A patch is gathered from its runs; two pixels' 16-bit words are laid side by side (``zip1``), so that one ``ld2r`` of the
product broadcasts both. Eight bytes of each pixel take 4 cycles: two ``ldr d``, ``zip1``, ``str q``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitkiln.schedules.microkernels import asm

#: Bytes of a pixel moved at once, with the register width that loads them and the one that stores both pixels' bytes.
_WIDTHS = {8: ("d", "q", "8h"), 4: ("s", "d", "4h"), 2: ("h", "s", "4h")}
_PIECE = 8
#: Pieces in flight, as many as there are pairs of registers to alternate between without saving any.
_BATCH = 4
#: Pieces of a run that are written out instead of looped over.
_UNROLLED = 24


@dataclass(frozen=True)
class PackPairs:
    """``void symbol(panel, image, const int32 *patches, const int32 *runs, int32 pairs)``.

    Writes panel uint16 [pairs][words][2] from patches 2i and 2i + 1 at byte ``patches[..]`` of the image, each made of
    ``runs`` runs of ``run_bytes`` bytes (an even number) at the offsets ``runs[..]``. Nothing else is read or written.
    """

    runs: int
    run_bytes: int

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_bpack_pairs_{self.runs}x{self.run_bytes}_a53"

    def assembly(self) -> str:
        """The routine."""
        return asm.routine(self.symbol, self._lines())

    def _lines(self) -> Iterator[str]:
        yield "mov w4, w4"
        yield "1:"
        yield "ldpsw x5, x6, [x2], #8"
        yield "add x5, x1, x5"
        yield "add x6, x1, x6"
        if self.runs > 1:
            yield "mov x7, x3"
            yield f"mov w8, #{self.runs}"
            yield "2:"
            yield "ldrsw x11, [x7], #4"
        else:
            yield "ldrsw x11, [x3]"
        yield "add x9, x5, x11"
        yield "add x10, x6, x11"
        yield from self._run()
        if self.runs > 1:
            yield "subs w8, w8, #1"
            yield "b.ne 2b"
        yield "subs w4, w4, #1"
        yield "b.ne 1b"
        yield "ret"

    def _run(self) -> Iterator[str]:
        """Moves a run of the pixels at x9 and x10, and x0 behind it."""
        size, loops = _PIECE * _BATCH, 0
        if self.run_bytes > _PIECE * _UNROLLED:
            loops = self.run_bytes // size
            yield f"mov w11, #{loops}"
            yield "3:"
            yield from _pieces([_PIECE] * _BATCH)
            yield from (f"add x9, x9, #{size}", f"add x10, x10, #{size}", f"add x0, x0, #{2 * size}")
            yield "subs w11, w11, #1"
            yield "b.ne 3b"
        rest = self.run_bytes - loops * size
        yield from _pieces([_PIECE] * (rest // _PIECE) + [size for size in (4, 2) if rest & size])
        yield f"add x0, x0, #{2 * rest}"


def _pieces(sizes: Sequence[int]) -> Iterator[str]:
    """Pieces of ``sizes`` bytes from x9 and x10 to x0, the loads of one before the work on those before it."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    for i in range(len(sizes) + 2):
        if i < len(sizes):
            width = _WIDTHS[sizes[i]][0]
            yield f"ldr {width}{2 * (i % _BATCH)}, [x9, #{starts[i]}]"
            yield f"ldr {width}{2 * (i % _BATCH) + 1}, [x10, #{starts[i]}]"
        if 0 <= i - 1 < len(sizes):
            first, lanes = 2 * ((i - 1) % _BATCH), _WIDTHS[sizes[i - 1]][2]
            yield f"zip1 v{first}.{lanes}, v{first}.{lanes}, v{first + 1}.{lanes}"
        if 0 <= i - 2 < len(sizes):
            yield f"str {_WIDTHS[sizes[i - 2]][1]}{2 * ((i - 2) % _BATCH)}, [x0, #{2 * starts[i - 2]}]"
