"""How sums of whole numbers become results of 8 bits on the Cortex-A53: to floats, times factors, rounded, moved, limited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Bytes of the numbers of 8 channels: biases int32[8], factors float32[8], zero int16[8], low int8[8], high int8[8].
TABLE_BYTES = 96


@dataclass(frozen=True)
class Constants:
    """Registers of what a table holds behind its biases: factors of the first and the last four channels, zero, limits."""

    factors: tuple[int, int]
    zero: int
    low: int
    high: int

    def loads(self, table: str) -> Iterator[str]:
        """Loads them from the table at register ``table``."""
        yield f"ldp q{self.factors[0]}, q{self.factors[1]}, [{table}, #32]"
        yield from (f"ldr q{self.zero}, [{table}, #64]", f"ldp d{self.low}, d{self.high}, [{table}, #80]")


def rescaled(
    longs: Sequence[tuple[int, int]], results: Sequence[int], constants: Constants, limits: bool
) -> Iterator[str]:
    """``results``, 8 bytes each, of sums of 32 bits: each pair of registers holds those of 8 channels.

    Without ``limits`` they are those of int8, which narrowing keeps to.
    """
    both = [register for pair in longs for register in pair]
    yield from (f"scvtf v{long}.4s, v{long}.4s" for long in both)
    yield from (f"fmul v{long}.4s, v{long}.4s, v{constants.factors[i % 2]}.4s" for i, long in enumerate(both))
    yield from (f"fcvtns v{long}.4s, v{long}.4s" for long in both)
    for half, suffix, lanes in ((0, "", "4h"), (1, "2", "8h")):
        for result, pair in zip(results, longs, strict=True):
            yield f"sqxtn{suffix} v{result}.{lanes}, v{pair[half]}.4s"
    yield from (f"sqadd v{result}.8h, v{result}.8h, v{constants.zero}.8h" for result in results)
    yield from (f"sqxtn v{result}.8b, v{result}.8h" for result in results)
    if not limits:
        return
    yield from (f"smax v{result}.8b, v{result}.8b, v{constants.low}.8b" for result in results)
    yield from (f"smin v{result}.8b, v{result}.8b, v{constants.high}.8b" for result in results)
