"""Exponentials and what is made of them as straight-line arithmetic, so that loops over them become vector code.

The C library has them for one number at a time, about 85 cycles each on the A53. Here exp, tanh, erf and the logistic
function are fused multiply-adds, shifts of exponents and choices: about 30 vector instructions for four numbers.

Errors, over all float32: at most 4 units in the last place, or 1e-7 where that is more. Exact at zeros,
infinities and NaN.

Polynomials are minimax fits on the stated intervals. e^-a = 2^n * e^-r with n = round(-a / ln 2) and r = a + n * ln 2, no more
than ln(2) / 2 (Cody and Waite, 1980); what is computed is 1 - e^-r, which keeps its digits near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from tvm import tirx

#: 1 - e^-r = r - r^2 * (c0 - c1 r + c2 r^2 - ...), |r| <= 0.347; relative error of e^-r 3e-9.
_EXP = (0.49999994, -0.1666652, 0.041668393, -0.008368781, 0.0013814465)
#: 1 / d for 1 <= d <= 2, relative error 1e-2; two of Newton's steps square that twice.
_RECIPROCAL = (2.1212005, -1.4545293, 0.32322704)
#: erf(x) / x in powers of x^2, |x| <= 0.9; error 1e-8.
_ERF = (
    1.1283791553190754,
    -0.3761253244491166,
    0.11282229959954213,
    -0.02678195687222212,
    0.00501622832791527,
    -0.0006111291848585138,
)
#: -log(erfc(a)), 0.9 <= a <= 4; error of erf 2e-9. Beyond 4, erf is 1.
_ERFC = (
    0.0001774872302566451,
    1.1277495956554613,
    0.6370596926318662,
    0.10403741713513048,
    -0.022277117107462732,
    0.0030556157117938845,
    -0.0001971826239529109,
)
_ERF_SPLIT, _ERF_END = 0.9, 4.0
#: ln 2 in two parts: the product of the first with any exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.428606765330187e-06
#: 1.5 * 2^23: added to a small number it leaves the nearest whole number in the low bits.
_ROUND = 12582912.0
#: Bits of that number, and of the fields of a float.
_ROUND_BITS, _SIGN, _BIAS = 0x4B400000, -0x80000000, 127
#: Above this, e^-a rounds to zero; below, to infinity.
_LAST, _FIRST = 104.5, -89.0
#: e^-a is made 2^64 times too large, so that it is rounded once where it is subnormal.
LIFT = 64


@cache
def register() -> None:
    """From now on TVM lowers these functions of float32 so for every CPU, in vectors and one by one."""
    for name, make in FUNCTIONS.items():
        tirx.op.register_intrin_lowering(f"tirx.{name}", target="llvm", f=_rule(make), level=99)


def _rule(make: Callable[[tirx.PrimExpr], tirx.PrimExpr]) -> Callable[[tirx.Call], tirx.PrimExpr]:
    return lambda call: make(call.args[0]) if str(call.ty).startswith("float32") else call


class _Lets:
    """Names for values that an expression mentions more than once; constants with as many lanes as they have."""

    def __init__(self, x: tirx.PrimExpr) -> None:
        self._bound: list[tuple[tirx.Var, tirx.PrimExpr]] = []
        self.lanes = str(x.ty).removeprefix("float32")
        self.x = self(x)

    def __call__(self, value: tirx.PrimExpr) -> tirx.Var:
        var = tirx.Var(f"t{len(self._bound)}", str(value.ty))
        self._bound.append((var, value))
        return var

    def number(self, value: float) -> tirx.PrimExpr:
        """A float constant."""
        return tirx.const(value, f"float32{self.lanes}")

    def whole(self, value: int) -> tirx.PrimExpr:
        """An integer constant."""
        return tirx.const(value, f"int32{self.lanes}")

    def bits(self, value: tirx.PrimExpr) -> tirx.PrimExpr:
        """The bits of a float."""
        return tirx.reinterpret(f"int32{self.lanes}", value)

    def float_of(self, bits: tirx.PrimExpr) -> tirx.PrimExpr:
        """The float that has these bits."""
        return tirx.reinterpret(f"float32{self.lanes}", bits)

    def polynomial(self, x: tirx.PrimExpr, coefficients: Sequence[float]) -> tirx.PrimExpr:
        """By Horner's rule; the constant term comes first."""
        value = self.number(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = _fma(value, x, self.number(coefficient))
        return value

    def around(self, result: tirx.PrimExpr) -> tirx.PrimExpr:
        """``result`` with the names it uses."""
        for var, value in reversed(self._bound):
            result = tirx.Let(var, value, result)
        return result


def exp(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """e^x."""
    let = _Lets(x)
    size = let(tirx.max(let.number(_FIRST), let.number(0) - let.x))
    small, rounded = _reduced(let, let(_no_more_than(let, size, _LAST)), 0)
    exponent = let(let.bits(rounded) - let.whole(_ROUND_BITS))
    # 2^n in two factors: n goes from -151 to 128.
    half = let(exponent >> let.whole(1))
    first, second = (let.float_of((part + let.whole(_BIAS)) << let.whole(23)) for part in (half, exponent - half))
    first = let(first)
    return let.around(_fnma(let, first, small, first) * second)


def lifted_decay(a: tirx.PrimExpr) -> tirx.PrimExpr:
    """e^-a for ``a`` >= 0, times 2^``LIFT``, so that none of it is subnormal; the factor 2^-``LIFT`` rounds it."""
    let = _Lets(a)
    small, power = _reduced_power(let, let(_no_more_than(let, let.x, _LAST)), LIFT)
    return let.around(_fnma(let, power, small, power))


def sigmoid(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """1 / (1 + e^-x): of the smaller exponential, so that nothing overflows."""
    let = _Lets(x)
    small, power = _reduced_power(let, let(_no_more_than(let, let(tirx.abs(let.x)), _LAST)), LIFT)
    decay = let(_fnma(let, power, small, power) * let.number(2.0**-LIFT))
    share = tirx.Select(let.x < let.number(0), decay, let.number(1))
    return let.around(share * _reciprocal(let, let(decay + let.number(1))))


def tanh(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """(1 - e^-2x) / (1 + e^-2x), of the size of x and with its sign."""
    let = _Lets(x)
    twice = let(tirx.abs(let.x) * let.number(2))
    small, power = _reduced_power(let, let(_no_more_than(let, twice, 40.0)), 0)
    above = _fma(power, small, let.number(1) - power)
    below = let(_fnma(let, power, small, let.number(1) + power))
    return let.around(_signed(let, above * _reciprocal(let, below)))


def erf(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """The error function: a polynomial around zero, 1 - erfc(x) beyond."""
    let = _Lets(x)
    size = let(tirx.abs(let.x))
    near = size * let.polynomial(let(size * size), _ERF)
    exponent = let(let.polynomial(let(_no_more_than(let, size, _ERF_END)), _ERFC))
    small, power = _reduced_power(let, exponent, 0)
    far = let.number(1) - _fnma(let, power, small, power)
    return let.around(_signed(let, tirx.Select(size < let.number(_ERF_SPLIT), near, far)))


def gelu(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """x times the share of normal numbers below x: by erfc of its size, so that nothing cancels. Of one number."""
    # An element of a tensor becomes an expression by arithmetic, which the compiler then drops.
    let = _Lets(x * tirx.const(1, "float32"))
    size = let(tirx.abs(let.x) * let.number(0.5**0.5))
    beyond = tirx.max(size - let.number(_ERF_END), let.number(0))
    exponent = let.polynomial(let(tirx.min(size, let.number(_ERF_END))), _ERFC) + beyond * let.number(40)
    far = let(tirx.exp(let.number(0) - exponent))
    near = let(let.number(1) - size * let.polynomial(let(size * size), _ERF))
    above = let.x * let.number(0.5) * tirx.Select(size < let.number(_ERF_SPLIT), near, far)
    return let.around(tirx.Select(let.x < let.number(0), above, let.x - above))


#: What is lowered, by the names of TVM's functions. Not the logarithm: three of these within each other, as mish would have,
#: take TVM's passes minutes.
FUNCTIONS: dict[str, Callable[[tirx.PrimExpr], tirx.PrimExpr]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
}


def _reduced(let: _Lets, a: tirx.PrimExpr, bias: int) -> tuple[tirx.Var, tirx.Var]:
    """1 - e^-r of e^-a = 2^n * e^-r, and a float whose lowest bits are n + ``bias``."""
    rounder = let.number(_ROUND + bias)
    rounded = let(_fma(a, let.number(-1.4426950408889634), rounder))
    whole = let(rounded - rounder)
    rest = let(_fma(whole, let.number(_LN2_LOW), _fma(whole, let.number(_LN2_HIGH), a)))
    square = let(rest * rest)
    high = _fma(square, let.number(_EXP[4]), _fma(rest, let.number(_EXP[3]), let.number(_EXP[2])))
    low = _fma(rest, let.number(_EXP[1]), let.number(_EXP[0]))
    return let(_fnma(let, square, _fma(square, high, low), rest)), rounded


def _reduced_power(let: _Lets, a: tirx.PrimExpr, lift: int) -> tuple[tirx.Var, tirx.Var]:
    """1 - e^-r and 2^(n + ``lift``) of e^-a = 2^n * e^-r: the shift leaves the exponent alone of all bits."""
    small, rounded = _reduced(let, a, _BIAS + lift)
    return small, let(let.float_of(let.bits(rounded) << let.whole(23)))


def _reciprocal(let: _Lets, d: tirx.PrimExpr) -> tirx.PrimExpr:
    """1 / d for d from 1 to 2."""
    value = let(let.polynomial(d, _RECIPROCAL))
    for _ in range(2):
        value = let(_fma(value, _fnma(let, d, value, let.number(1)), value))
    return value


def _no_more_than(let: _Lets, value: tirx.PrimExpr, limit: float) -> tirx.PrimExpr:
    """The smaller of the two. It is the second where comparisons fail: NaN stays NaN."""
    return tirx.min(let.number(limit), value)


def _signed(let: _Lets, size: tirx.PrimExpr) -> tirx.PrimExpr:
    """``size``, which is not negative, with the sign of x."""
    return let.float_of(let.bits(size) | (let.bits(let.x) & let.whole(_SIGN)))


def _fma(x: tirx.PrimExpr, y: tirx.PrimExpr, z: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.call_intrin(str(z.ty), "tirx.fma", x, y, z)


def _fnma(let: _Lets, x: tirx.PrimExpr, y: tirx.PrimExpr, z: tirx.PrimExpr) -> tirx.PrimExpr:
    """z - x * y, rounded once."""
    return _fma(x * let.number(-1), y, z)
