"""Depthwise 3x3 convolution of whole numbers of 8 bits for the Cortex-A53: a row of results of 8 channels.

A tile is 4 neighbours. Its columns of the image are loaded one after the other, each while the one before is multiplied:
3 loads, 3 widenings to 16 bits and, for each result that a column belongs to, 6 products with sums of 32 bits. Weights stay in
registers for the whole row. No sum can leave 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.microkernels.a53.rescale import Constants, rescaled

#: Results of a tile, and rows and columns of the kernel.
TILE, TAPS = 4, 3
#: Columns in flight, sums, biases, weights.
_COLUMNS, _SUMS, _BIAS, _WEIGHTS = 0, 6, 14, 16
_CONSTANTS = Constants(factors=(25, 26), zero=27, low=28, high=29)
_ROWS = ("x2", "x3", "x4")
_TAKEN = ("x11", "x12", "x13")


@dataclass(frozen=True)
class WholeDepthwise:
    """``void symbol(out, int64 pitch, row0, row1, row2, weights, table, int64 tiles, next)``.

    Writes a row of results of 8 channels, int8; a pixel's neighbour lies ``pitch`` bytes further, in the rows of the image
    int8 as well as in the results. ``weights`` int16 [3][3][8], ``table`` as ``rescale`` has it. ``rest``: how many results
    the last of several tiles adds; it repeats others before them. ``limits`` as ``WholeProduct`` has it.
    Every tile fetches ``fetched`` bytes more of the image from ``next`` on.
    """

    stride: int
    rest: int
    limits: bool = True

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_idepthwise_s{self.stride}r{self.rest}{'_clip' if self.limits else ''}_a53"

    @property
    def fetched(self) -> int:
        """Bytes that a tile fetches: what it uses up of the image where every row is used once more by the rows below."""
        return TILE * CHANNELS * self.stride * self.stride

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        registers = {
            "x0": "results",
            "x1": "bytes from pixel to pixel",
            "x2, x3, x4": "rows of the image",
            "x5": "weights",
            "x6": "table: biases, factors, limits",
            "x7": "tiles left",
            "x8": "what is fetched",
            "x9, x10": "bytes from tile to tile, of the image and of the results",
            "x11, x12, x13": "the next column",
            "x14": "a result",
            "v0-v5": "two columns of the image",
            "v6-v13": "sums",
            "v14, v15": "biases",
            "v16-v24": "weights",
            "v25-v29": "factors and limits",
        }
        lines = [*enter, *self._setup(), "1:", *self._tile(), *self._next(), *leave, "ret"]
        return asm.routine(self.symbol, lines, registers)

    @property
    def _width(self) -> int:
        """Columns that a tile reads."""
        return self.stride * (TILE - 1) + TAPS

    def _setup(self) -> Iterator[str]:
        yield f"ldp q{_BIAS}, q{_BIAS + 1}, [x6]"
        yield from _CONSTANTS.loads("x6")
        yield from (f"ldr q{_WEIGHTS + i}, [x5, #{16 * i}]" for i in range(TAPS * TAPS))
        yield from ("lsl x10, x1, #2", f"lsl x9, x1, #{2 if self.stride == 1 else 3}")
        yield f"ldr x8, [sp, #{asm.frame_bytes(0, 0, vectors=True)}]"

    def _tile(self) -> Iterator[str]:
        yield from (f"mov {taken}, {row}" for taken, row in zip(_TAKEN, _ROWS, strict=True))
        yield from self._load(0)
        for i in range(TILE):
            yield from (f"mov v{_SUMS + 2 * i + half}.16b, v{_BIAS + half}.16b" for half in (0, 1))
        yield from self._widen(0)
        for column in range(self._width):
            last = column + 1 == self._width
            yield from () if last else self._load(column + 1)
            fetch = [f"prfm pldl1keep, [x8, #{at}]" for at in range(0, self.fetched, 64)] if column == 1 else []
            yield from asm.beside(
                list(self._multiply(column)), [*fetch, *([f"add x8, x8, #{self.fetched}"] * bool(fetch))]
            )
            yield from () if last else self._widen(column + 1)
        longs = [(_SUMS + 2 * i, _SUMS + 2 * i + 1) for i in range(TILE)]
        results = range(_COLUMNS, _COLUMNS + TILE)
        yield from rescaled(longs, results, _CONSTANTS, self.limits)
        yield "mov x14, x0"
        for result in results:
            yield f"str d{result}, [x14]"
            if result != results[-1]:
                yield "add x14, x14, x1"

    def _column(self, column: int) -> list[int]:
        """Registers of the three rows of a column."""
        return [_COLUMNS + TAPS * (column % 2) + row for row in range(TAPS)]

    def _load(self, column: int) -> Iterator[str]:
        for register, pointer in zip(self._column(column), _TAKEN, strict=True):
            yield f"ld1 {{v{register}.8b}}, [{pointer}], x1"

    def _widen(self, column: int) -> Iterator[str]:
        yield from (f"sshll v{register}.8h, v{register}.8b, #0" for register in self._column(column))

    def _multiply(self, column: int) -> Iterator[str]:
        for row, register in enumerate(self._column(column)):
            for result in range(TILE):
                tap = column - self.stride * result
                if 0 <= tap < TAPS:
                    weight, total = _WEIGHTS + TAPS * row + tap, _SUMS + 2 * result
                    yield f"smlal v{total}.4s, v{register}.4h, v{weight}.4h"
                    yield f"smlal2 v{total + 1}.4s, v{register}.8h, v{weight}.8h"

    def _next(self) -> Iterator[str]:
        yield from ("subs x7, x7, #1", "b.eq 2f")
        yield from (f"add {row}, {row}, x9" for row in _ROWS)
        yield "add x0, x0, x10"
        if self.rest:
            back = TILE - self.rest
            yield from ("cmp x7, #1", "b.ne 1b", f"mov x14, #{back}", "msub x0, x14, x1, x0")
            yield f"mov x14, #{back * self.stride}"
            yield from (f"msub {row}, x14, x1, {row}" for row in _ROWS)
        yield from ("b 1b", "2:")
