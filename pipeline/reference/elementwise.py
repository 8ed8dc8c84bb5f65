"""Operators of Relax that compute each element by itself: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.ir import Call

from bitkiln.pipeline.reference.values import Operator
from bitkiln.schedules.steps import sigmoid


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(_call: Call, x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(x))

    return apply


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(_call: Call, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(x, y))

    return apply


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integers are divided towards zero, as C does; a division by zero gives zero."""
    if x.dtype.kind not in "iu":
        return x / y
    safe = np.where(y == 0, np.ones_like(y), y)
    quotient = x // safe
    whole = quotient + ((quotient < 0) & (quotient * safe != x))
    return np.where(y == 0, np.zeros_like(x), whole).astype(x.dtype)


def _power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu" and np.any(y < 0):
        raise NotImplementedError("power of integers with negative exponents")
    return np.power(x, y)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float32])(x)


def _prelu(call: Call, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    axis = int(call.attrs["axis"]) % x.ndim
    slope = slope.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return np.where(x > 0, x, x * slope)


def _clip(_call: Call, x: np.ndarray, *bounds: Any) -> np.ndarray:
    low, high = (np.float32(getattr(bound, "value", bound)) for bound in bounds)
    return np.clip(x, low, high)


OPERATORS: dict[str, Operator] = {
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(_divide),
    "power": _binary(_power),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.fmod),
    "floor_mod": _binary(np.mod),
    "floor_divide": _binary(np.floor_divide),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal),
    "logical_and": _binary(np.logical_and),
    "logical_or": _binary(np.logical_or),
    "logical_not": _unary(np.logical_not),
    "abs": _unary(np.abs),
    "ceil": _unary(np.ceil),
    "exp": _unary(np.exp),
    "floor": _unary(np.floor),
    "log": _unary(np.log),
    "negative": _unary(np.negative),
    "round": _unary(np.round),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "sign": _unary(np.sign),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "tanh": _unary(np.tanh),
    "sigmoid": _unary(sigmoid),
    "erf": _unary(_erf),
    "isnan": _unary(np.isnan),
    "isinf": _unary(np.isinf),
    "isfinite": _unary(np.isfinite),
    "clip": _clip,
    "where": lambda _, condition, x, y: np.where(condition, x, y),
    "astype": lambda call, x: x.astype(str(call.attrs["dtype"])),
    "nn.relu": _unary(lambda x: np.maximum(x, np.float32(0))),
    "nn.relu6": _unary(lambda x: np.clip(x, np.float32(0), np.float32(6))),
    "nn.silu": _unary(lambda x: x * sigmoid(x)),
    "nn.softplus": _unary(lambda x: np.log1p(np.exp(x))),
    "nn.gelu": _unary(lambda x: x * np.float32(0.5) * (1 + _erf(x / np.float32(np.sqrt(2))))),
    "nn.leakyrelu": lambda call, x: np.where(x > 0, x, x * np.float32(call.attrs["alpha"])),
    "nn.prelu": _prelu,
    "nn.dropout": lambda _, x: (x, np.ones_like(x)),
}
