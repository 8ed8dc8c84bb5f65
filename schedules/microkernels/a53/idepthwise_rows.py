"""Depthwise convolution of whole numbers of 8 bits by rows of the kernel, for the Cortex-A53: windows larger than 3x3.

A tile is some neighbours of a row of results, of 8 channels. The kernel's rows are taken one after the other: each row's
weights are loaded for the tile, then its columns of the image, each while the one before is multiplied; a column is widened
to 16 bits and meets every result it belongs to. Sums have 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.rescale import Constants, rescaled

#: The widest kernel whose rows of weights fit the registers.
MOST_COLUMNS = 7
#: Columns of the image in flight.
_FLIGHT = 3
_SUMS, _WEIGHTS, _COLUMNS, _BIAS = 0, 14, 21, 24
_CONSTANTS = Constants(factors=(26, 27), zero=28, low=29, high=30)


@dataclass(frozen=True)
class WholeDepthwiseRows:
    """``void symbol(out, int64 pitch, image, int64 row, int64 column, weights, table, int64 tiles)``.

    Writes a row of results of 8 channels, int8: neighbours lie ``pitch`` bytes apart in ``out``, and in the image int8 rows
    ``row`` and pixels ``column`` bytes. ``weights`` int16 [kh][kw][8], ``table`` as ``rescale`` has it. A tile is ``tile``
    results, at most 7; ``rest``: how many results the last of several tiles adds; it repeats others before them. ``limits`` as
    ``WholeProduct`` has it.
    """

    kernel: tuple[int, int]
    stride: int
    tile: int
    rest: int
    limits: bool = True

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        window = f"{self.kernel[0]}x{self.kernel[1]}s{self.stride}"
        return f"bk_idepthwise_rows_{window}t{self.tile}r{self.rest}{'_clip' if self.limits else ''}_a53"

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        registers = {
            "x0": "results",
            "x1": "bytes from result to result",
            "x2, x8": "the image at the tile, and at a row of the kernel",
            "x3, x4": "bytes from row to row and from pixel to pixel of the image",
            "x5, x9": "weights, those of the next row",
            "x6": "table: biases, factors, limits",
            "x7": "tiles left",
            "x10": "rows of the kernel left",
            "x11": "the next column",
            "x12": "a result",
            "x13": "bytes",
            "v0-v13": "sums",
            "v14-v20": "a row of weights",
            "v21-v23": "columns of the image",
            "v24, v25": "biases",
            "v26-v30": "factors and limits",
        }
        lines = [*enter, *self._setup(), "1:", *self._begin(), "2:", *self._row(), *self._end(), *self._next(), *leave]
        return asm.routine(self.symbol, [*lines, "ret"], registers)

    def _setup(self) -> Iterator[str]:
        yield f"ldp q{_BIAS}, q{_BIAS + 1}, [x6]"
        yield from _CONSTANTS.loads("x6")

    def _begin(self) -> Iterator[str]:
        yield from ("mov x8, x2", "mov x9, x5", f"mov x10, #{self.kernel[0]}")
        for i in range(self.tile):
            yield from (f"mov v{_SUMS + 2 * i + half}.16b, v{_BIAS + half}.16b" for half in (0, 1))

    def _row(self) -> Iterator[str]:
        """A row of the kernel: all columns that the tile reads of a row of the image."""
        width = self.stride * (self.tile - 1) + self.kernel[1]
        yield from ("mov x11, x8", "add x8, x8, x3")
        yield from (self._load(column) for column in range(min(2, width)))
        for column in range(self.kernel[1]):
            yield f"ldr q{_WEIGHTS + column}, [x9, #{16 * column}]"
        yield self._widen(0)
        yield from (f"add x9, x9, #{16 * self.kernel[1]}", "subs x10, x10, #1")
        for column in range(width):
            products = list(self._products(column))
            half = len(products) // 2
            yield from products[:half]
            if column + 2 < width:
                yield self._load(column + 2)
            if column + 1 < width:
                yield self._widen(column + 1)
            yield from products[half:]
        yield "b.ne 2b"

    def _load(self, column: int) -> str:
        return f"ld1 {{v{_COLUMNS + column % _FLIGHT}.8b}}, [x11], x4"

    def _widen(self, column: int) -> str:
        register = _COLUMNS + column % _FLIGHT
        return f"sshll v{register}.8h, v{register}.8b, #0"

    def _products(self, column: int) -> Iterator[str]:
        register = _COLUMNS + column % _FLIGHT
        for result in range(self.tile):
            tap = column - self.stride * result
            if 0 <= tap < self.kernel[1]:
                total, weight = _SUMS + 2 * result, _WEIGHTS + tap
                yield f"smlal v{total}.4s, v{register}.4h, v{weight}.4h"
                yield f"smlal2 v{total + 1}.4s, v{register}.8h, v{weight}.8h"

    def _end(self) -> Iterator[str]:
        longs = [(_SUMS + 2 * i, _SUMS + 2 * i + 1) for i in range(self.tile)]
        results = range(_WEIGHTS, _WEIGHTS + self.tile)
        yield from rescaled(longs, results, _CONSTANTS, self.limits)
        yield "mov x12, x0"
        for result in results:
            yield f"str d{result}, [x12]"
            if result != results[-1]:
                yield "add x12, x12, x1"

    def _next(self) -> Iterator[str]:
        yield from ("subs x7, x7, #1", "b.eq 3f")
        step = f"mov x13, #{self.tile}"
        if self.rest:
            yield from (step, f"mov x12, #{self.rest}", "cmp x7, #1", "csel x13, x12, x13, eq")
        else:
            yield step
        yield from ("madd x0, x13, x1, x0", "mul x12, x13, x4", f"mov x13, #{self.stride}")
        yield from ("madd x2, x12, x13, x2", "b 1b", "3:")
