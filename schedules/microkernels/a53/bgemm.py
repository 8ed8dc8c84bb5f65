"""The binary product for the Cortex-A53, as counts of differing bits or as the bits of a comparison with bounds.

The arithmetic is that of ``bgemm_tile_a53``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.bgemm_tile import Tile, Touch

_OUT = "x2"


@dataclass(frozen=True)
class Counts:
    """``void symbol(panel, weights, uint16 *counts)``: counts [pixels][vectors][8].

    ``panel``: uint16 [ceil(pixels/2)][words][2], a pair of pixels side by side; ``weights``: uint16 [words][vectors][8].
    """

    pixels: int
    vectors: int
    words: int

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_a53"

    def assembly(self) -> str:
        """The routine."""
        tile = Tile(self.pixels, self.vectors, self.words)
        enter, leave = tile.saved()
        registers = {**tile.registers, _OUT: "counts"}
        store = [f"str q{acc}, [{_OUT}, #{16 * i}]" for i, acc in enumerate(tile.accumulators)]
        return asm.routine(
            self.symbol, [*enter, *tile.segments(_OUT), *asm.named("store", store), *leave, "ret"], registers
        )


@dataclass(frozen=True)
class Bits:
    """``void symbol(panel, weights, uint8 *out, int32 stride, bounds, const int32 *rows)``: counts below bounds, as bits.

    Panel and weights as for ``Counts``. Writes ``vectors`` bytes at ``out`` for the first pixel and ``stride`` bytes further
    on for each next one. ``bounds`` is uint16 [row][thresholds][stride * 8]; pixel i has row 0 where the field ``rows`` is
    "one", row ``rows[i]`` where it is "some", and row ``rows[0]`` + i where it is "each". Of several ``thresholds``, up to
    three, the count must be below an odd number of bounds.
    """

    pixels: int
    vectors: int
    words: int
    rows: str
    thresholds: int = 1

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        several = f"_x{self.thresholds}" if self.thresholds > 1 else ""
        return f"bk_bgemm_{self.pixels}x{self.vectors * 8}_k{self.words}_bits_{self.rows}{several}_a53"

    def assembly(self) -> str:
        """The routine."""
        tile = Tile(self.pixels, self.vectors, self.words)
        enter, leave = tile.saved()
        compare, pack = asm.named("compare", [*self._compare(tile)]), asm.named("pack bits", [*self._pack(tile)])
        lines = [*tile.segments("sp", self._touches()), *compare, *pack]
        if self.rows == "each":
            lines = ["ldrsw x5, [x5]", "madd x4, x5, x6, x4", *lines]
        pitch = {1: ["lsl x6, x3, #4"], 2: ["lsl x6, x3, #5"], 3: ["add x6, x3, x3, lsl #1", "lsl x6, x6, #4"]}
        registers = {
            **tile.registers,
            _OUT: "result",
            "x3": "bytes from pixel to pixel of the result",
            "x4": "bounds",
            **({} if self.rows == "one" else {"x5": "rows of the bounds"}),
            "x6": "bytes of a row of bounds",
            "sp": "room for counts",
        }
        lines = ["mov w3, w3", *pitch[self.thresholds], *lines]
        return asm.routine(self.symbol, [*enter, *tile.with_scratch(lines), *leave, "ret"], registers)

    def _touches(self) -> list[Touch]:
        """A row for every pixel streams from memory; few rows stay in the cache."""
        return [Touch("x4", "x17", "x6", -(-self.vectors // 4))] if self.rows == "each" else []

    def _compare(self, tile: Tile) -> Iterator[str]:
        """Masks in the accumulators: all ones where the count is below the bound."""
        shared = self.rows == "one"
        if self.rows == "some" and self.pixels > 1:
            # Inside the image all pixels have the same row.
            yield from self._same_row("90f")
            yield "madd x4, x8, x6, x4"
            yield from self._below(tile, range(self.pixels), "x4")
            yield from ("b 91f", "90:")
        if shared:
            yield from self._below(tile, range(self.pixels), "x4")
        for pixel in () if shared else range(self.pixels):
            if self.rows == "some":
                yield f"ldrsw x8, [x5, #{4 * pixel}]"
                yield "madd x8, x8, x6, x4"
            yield from self._below(tile, [pixel], "x8" if self.rows == "some" else "x4")
            if self.rows == "each":
                yield "add x4, x4, x6"
        yield "91:"

    def _same_row(self, otherwise: str) -> Iterator[str]:
        """x8 = the row of all pixels, or a jump."""
        yield from ("ldr x8, [x5]", "ror x15, x8, #32", "cmp x8, x15")
        for pixel in range(2, self.pixels - 1, 2):
            yield from (f"ldr x16, [x5, #{4 * pixel}]", "ccmp x8, x16, #0, eq")
        if self.pixels % 2:
            yield from (f"ldr w16, [x5, #{4 * (self.pixels - 1)}]", "ccmp w8, w16, #0, eq")
        yield from (f"b.ne {otherwise}", "sxtw x8, w8")

    def _below(self, tile: Tile, pixels: Iterable[int], row: str) -> Iterator[str]:
        """Compares ``pixels`` with the bounds at ``row``."""
        if self.thresholds > 1:
            yield from self._below_odd(tile, list(pixels), row)
            return
        bounds = tile.free[: self.vectors]
        yield from (f"ldr q{bound}, [{row}, #{16 * i}]" for i, bound in enumerate(bounds))
        for pixel in pixels:
            for vector, bound in enumerate(bounds):
                acc = tile.accumulators[pixel * self.vectors + vector]
                yield f"cmhi v{acc}.8h, v{bound}.8h, v{acc}.8h"

    def _below_odd(self, tile: Tile, pixels: Sequence[int], row: str) -> Iterator[str]:
        """As ``_below`` for several thresholds, whose bounds lie side by side: a vector of channels at a time."""
        bounds, masks = tile.free[: self.thresholds], tile.free[self.thresholds : 2 * self.thresholds - 1]
        rows = [row, "x15", "x16"][: self.thresholds]
        yield from (f"add {behind}, {before}, x3, lsl #4" for before, behind in pairwise(rows))
        for vector in range(self.vectors):
            yield from (f"ldr q{b}, [{at}, #{16 * vector}]" for b, at in zip(bounds, rows, strict=True))
            for acc in (tile.accumulators[pixel * self.vectors + vector] for pixel in pixels):
                yield from (f"cmhi v{m}.8h, v{b}.8h, v{acc}.8h" for m, b in zip(masks, bounds[1:], strict=True))
                yield f"cmhi v{acc}.8h, v{bounds[0]}.8h, v{acc}.8h"
                yield from (f"eor v{acc}.16b, v{acc}.16b, v{mask}.16b" for mask in masks)

    def _pack(self, tile: Tile) -> Iterator[str]:
        """Lanes' masks to bits, bytes in order of pixels, and their stores."""
        zero, powers = tile.free[0], tile.free[1]
        slots = 1 << (self.vectors - 1).bit_length()
        yield f"movi v{zero}.16b, #0"
        yield from ("mov x8, #0x0201", "movk x8, #0x0804, lsl #16", "movk x8, #0x2010, lsl #32")
        yield from ("movk x8, #0x8040, lsl #48", f"dup v{powers}.2d, x8")
        masks = []
        for pixel in range(self.pixels):
            row = tile.accumulators[pixel * self.vectors : (pixel + 1) * self.vectors]
            masks += [*row, *[zero] * (slots - self.vectors)]
        merged = list(_pairs(masks))
        yield from (f"uzp1 v{a}.16b, v{a}.16b, v{b}.16b" for a, b in merged)
        yield from (f"and v{a}.16b, v{a}.16b, v{powers}.16b" for a, _ in merged)
        masks = [a for a, _ in merged]
        for _ in range(3):
            merged = list(_pairs(masks))
            yield from (f"addp v{a}.16b, v{a}.16b, v{b}.16b" for a, b in merged)
            masks = [a for a, _ in merged]
        for pixel in range(self.pixels):
            yield from self._store(masks, pixel * slots)

    def _store(self, masks: Sequence[int], first: int) -> Iterator[str]:
        """Stores the ``vectors`` bytes from byte ``first`` of ``masks`` on and moves to the next pixel."""
        register, at = masks[first // 16], first % 16
        if self.vectors == 3:
            yield f"add x8, {_OUT}, #2"
            yield f"st1 {{v{register}.b}}[{at + 2}], [x8]"
        width, size = {1: ("b", 1), 2: ("h", 2), 3: ("h", 2), 4: ("s", 4), 8: ("d", 8)}[self.vectors]
        yield f"st1 {{v{register}.{width}}}[{at // size}], [{_OUT}], x3"


def _pairs(registers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours; a last one alone is its own neighbour."""
    for i in range(0, len(registers), 2):
        yield registers[i], registers[min(i + 1, len(registers) - 1)]
