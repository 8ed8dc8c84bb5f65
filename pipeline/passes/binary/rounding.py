"""Rounding as a comparison: round, floor and ceil of a number whose bounds leave two results.

Round is half to even, as ONNX and IEEE 754 have it: round(x) of x in [0, 1] is x > 0.5, of x in [1, 2] it is x >= 1.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import Graph, array_of, op_name
from bitkiln.pipeline.ir.operands import clip_bounds

ROUNDINGS: dict[str, Callable[[float], Any]] = {"round": np.round, "floor": np.floor, "ceil": np.ceil}

#: Operations followed back to find the bounds of a value.
_MAX_DEPTH = 16

#: Whole numbers up to here, and their halves, are exact in float32.
_EXACT = 1 << 20

Bounds = tuple[float, float]

_ANYTHING = (-np.inf, np.inf)
_ARITHMETIC = {"multiply": np.multiply, "add": np.add, "divide": np.divide}
_FIXED = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "sign": (-1.0, 1.0)}
_CARRIERS = ("reshape", "permute_dims", "nn.max_pool2d", "strided_slice")


@dataclass(frozen=True)
class Jump:
    """``low`` below ``level``, ``low + 1`` above it; ``at`` is the result for ``level`` itself."""

    level: float
    low: float
    at: float


def jump_between(operator: str, low: float, high: float) -> Jump | None:
    """Rounding by ``operator`` where the result is at least ``low`` and at most ``high``; None unless these are neighbours."""
    if not (high - low == 1 and low == np.floor(low) and abs(low) < _EXACT):
        return None
    match operator:
        case "round":
            return Jump(low + 0.5, low, low if low % 2 == 0 else high)
        case "floor":
            return Jump(high, low, high)
    return Jump(low, low, low)


def jump_of(graph: Graph, call: Call) -> Jump | None:
    """Rounding ``call`` as a step of its argument, if that lies in bounds with two results."""
    function = ROUNDINGS[op_name(call)]
    low, high = bounds(graph, call.args[0])
    return jump_between(op_name(call), float(function(low)), float(function(high)))


def _each(function: Callable[[float], Any], ends: Bounds) -> Bounds:
    low, high = ends
    return float(function(low)), float(function(high))


def bounds(graph: Graph, expr: relax.Expr, depth: int = 0) -> Bounds:
    """Between which numbers ``expr`` lies, as far as the operations before it tell; rounding in float32 included."""
    call = graph.definition(expr)
    operator = op_name(call)
    if operator in _FIXED:
        return _FIXED[operator]
    if call is None or depth == _MAX_DEPTH or not call.args:
        return _ANYTHING
    if operator in _ARITHMETIC:
        return _arithmetic(graph, call, depth)
    if operator == "abs":
        return 0.0, np.inf
    inner = bounds(graph, call.args[0], depth + 1)
    if operator in ("nn.relu", "nn.relu6", "clip"):
        least, most = map(np.float32, clip_bounds(call))
        return _each(lambda end: np.clip(np.float32(end), least, most), inner)
    if operator in ROUNDINGS:
        return _each(ROUNDINGS[operator], inner)
    return inner if operator in _CARRIERS else _ANYTHING


def _arithmetic(graph: Graph, call: Call, depth: int) -> Bounds:
    """Of a sum, product or quotient with a constant, which keeps or turns the order of numbers, rounded ones too."""
    if call.args[0].same_as(call.args[1]) and op_name(call) == "multiply":
        return 0.0, np.inf
    value = array_of(call.args[1])
    if value is None or value.dtype != np.float32 or not value.size or not np.isfinite(value).all():
        return _ANYTHING
    if op_name(call) == "divide" and value.min() <= 0 <= value.max():
        return _ANYTHING
    function = _ARITHMETIC[op_name(call)]
    inner = bounds(graph, call.args[0], depth + 1)
    with np.errstate(invalid="ignore", over="ignore"):
        ends = [function(np.float32(end), limit) for end in inner for limit in (value.min(), value.max())]
    return _ANYTHING if np.isnan(ends).any() else (float(min(ends)), float(max(ends)))
