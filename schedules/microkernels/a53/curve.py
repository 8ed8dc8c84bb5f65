"""Functions of one number that are made of exponentials, over floats in place, for the Cortex-A53.

C call: ``(float *x, int64 count)``: each of ``count`` floats becomes its function.

Each is x / (1 + e^-t) or a kin of it, with t = x, or a polynomial of x for the two GELUs. e^-t = 2^n * e^-r as in
``schedules.exponentials``; 1 / d begins with ``frecpe``, whose 8 bits two of Newton's steps make 24. Four vectors go side by
side, stage by stage. Numbers are loaded as pairs of integers beside arithmetic; results are stored in the next block. What
is no whole block is computed on the stack.

Beyond ``limit`` t is taken for the limit: results are 0 or the function's end to 1e-37. Errors are those of
``schedules.exponentials``: at most 4 units in the last place, or 1.2e-7 where that is more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm, four

#: Registers of each vector: the number; t, then r and what e^-r lacks of 1; power; n and squares; the polynomials' halves.
_X, _T, _POWER, _SQUARE, _LOW, _HIGH = four.registers(6)
#: Constants: limits, what rounds, 1; then numbers by lanes.
_MOST, _LEAST, _ROUND, _ONE, _EXP, _REST, _FIT, _FIT2 = range(24, 32)
#: e^-r = 1 - r + r^2 (c0 - c1 r + c2 r^2 - c3 r^3), |r| <= 0.347, relative error 1.1e-7; with a fifth number 3e-9.
_SHORT = (0.4999923, -0.16667116, 0.041890217, -0.00831242)
_LONG = (0.49999994, -0.1666652, 0.041668393, -0.008368781, 0.0013814465)
_LOG2E, _LN2 = -1.4426950408889634, 0.6931471805599453
#: log(p / (1 - p)) of the share p of normal numbers below x, divided by x, in powers of x^2: a minimax fit of GELU's error,
#: 7e-8, for |x| <= 5.5; at 6.9 it is 78, beyond GELU's end.
_NORMAL = (1.59576845, 0.0726685673, -6.62616003e-05, -1.10479938e-04, 7.93817526e-06, -2.66890510e-07, 3.61118735e-09)
#: The same of GELU's form with tanh: sqrt(8 / pi) * (1 + 0.044715 x^2).
_NORMAL_TANH = (1.5957691216, 0.07135481282)


@dataclass(frozen=True)
class _Function:
    """``limit``: of |x|; ``before``: from x limited, in _T, to t in _T; ``after``: from e^-t to the result in _HIGH."""

    limit: float
    exponential: tuple[float, ...]
    fit: tuple[float, ...]
    before: Callable[[], list[str]]
    after: Callable[[], list[str]]


@dataclass(frozen=True)
class Curve:
    """The micro-kernel of the step ``function``, one of ``FUNCTIONS``."""

    function: str

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"bk_{self.function}_a53"

    def assembly(self) -> str:
        """Its text."""
        function = FUNCTIONS[self.function]
        enter, leave = asm.saved(0, 0, vectors=True)
        lanes = (_LOG2E, _LN2, *function.exponential)
        words = [(_EXP + at // 4, at % 4, value) for at, value in enumerate(lanes)]
        words += [(_FIT + at // 4, at % 4, value) for at, value in enumerate(function.fit)]
        limits = ((_MOST, function.limit), (_LEAST, -function.limit))
        lines = [
            *enter,
            f"sub sp, sp, #{4 * four.BLOCK}",
            *four.numbers("w15", *limits, (_ROUND, 1.5 * 2.0**23 + 127), (_ONE, 1.0)),
            *(line for register, at, value in words for line in four.lane("w15", register, at, value)),
            f"and x3, x1, #{four.BLOCK - 1}",
            "lsr x2, x1, #4",
            # Where what is no whole block lies, once that is being computed.
            "mov x4, #0",
            "mov x1, x0",
            "cbz x2, 2f",
            "0:",
            *_loads(),
            # The first stores replace numbers that are loaded already.
            "mov x5, x0",
            "1:",
            *_block(function),
            "b.gt 1b",
            *(f"str q{_HIGH[i]}, [x5, #{16 * i}]" for i in four.VECTORS),
            "2:",
            "cbz x3, 6f",
            "cbnz x4, 4f",
            # The rest: to the stack,
            "mov x4, x0",
            *_copy_words("3", "x4", "sp"),
            "mov x0, sp",
            "mov x1, sp",
            "mov x2, #1",
            "b 0b",
            # and back.
            "4:",
            *_copy_words("5", "sp", "x4"),
            "6:",
            f"add sp, sp, #{4 * four.BLOCK}",
            *leave,
            "ret",
        ]
        return asm.routine(self.symbol, lines, _registers())


def _copy_words(label: str, source: str, target: str) -> list[str]:
    """x3 floats."""
    step = [f"ldr w6, [{source}, x7, lsl #2]", f"str w6, [{target}, x7, lsl #2]", "add x7, x7, #1", "cmp x7, x3"]
    return ["mov x7, #0", f"{label}:", *step, f"b.lt {label}b"]


def _loads() -> list[str]:
    return [f"ldp x{6 + 2 * i}, x{7 + 2 * i}, [x1, #{16 * i}]" for i in four.VECTORS]


def _block(function: _Function) -> list[str]:
    """A block: stores of the one before, its own arithmetic, and the loads of the next one."""
    stores = [f"str q{_HIGH[i]}, [x5, #{16 * i}]" for i in four.VECTORS]
    # The last block is loaded again instead of what lies behind it.
    ahead = ["subs x2, x2, #1", "add x14, x1, #64", "csel x1, x14, x1, gt"]
    return [
        *(f"ins v{_X[i]}.d[0], x{6 + 2 * i}" for i in four.VECTORS),
        *(f"ins v{_X[i]}.d[1], x{7 + 2 * i}" for i in four.VECTORS),
        *asm.beside(four.each("fmin", _T, _X, [_MOST] * 4), ahead),
        *asm.beside(four.each("fmax", _T, _T, [_LEAST] * 4), stores),
        *function.before(),
        *asm.beside(four.copies(_POWER, _ROUND), ["mov x5, x0", "add x0, x0, #64"]),
        *asm.beside(four.by_lane("fmla", _POWER, _T, _EXP, 0), _loads()),
        *_exponential(len(function.exponential)),
        *function.after(),
        "cmp x2, #0",
    ]


def _exponential(terms: int) -> list[str]:
    """From what rounds plus t / -ln(2) in _POWER to 2^n there, and 1 - e^-r in _T."""

    def lane(term: int) -> tuple[int, int]:
        return _EXP + (2 + term) // 4, (2 + term) % 4

    return [
        *four.spread(_HIGH, *lane(2)),
        *four.each("fsub", _SQUARE, _POWER, [_ROUND] * 4),
        *four.spread(_LOW, *lane(0)),
        *four.by_lane("fmla", _T, _SQUARE, _EXP, 1),
        *(f"shl v{r}.4s, v{r}.4s, #23" for r in _POWER),
        *four.each("fmul", _SQUARE, _T, _T),
        *four.by_lane("fmla", _HIGH, _T, *lane(3)),
        *four.by_lane("fmla", _LOW, _T, *lane(1)),
        *(four.by_lane("fmla", _HIGH, _SQUARE, *lane(4)) if terms > 4 else []),
        *four.each("fmla", _LOW, _HIGH, _SQUARE),
        *four.each("fmls", _T, _LOW, _SQUARE),
    ]


def _reciprocal() -> list[str]:
    """1 / _SQUARE, in _HIGH."""
    estimate = [f"frecpe v{h}.4s, v{s}.4s" for h, s in zip(_HIGH, _SQUARE, strict=True)]
    step = [*four.each("frecps", _LOW, _SQUARE, _HIGH), *four.each("fmul", _HIGH, _HIGH, _LOW)]
    return [*estimate, *step, *step]


def _logistic() -> list[str]:
    return [
        *four.each("fmls", _POWER, _POWER, _T),
        *four.each("fadd", _SQUARE, _POWER, [_ONE] * 4),
        *_reciprocal(),
    ]


def _times_logistic() -> list[str]:
    return [*_logistic(), *four.each("fmul", _HIGH, _HIGH, _X)]


def _as_it_is() -> list[str]:
    return []


def _twice() -> list[str]:
    return four.each("fadd", _T, _T, _T)


def _tangent() -> list[str]:
    """(1 - e^-t) / (1 + e^-t): 1 - 2^n is exact where t is small."""
    return [
        *four.each("fadd", _LOW, _POWER, [_ONE] * 4),
        *four.each("fsub", _X, [_ONE] * 4, _POWER),
        *four.each("fmls", _LOW, _POWER, _T),
        *four.each("fmla", _X, _POWER, _T),
        *(f"mov v{s}.16b, v{low}.16b" for s, low in zip(_SQUARE, _LOW, strict=True)),
        *_reciprocal(),
        *four.each("fmul", _HIGH, _HIGH, _X),
    ]


def _normal() -> list[str]:
    """_T times the polynomial of its square."""
    return [
        *four.each("fmul", _SQUARE, _T, _T),
        *four.spread(_HIGH, _FIT + 1, 0),
        *four.spread(_LOW, _FIT, 2),
        *four.spread(_POWER, _FIT, 0),
        *four.by_lane("fmla", _HIGH, _SQUARE, _FIT + 1, 1),
        *four.by_lane("fmla", _LOW, _SQUARE, _FIT, 3),
        *four.by_lane("fmla", _POWER, _SQUARE, _FIT, 1),
        *four.each("fmul", _SQUARE, _SQUARE, _SQUARE),
        *four.by_lane("fmla", _HIGH, _SQUARE, _FIT + 1, 2),
        *four.each("fmla", _LOW, _HIGH, _SQUARE),
        *four.each("fmla", _POWER, _LOW, _SQUARE),
        *four.each("fmul", _T, _T, _POWER),
    ]


def _normal_tanh() -> list[str]:
    return [
        *four.each("fmul", _SQUARE, _T, _T),
        *four.spread(_POWER, _FIT, 0),
        *four.by_lane("fmla", _POWER, _SQUARE, _FIT, 1),
        *four.each("fmul", _T, _T, _POWER),
    ]


#: The steps of an epilogue that there is a micro-kernel for.
FUNCTIONS = {
    "sigmoid": _Function(87.0, _SHORT, (), _as_it_is, _logistic),
    "silu": _Function(87.0, _SHORT, (), _as_it_is, _times_logistic),
    "tanh": _Function(20.0, _LONG, (), _twice, _tangent),
    "gelu": _Function(6.9, _SHORT, _NORMAL, _normal, _times_logistic),
    "gelu_tanh": _Function(9.9, _SHORT, _NORMAL_TANH, _normal_tanh, _times_logistic),
}


def _registers() -> dict[str, str]:
    return {
        "x0, x5": "results of this block, and of the one before",
        "x1": "numbers of the next block",
        "x2": "blocks left",
        "x3, x4": "floats of the rest, and where they lie once they are being computed",
        "x6-x13": "numbers on their way",
        asm.span(_X): "x",
        asm.span(_T): "t, then r, then 1 - e^-r",
        asm.span(_POWER): "2^n, then e^-t",
        asm.span(_SQUARE): "squares and n, then 1 + e^-t",
        f"{asm.span(_LOW)}, {asm.span(_HIGH)}": "the polynomials' halves; the latter also the result",
        f"v{_MOST}-v{_FIT2}": "constants",
    }
