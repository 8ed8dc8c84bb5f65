"""A table of 256 bytes on the Cortex-A53: sixteen numbers at a time.

``tbl`` looks up 64 entries of a table in four registers and gives zero for other indices, in 4 cycles. The whole table stays in
16 registers; of each number four indices are made, of which one falls into its quarter of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm

#: Numbers that are looked up at a time.
PIECE = 16
_TABLE, _TURNS, _X, _INDICES, _RESULTS = 0, 16, 20, 21, (25, 26, 27, 28)
_QUARTERS = 4


@dataclass(frozen=True)
class LookUp:
    """``void symbol(out, x, const int8 *table, int64 pieces)``: out[i] = table[x[i] + 128], of ``pieces`` * 16 int8."""

    @property
    def symbol(self) -> str:
        """Its name in the object file."""
        return "bk_lookup_a53"

    def assembly(self) -> str:
        """The routine."""
        enter, leave = asm.saved(0, 0, vectors=True)
        registers = {
            "x0": "results",
            "x1": "numbers",
            "x2": "table",
            "x3": "pieces left",
            "v0-v15": "the table",
            "v16-v19": "what makes a number an index into each quarter of the table",
            "v20-v28": "numbers, indices and what is found",
        }
        return asm.routine(self.symbol, [*enter, *self._setup(), *self._loop(), *leave, "ret"], registers)

    def _setup(self) -> Iterator[str]:
        yield from (f"ldp q{_TABLE + i}, q{_TABLE + i + 1}, [x2, #{16 * i}]" for i in range(0, 16, 2))
        # The first entry is that of -128.
        yield from (f"movi v{_TURNS + i}.16b, #{0x80 ^ (i << 6)}" for i in range(_QUARTERS))

    def _loop(self) -> Iterator[str]:
        yield from ("1:", f"ldr q{_X}, [x1], #{PIECE}", "prfm pldl1keep, [x1, #256]")
        yield from (f"eor v{_INDICES + i}.16b, v{_X}.16b, v{_TURNS + i}.16b" for i in range(_QUARTERS))
        for i, result in enumerate(_RESULTS):
            first = _TABLE + 4 * i
            yield f"tbl v{result}.16b, {{v{first}.16b-v{first + 3}.16b}}, v{_INDICES + i}.16b"
        a, b, c, d = _RESULTS
        yield "subs x3, x3, #1"
        yield from (f"orr v{to}.16b, v{to}.16b, v{other}.16b" for to, other in ((a, b), (c, d), (a, c)))
        yield from (f"str q{a}, [x0], #{PIECE}", "b.ne 1b")
