"""A stack of short matrix products for the Cortex-A53, one after the other without a pause between them.

C call: ``(float *out, int64 out_pitch, const float *image, const int32 *pixels, const float *weights, int64 count, int64
next_out)``, pitches and offsets in bytes. For i < ``count``, with K = ``depth``:
``out[i][m][n] = sum over k < K of image[pixels[m] + i*K + k] * weights[i][k][n]``; out[i] lies ``next_out`` after out[i-1].

The loop of ``sgemm_a53`` spends a hundred cycles to begin and end a sum. Here all steps of a sum are unrolled, values are
loaded for the next product while one ends, and a product's sums are stored as the next one's first multiplications replace
them. 64 bytes behind the last image values and ``AHEAD_BYTES`` behind the weights may be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from bitkiln.schedules.microkernels.a53 import asm
from bitkiln.schedules.microkernels.a53.sgemm import (
    CURRENT,
    CURRENT_HALF,
    FAR,
    IMAGE_AHEAD,
    LEFT,
    NEXT,
    POINTERS,
    STEP,
    Sgemm,
    inner_loop,
    registers,
)

#: The longest sum: its code should not fill the instruction cache.
MOST_DEPTH = 64
_STORE = ("x2", "x3", "x7", "x29", "x30")


@dataclass(frozen=True)
class SgemmStack:
    """The micro-kernel of one tile size and sum length, a multiple of ``STEP``."""

    tile_m: int
    tile_n: int
    depth: int

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_sgemm_stack_{self.tile_m}x{self.tile_n}_k{self.depth}_a53"

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)


@cache
def _assembly(stack: SgemmStack) -> str:
    enter, leave = asm.saved(19, 30, vectors=True)
    tile = Sgemm(stack.tile_m, stack.tile_n, reach=True)
    loop = inner_loop(Sgemm(stack.tile_m, stack.tile_n, reach=True))
    pointers = POINTERS[: stack.tile_m]
    count = f"subs {LEFT}, {LEFT}, #1"
    steps = [list(loop.iteration()) for _ in range(stack.depth // STEP)]
    for step in steps[:-1]:
        step.remove(count)
    lines = [
        *enter,
        *(f"ldr w{x}, [x3, #{4 * m}]" for m, x in enumerate(pointers)),
        *(f"add x{x}, x2, w{x}, sxtw" for x in pointers),
        f"mov {LEFT}, x5",
        "mov x5, #0",
        f"mov {CURRENT}, #0",
        f"mov {CURRENT_HALF}, #8",
        f"mov {NEXT}, #16",
        *([f"mov {FAR}, #{IMAGE_AHEAD}"] if tile.fetches_image else []),
        *loop.head(),
        "1:",
        *_store_pointers(tile),
        # The first time there is nothing to store: what lands in out[0] is replaced the second time.
        "add x0, x0, x5",
        "mov x5, x6",
        *_restarted(tile, steps[0]),
        *(line for step in steps[1:] for line in step),
        "b.gt 1b",
        *_store_pointers(tile),
        *(line for m in range(tile.tile_m) for v in range(tile.vectors) for line in _store(tile, m, v)),
        *leave,
        "ret",
    ]
    return asm.routine(
        stack.symbol, lines, registers(tile) | {", ".join(_STORE[: tile.vectors]): "results on their way"}
    )


def _store_pointers(tile: Sgemm) -> list[str]:
    """One pointer for each vector of output channels: it goes from pixel to pixel."""
    return ["mov x2, x0", *(f"add {_STORE[v]}, x0, #{16 * v}" for v in range(1, tile.vectors))]


def _store(tile: Sgemm, m: int, vector: int) -> list[str]:
    return [f"str q{tile.sum(m, vector)}, [{_STORE[vector]}]", f"add {_STORE[vector]}, {_STORE[vector]}, x1"]


def _restarted(tile: Sgemm, step: list[str]) -> list[str]:
    """The first step of a sum: stores what a register held before its first product replaces it."""
    waiting = {tile.sum(m, v): (m, v) for m in range(tile.tile_m) for v in range(tile.vectors)}
    lines = []
    for line in step:
        if isinstance(line, asm.Product) and line.total in waiting:
            lines += _store(tile, *waiting.pop(line.total))
            line = line.beginning()
        lines.append(line)
    return lines
