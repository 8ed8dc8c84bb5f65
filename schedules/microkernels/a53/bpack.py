"""Patches of bits into panels of pixel pairs, for the Cortex-A53.

A patch is gathered from its runs; two pixels' 16-bit words are laid side by side (``zip1``), so that one ``ld2r`` of the
product broadcasts both. Eight bytes of each pixel take 4 cycles: two ``ldr d``, ``zip1``, ``str q``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from bitkiln.schedules.microkernels.a53 import asm

#: Bytes of a pixel moved at once, with the register width that loads them and the one that stores both pixels' bytes.
_WIDTHS = {8: ("d", "q", "8h"), 4: ("s", "d", "4h"), 2: ("h", "s", "4h")}
_PIECE = 8
#: Pieces in flight, as many as there are pairs of registers to alternate between without saving any.
_BATCH = 4
#: Pieces that are written out instead of looped over.
_UNROLLED = 40
_OFFSETS = ("x12", "x13", "x14", "x15")


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
        registers = {
            "x0": "panel",
            "x1": "image",
            "x2": "offsets of patches",
            "x3": "offsets of runs",
            "x4": "pairs left",
            "x5, x6": "the pair's patches",
            "x9, x10": "their pieces",
            **({", ".join(_OFFSETS[: self.runs]): "offsets of runs"} if self._unrolled else {}),
            "v0-v7": "pieces on their way",
        }
        return asm.routine(self.symbol, self._lines(), registers)

    def _lines(self) -> Iterator[str]:
        yield "mov w4, w4"
        if self._unrolled:
            yield from (f"ldrsw {offset}, [x3, #{4 * i}]" for i, offset in enumerate(_OFFSETS[: self.runs]))
        yield from ("1:", "ldpsw x5, x6, [x2], #8", "add x5, x1, x5", "add x6, x1, x6")
        if self._unrolled:
            sizes = [_PIECE] * (self.run_bytes // _PIECE)
            runs = zip(_OFFSETS, (("x9", "x10"), ("x16", "x17")) * self.runs, strict=False)
            pieces = [
                piece for offset, pointers in islice(runs, self.runs) for piece in _pieces(sizes, pointers, offset)
            ]
            yield from _move(pieces)
            yield f"add x0, x0, #{2 * self.runs * self.run_bytes}"
        else:
            yield from ("mov x7, x3", f"mov w8, #{self.runs}", "2:", "ldrsw x11, [x7], #4")
            yield from ("add x9, x5, x11", "add x10, x6, x11")
            yield from self._run()
            yield from ("subs w8, w8, #1", "b.ne 2b")
        yield from ("subs w4, w4, #1", "b.ne 1b", "ret")

    @property
    def _unrolled(self) -> bool:
        """Whether all runs of a pair are written out: few enough of them, and whole pieces."""
        pieces = self.runs * self.run_bytes // _PIECE
        return self.runs <= len(_OFFSETS) and self.run_bytes % _PIECE == 0 and pieces <= _UNROLLED

    def _run(self) -> Iterator[str]:
        """Moves a run of the pixels at x9 and x10, and x0 behind it."""
        size, loops = _PIECE * _BATCH, 0
        if self.run_bytes > _PIECE * _UNROLLED:
            loops = self.run_bytes // size
            yield from (f"mov w11, #{loops}", "3:")
            yield from _move(_pieces([_PIECE] * _BATCH))
            yield from (f"add x9, x9, #{size}", f"add x10, x10, #{size}", f"add x0, x0, #{2 * size}")
            yield from ("subs w11, w11, #1", "b.ne 3b")
        rest = self.run_bytes - loops * size
        yield from _move(_pieces([_PIECE] * (rest // _PIECE) + [size for size in (4, 2) if rest & size]))
        yield f"add x0, x0, #{2 * rest}"


@dataclass(frozen=True)
class _Piece:
    """``size`` bytes of each pixel from byte ``start`` behind ``pointers``, which begin a run at ``offset`` if it is given."""

    size: int
    start: int
    pointers: tuple[str, str]
    offset: str | None = None


def _pieces(sizes: Sequence[int], pointers: tuple[str, str] = ("x9", "x10"), offset: str | None = None) -> list[_Piece]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_Piece(size, at, pointers, None if at else offset) for size, at in zip(sizes, starts, strict=True)]


def _move(pieces: Sequence[_Piece]) -> Iterator[str]:
    """Moves ``pieces`` to x0, one after the other: the loads of one before the work on those before it."""
    to = 0
    for i in range(len(pieces) + 2):
        if i < len(pieces):
            piece, width = pieces[i], _WIDTHS[pieces[i].size][0]
            if piece.offset:
                yield from (
                    f"add {p}, {base}, {piece.offset}" for p, base in zip(piece.pointers, ("x5", "x6"), strict=True)
                )
            for half, pointer in enumerate(piece.pointers):
                yield f"ldr {width}{2 * (i % _BATCH) + half}, [{pointer}, #{piece.start}]"
        if 0 <= i - 1 < len(pieces):
            first, lanes = 2 * ((i - 1) % _BATCH), _WIDTHS[pieces[i - 1].size][2]
            yield f"zip1 v{first}.{lanes}, v{first}.{lanes}, v{first + 1}.{lanes}"
        if i >= 2:
            yield f"str {_WIDTHS[pieces[i - 2].size][1]}{2 * ((i - 2) % _BATCH)}, [x0, #{to}]"
            to += 2 * pieces[i - 2].size
