"""Comparisons of floats with thresholds, packed to bits, for the Cortex-A53.

A batch is 64 comparisons: 16 vectors of 4 floats, which are a block of channels of one pixel or of several. Each vector is
an ``ldr d``, an ``ldr x`` beside a comparison and an ``ins`` beside the next ``ldr d``: a cycle, not the two of ``ldr q``.
Masks are narrowed to bytes, each lane keeps its power of two, and neighbours are added up three times: 54 operations of a
cycle each for 64 floats. Thresholds of channels are loaded for every batch. A batch reads memory in order where it can, for
the core's prefetcher follows one stream best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm

#: Comparisons in a batch.
BATCH = 64
#: Channels in a block.
BLOCKS = (64, 32, 16, 8)

_VECTORS = BATCH // 4
_POWERS, _FLIPS, _THRESHOLDS = 16, 17, 18
_POINTERS = [f"x{i}" for i in range(8, 16)]
_HIGH = ("x16", "x17")


@dataclass(frozen=True)
class Binarize:
    """``void symbol(src, dst, int32 count, int32 src_stride, int32 dst_stride, thresholds, flips)``.

    bit = (x >= threshold) xor flip, for ``count`` pixels of ``src_stride`` / 4 floats, whose bits fill ``dst_stride`` bytes.
    A batch takes a block of ``block`` channels of ``pixels`` pixels; there are at least so many, and whole blocks.
    ``thresholds``: float32 [channels], or one that is ``shared``; ``flips``: uint8 [blocks][8], the bits of a batch.
    """

    block: int
    shared: bool
    #: The least positive threshold that it tells from zero, 0 for any.
    smallest: ClassVar[float] = 0.0

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_binarize_{self.block}{'_shared' if self.shared else ''}_a53"

    @property
    def pixels(self) -> int:
        """Pixels in a batch."""
        return BATCH // self.block

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        lines = [*self._setup(), "1:", *self._begin(), "2:", *self._batch(), *self._store(), "b.ne 2b", *self._next()]
        registers = {
            "x0": "floats",
            "x1": "bits",
            "x2": "pixels left",
            "x3, x4": "bytes from pixel to pixel of floats and of bits",
            "x5": "thresholds",
            "x6": "flips",
            "x7": "blocks of channels left",
            ", ".join(_POINTERS[: self.pixels]): "pixels of the batch",
            ", ".join(_HIGH): "upper halves of vectors on their way",
            asm.span(range(_VECTORS)): "64 floats, then their bits",
            f"v{_POWERS}": "powers of two",
            f"v{_FLIPS}": "flips of the batch",
            f"v{_THRESHOLDS}" + ("" if self.shared else f"-v{_THRESHOLDS + min(self.block // 4, 8) - 1}"): "thresholds",
        }
        return asm.routine(self.symbol, [*enter, *lines, *leave, "ret"], registers)

    def _setup(self) -> Iterator[str]:
        yield from ("sxtw x2, w2", "sxtw x3, w3", "sxtw x4, w4")
        yield from ("mov x8, #0x0201", "movk x8, #0x0804, lsl #16", "movk x8, #0x2010, lsl #32")
        yield from ("movk x8, #0x8040, lsl #48", f"dup v{_POWERS}.2d, x8")
        if self.shared:
            yield f"ld1r {{v{_THRESHOLDS}.4s}}, [x5]"

    def _begin(self) -> Iterator[str]:
        """The first block of the pixels at x0; x7 counts blocks."""
        yield f"mov {_POINTERS[0]}, x0"
        for i in range(1, self.pixels):
            yield f"add {_POINTERS[i]}, {_POINTERS[i - 1]}, x3"
        yield f"lsr x7, x3, #{(4 * self.block).bit_length() - 1}"

    def _batch(self) -> Iterator[str]:
        """64 bits in v0."""
        each = self.block // 4
        yield f"ldr d{_FLIPS}, [x6], #8"
        places = [(_POINTERS[i // each], 16 * (i % each)) for i in range(_VECTORS)]
        yield _high(0, places)
        for i in range(_VECTORS + 2):
            if i < each and not self.shared:
                yield f"ldr q{self._threshold(i)}, [x5, #{16 * i}]"
            if i < _VECTORS:
                yield f"ldr d{i}, [{places[i][0]}, #{places[i][1]}]"
            if 1 <= i <= _VECTORS:
                yield f"ins v{i - 1}.d[1], {_HIGH[(i - 1) % 2]}"
            if i >= 2:
                yield f"fcmge v{i - 2}.4s, v{i - 2}.4s, v{self._threshold(i - 2)}.4s"
            if i + 1 < _VECTORS:
                yield _high(i + 1, places)
        if not self.shared:
            yield f"add x5, x5, #{16 * each}"
        pointers = iter(_POINTERS[: self.pixels])
        for step, lanes in ((1, "8h"), (2, "16b")):
            for i in range(0, _VECTORS, 2 * step):
                yield f"uzp1 v{i}.{lanes}, v{i}.{lanes}, v{i + step}.{lanes}"
                yield from (f"add {pointer}, {pointer}, #{4 * self.block}" for pointer in islice(pointers, 1))
        yield from (f"and v{i}.16b, v{i}.16b, v{_POWERS}.16b" for i in range(0, _VECTORS, 4))
        for step in (4, 8):
            yield from (f"addp v{i}.16b, v{i}.16b, v{i + step}.16b" for i in range(0, _VECTORS, 2 * step))
        yield "addp v0.16b, v0.16b, v0.16b"
        yield "subs x7, x7, #1"
        yield f"eor v0.8b, v0.8b, v{_FLIPS}.8b"

    def _threshold(self, i: int) -> int:
        """The register of vector ``i``'s thresholds. Of 16 vectors the last take those of the first, long compared."""
        return _THRESHOLDS if self.shared else _THRESHOLDS + i % (self.block // 4) % 8

    def _store(self) -> Iterator[str]:
        lane = {64: "d", 32: "s", 16: "h", 8: "b"}[self.block]
        yield "mov x16, x1"
        yield from (f"st1 {{v0.{lane}}}[{i}], [x16], x4" for i in range(self.pixels))
        yield f"add x1, x1, #{self.block // 8}"

    def _next(self) -> Iterator[str]:
        """Moves on to the next pixels; the last ones are done together with some before them, once more."""
        yield f"subs x2, x2, #{self.pixels}"
        yield "b.eq 3f"
        yield f"mov x0, {_POINTERS[self.pixels - 1]}"
        yield f"lsr x16, x3, #{(4 * self.block).bit_length() - 1}"
        yield "sub x6, x6, x16, lsl #3"
        if not self.shared:
            yield "sub x5, x5, x3"
        yield from ["add x1, x1, x4"] * (self.pixels - 1)
        if self.pixels > 1:
            yield from (f"cmp x2, #{self.pixels}", "b.ge 1b")
            yield from (f"sub x7, x2, #{self.pixels}", "madd x0, x7, x3, x0", "madd x1, x7, x4, x1")
            yield f"mov x2, #{self.pixels}"
        yield from ("b 1b", "3:")


def _high(i: int, places: list[tuple[str, int]]) -> str:
    return f"ldr {_HIGH[i % 2]}, [{places[i][0]}, #{places[i][1] + 8}]"
