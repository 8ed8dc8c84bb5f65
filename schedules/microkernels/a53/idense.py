"""A dense layer of whole numbers of 8 bits for the Cortex-A53: one row of numbers times panels of 8 rows of weights.

Weights are read once, in the order of memory, which is what such a layer waits for. Two products of 8 bits fit 16 bits:
``smull`` and ``smlal2`` multiply 16 numbers of a row, and ``sadalp`` adds neighbours to sums of 32 bits. At the end ``addp``
joins the four sums of each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.microkernels.a53.rescale import TABLE_BYTES, Constants, rescaled

#: Numbers of a row that are multiplied at a time, and the largest weight: two products with -128 fit 16 bits.
PIECE, LARGEST = 16, 127
#: Bytes by which weights are fetched ahead.
_FETCHED, _LINE = 768, 64
_SUMS, _X, _WEIGHTS, _PRODUCTS = 16, 0, (1, 2, 3, 4), (5, 6, 7, 24)
_CONSTANTS = Constants(factors=(25, 26), zero=27, low=28, high=29)


@dataclass(frozen=True)
class WholeDense:
    """``void symbol(out, x, weights, table, int64 pieces, int64 panels)``.

    ``x`` int8 [pieces * 16], ``weights`` int8 [panels][pieces][8][16], of magnitude 127 at most. Result p * 8 + o, int8, ends
    with the numbers of panel p of ``table`` (``rescale``). ``limits`` as ``WholeProduct`` has it.
    """

    limits: bool = True

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return f"bk_idense{'_clip' if self.limits else ''}_a53"

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        registers = {
            "x0": "results",
            "x1, x6": "the row, and where it is read",
            "x2": "weights",
            "x3": "table: biases, factors, limits",
            "x4, x7": "pieces, those left",
            "x5": "panels left",
            "v0": "16 numbers of the row",
            "v1-v4": "weights",
            "v5-v7, v24": "products",
            "v16-v23": "sums of 8 rows",
            "v25-v29": "factors and limits",
        }
        lines = ["0:", *self._begin(), "1:", *self._piece(), *self._end(), "subs x5, x5, #1", "b.ne 0b"]
        return asm.routine(self.symbol, [*enter, *lines, *leave, "ret"], registers)

    def _begin(self) -> Iterator[str]:
        yield from ("mov x6, x1", "mov x7, x4")
        yield from (f"movi v{_SUMS + row}.4s, #0" for row in range(CHANNELS))

    def _piece(self) -> Iterator[str]:
        yield f"ldr q{_X}, [x6], #{PIECE}"
        half = CHANNELS // 2
        for first in (0, half):
            pairs = list(zip(range(first, first + half), _WEIGHTS, _PRODUCTS, strict=True))
            yield from (f"ldr q{weight}, [x2, #{PIECE * row}]" for row, weight, _ in pairs)
            yield f"prfm pldl1keep, [x2, #{_FETCHED + _LINE * (first // half)}]"
            yield from (f"smull v{product}.8h, v{weight}.8b, v{_X}.8b" for _, weight, product in pairs)
            yield from (f"smlal2 v{product}.8h, v{weight}.16b, v{_X}.16b" for _, weight, product in pairs)
            yield from (f"sadalp v{_SUMS + row}.4s, v{product}.8h" for row, _, product in pairs)
        yield from (f"add x2, x2, #{PIECE * CHANNELS}", "subs x7, x7, #1", "b.ne 1b")

    def _end(self) -> Iterator[str]:
        """Four sums of each row become one; two registers hold those of all rows."""
        for count in (CHANNELS, CHANNELS // 2):
            for i in range(0, count, 2):
                yield f"addp v{_SUMS + i // 2}.4s, v{_SUMS + i}.4s, v{_SUMS + i + 1}.4s"
        yield "ldp q0, q1, [x3]"
        yield from (f"add v{_SUMS + half}.4s, v{_SUMS + half}.4s, v{half}.4s" for half in (0, 1))
        yield from _CONSTANTS.loads("x3")
        yield from rescaled([(_SUMS, _SUMS + 1)], [2], _CONSTANTS, self.limits)
        yield from (f"str d2, [x0], #{CHANNELS}", f"add x3, x3, #{TABLE_BYTES}")
