"""Exponentials of a row for the Cortex-A53, with their sum: what a softmax is made of.

C call: ``(float *out, const float *row, int64 blocks, float *most, float *total)``, of ``blocks`` times 16 numbers: ``*most``
becomes the greatest of it and them; then ``out[i] = e^(row[i] - *most) * 2^64``, and ``*total`` is their sum. ``row`` may be
``out``.

e^-a = 2^n * e^r as in ``schedules.exponentials``: n is the nearest whole number that adding 1.5*2^23 leaves in the low bits,
r at most ln(2)/2 of either sign; the factor 2^64 keeps what is rounded away at the end from being subnormal here. Four vectors
go side by side, stage by stage: a stage of four is as long as the latency of an addition, two as that of a product that another
one reads. Numbers are loaded as pairs of integers beside arithmetic, and moved over in the two places where results would
be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitkiln.schedules.exponentials import LIFT
from bitkiln.schedules.microkernels.a53 import asm, four

#: Registers of each vector's number, power, square (before that n), and the polynomial's two halves.
_X, _POWER, _SQUARE, _LOW, _HIGH, _SUM = four.registers(6)
_MOST, _LEAST, _ROUND, _C2, _C4, _FACTORS = range(24, 30)
#: e^r = 1 + r + r^2 (c2 + c3 r + c4 r^2 + c5 r^3), |r| <= 0.347, relative error 1.1e-7.
_POLYNOMIAL = (0.4999923, 0.16667116, 0.041890217, 0.00831242)
#: log2(e), -ln(2).
_LOG2E, _LN2 = 1.4426950408889634, -0.6931471805599453
#: Below, e^-a is nothing.
_END = -104.5


@dataclass(frozen=True)
class Decay:
    """The micro-kernel."""

    @property
    def symbol(self) -> str:
        """Its name."""
        return "bk_decay_a53"

    def assembly(self) -> str:
        """Its text."""
        enter, leave = asm.saved(19, 20, vectors=True)
        c2, c3, c4, c5 = _POLYNOMIAL
        lines = [
            *enter,
            *_greatest(),
            *four.numbers("w15", (_LEAST, _END), (_ROUND, 1.5 * 2.0**23 + 127 + LIFT), (_C2, c2), (_C4, c4)),
            *(
                line
                for at, value in enumerate((_LOG2E, _LN2, c3, c5))
                for line in four.lane("w15", _FACTORS, at, value)
            ),
            *(f"movi v{register}.16b, #0" for register in (*_SUM, *_POWER)),
            *(f"ldr q{_HIGH[i]}, [x1, #{16 * i}]" for i in four.VECTORS),
            # Where the results go; the first stores are of no block, and are replaced.
            "mov x5, x0",
            "1:",
            *_loop(),
            "b.gt 1b",
            *(f"fadd v{_SUM[i]}.4s, v{_SUM[i]}.4s, v{_POWER[i]}.4s" for i in four.VECTORS),
            *(f"str q{_POWER[i]}, [x5, #{16 * i}]" for i in four.VECTORS),
            *_combined("fadd", _SUM),
            f"str s{_SUM[0]}, [x4]",
            *leave,
            "ret",
        ]
        return asm.routine(self.symbol, lines, _registers())


def _greatest() -> list[str]:
    """Of the row and the number at x3, to there and to all lanes of a register."""
    loads = [f"ldp q{_X[i]}, q{_X[i + 1]}, [x5, #{16 * i}]" for i in (0, 2)]
    return [
        *(f"ld1r {{v{register}.4s}}, [x3]" for register in _SUM),
        "mov x5, x1",
        "mov x6, x2",
        "2:",
        *loads,
        "add x5, x5, #64",
        "subs x6, x6, #1",
        *four.each("fmax", _SUM, _SUM, _X),
        "b.gt 2b",
        *_combined("fmax", _SUM),
        f"dup v{_MOST}.4s, v{_SUM[0]}.s[0]",
        f"str s{_SUM[0]}, [x3]",
    ]


def _combined(name: str, vectors: Sequence[int]) -> list[str]:
    """All lanes of four vectors as the first of the first."""
    a, b, c, d = vectors
    pairs = ((a, a, b), (c, c, d), (a, a, c))
    halves = [f"{name}p v{a}.4s, v{a}.4s, v{a}.4s"] * 2
    return [*(f"{name} v{t}.4s, v{x}.4s, v{y}.4s" for t, x, y in pairs), *halves]


def _loop() -> list[str]:
    """A block: what is left of the one before, its own arithmetic, and the loads of the next one."""
    words = [f"x{6 + at}" for at in range(8)]
    loads = [f"ldp {words[2 * i]}, {words[2 * i + 1]}, [x1, #{16 * i}]" for i in four.VECTORS]
    stores = [f"str q{_POWER[i]}, [x5, #{16 * i}]" for i in four.VECTORS]
    # The last block is loaded again instead of what lies behind it.
    ahead = ["subs x2, x2, #1", "add x14, x1, #64", "csel x1, x14, x1, gt"]
    return [
        *four.each("fsub", _X, _HIGH, [_MOST] * 4),
        *asm.beside(four.each("fmax", _X, _X, [_LEAST] * 4), ahead),
        *asm.beside(four.each("fadd", _SUM, _SUM, _POWER), stores),
        *asm.beside(four.copies(_POWER, _ROUND), ["mov x5, x0", "add x0, x0, #64"]),
        *asm.beside(four.by_lane("fmla", _POWER, _X, _FACTORS, 0), loads),
        *four.copies(_HIGH, _C4),
        *four.each("fsub", _SQUARE, _POWER, [_ROUND] * 4),
        *(f"shl v{r}.4s, v{r}.4s, #23" for r in _POWER),
        *four.by_lane("fmla", _X, _SQUARE, _FACTORS, 1),
        *four.copies(_LOW, _C2),
        *four.by_lane("fmla", _HIGH, _X, _FACTORS, 3),
        *four.each("fmul", _SQUARE, _X, _X),
        *four.by_lane("fmla", _LOW, _X, _FACTORS, 2),
        *four.each("fmla", _LOW, _HIGH, _SQUARE),
        *(f"fmov d{_HIGH[i]}, {words[2 * i]}" for i in four.VECTORS),
        *four.each("fmla", _X, _LOW, _SQUARE),
        *(f"ins v{_HIGH[i]}.d[1], {words[2 * i + 1]}" for i in four.VECTORS),
        *four.each("fmla", _POWER, _POWER, _X),
        "cmp x2, #0",
    ]


def _registers() -> dict[str, str]:
    return {
        "x0, x5": "results of this block, and of the one before",
        "x1": "numbers of the next block",
        "x2": "blocks left",
        "x6-x13": "numbers on their way",
        asm.span(_X): "x less the greatest, then r, then e^r - 1",
        asm.span(_POWER): "2^n, then the result",
        asm.span(_SQUARE): "n, then r^2",
        f"{asm.span(_LOW)}, {asm.span(_HIGH)}": "the polynomial's halves; the latter also the next numbers",
        asm.span(_SUM): "sums",
        f"v{_MOST}-v{_FACTORS}": "constants",
    }
