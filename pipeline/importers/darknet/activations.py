"""darknet's activations as Relax, by the names its cfg files give them.

Those of the original darknet and of AlexeyAB's fork. Two differ where darknet's own arithmetic overflows: ``tanh`` and ``mish``
saturate here, where darknet gives NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from bitkiln.pipeline.importers.common.building import scalar

#: ``step(expr, part)`` binds a value on the way to the result.
Step = Callable[[relax.Expr, str], relax.Var]


def _loggy(x: relax.Var, step: Step) -> relax.Expr:
    """2 / (1 + exp(-x)) - 1."""
    return relax.op.subtract(step(relax.op.multiply(step(relax.op.sigmoid(x), "gate"), scalar(2)), "twice"), scalar(1))


def _exponential(scale: float, slope: float) -> Callable[[relax.Var, Step], relax.Expr]:
    """x < 0 ? slope * (exp(x) - 1) : scale * x."""

    def activation(x: relax.Var, step: Step) -> relax.Expr:
        # Where x is positive the exponential is not used, and must not overflow.
        low = step(relax.op.exp(step(relax.op.minimum(x, scalar(0)), "low")), "exp")
        bent = step(relax.op.multiply(step(relax.op.subtract(low, scalar(1)), "down"), scalar(slope)), "bent")
        straight = x if scale == 1 else step(relax.op.multiply(x, scalar(scale)), "straight")
        return relax.op.where(step(relax.op.less(x, scalar(0)), "negative"), bent, straight)

    return activation


def _ramp(x: relax.Var, step: Step) -> relax.Expr:
    """max(x, 0) + x/10."""
    return relax.op.add(step(relax.op.nn.relu(x), "relu"), step(relax.op.multiply(x, scalar(0.1)), "tenth"))


def _piecewise(low: float, high: float, inside: tuple[float, float], slope: float) -> Callable:
    """slope * (x - low) below ``low``, slope * (x - high) + 1 above ``high``, a * x + b between, (a, b) = ``inside``."""

    def activation(x: relax.Var, step: Step) -> relax.Expr:
        middle = _line(x, step, *inside, "middle")
        below = _line(x, step, slope, -slope * low, "below")
        above = _line(x, step, slope, 1 - slope * high, "above")
        lower = relax.op.where(step(relax.op.less(x, scalar(low)), "is_low"), below, middle)
        return relax.op.where(step(relax.op.greater(x, scalar(high)), "is_high"), above, step(lower, "lower"))

    return activation


def _line(x: relax.Var, step: Step, slope: float, offset: float, part: str) -> relax.Var:
    scaled = x if slope == 1 else step(relax.op.multiply(x, scalar(slope)), f"{part}_scaled")
    return scaled if offset == 0 else step(relax.op.add(scaled, scalar(offset)), part)


def _stair(x: relax.Var, step: Step) -> relax.Expr:
    """floor(x/2), plus the fraction of x where floor(x) is odd."""
    whole = step(relax.op.floor(x), "whole")
    half = step(relax.op.floor(step(relax.op.multiply(x, scalar(0.5)), "halved")), "half")
    odd = step(relax.op.greater(whole, step(relax.op.multiply(half, scalar(2)), "even")), "odd")
    rise = relax.op.where(odd, step(relax.op.subtract(x, whole), "fraction"), scalar(0))
    return relax.op.add(half, step(rise, "rise"))


def _swish(x: relax.Var, step: Step) -> relax.Expr:
    return relax.op.multiply(x, step(relax.op.sigmoid(x), "gate"))


def _mish(x: relax.Var, step: Step) -> relax.Expr:
    """x * tanh(log(1 + exp(x))). With e = exp(x), the tanh is (e^2 + 2e) / (e^2 + 2e + 2), and 1 in float32 from x = 20 on."""
    e = step(relax.op.exp(step(relax.op.minimum(x, scalar(20)), "low")), "exp")
    n = step(relax.op.multiply(e, step(relax.op.add(e, scalar(2)), "two")), "square")
    gate = step(relax.op.divide(n, step(relax.op.add(n, scalar(2)), "more")), "gate")
    return relax.op.multiply(x, gate)


def _hard_mish(x: relax.Var, step: Step) -> relax.Expr:
    """x above 0, x*x/2 + x above -2, else 0."""
    factor = step(relax.op.add(step(relax.op.multiply(x, scalar(0.5)), "half"), scalar(1)), "shifted")
    return relax.op.multiply(x, step(relax.op.clip(factor, 0.0, 1.0), "gate"))


def _gelu(x: relax.Var, step: Step) -> relax.Expr:
    """x/2 * (1 + tanh(0.797885 x + 0.035677 x^3))."""
    square = step(relax.op.multiply(x, x), "square")
    inner = step(relax.op.add(step(relax.op.multiply(square, scalar(0.035677)), "scaled"), scalar(0.797885)), "inner")
    gate = step(relax.op.tanh(step(relax.op.multiply(x, inner), "argument")), "tanh")
    half = step(relax.op.multiply(x, scalar(0.5)), "half")
    return relax.op.multiply(half, step(relax.op.add(gate, scalar(1)), "gate"))


#: Name in a cfg -> the result of activating ``x``; None where it is ``x`` itself.
ACTIVATIONS: dict[str, Callable[[relax.Var, Step], relax.Expr] | None] = {
    "linear": None,
    "logistic": lambda x, _: relax.op.sigmoid(x),
    "loggy": _loggy,
    "relu": lambda x, _: relax.op.nn.relu(x),
    "relu6": lambda x, _: relax.op.clip(x, 0.0, 6.0),
    "elu": _exponential(1, 1),
    "selu": _exponential(1.0507, 1.0507 * 1.6732),
    "relie": lambda x, _: relax.op.nn.leakyrelu(x, 0.01),
    "leaky": lambda x, _: relax.op.nn.leakyrelu(x, 0.1),
    "ramp": _ramp,
    "plse": _piecewise(-4, 4, (0.125, 0.5), 0.01),
    "hardtan": lambda x, _: relax.op.clip(x, -1.0, 1.0),
    "lhtan": _piecewise(0, 1, (1, 0), 0.001),
    "stair": _stair,
    "tanh": lambda x, _: relax.op.tanh(x),
    "swish": _swish,
    "mish": _mish,
    "hard_mish": _hard_mish,
    "gelu": _gelu,
}
