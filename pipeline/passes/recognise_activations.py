"""Activations that files spell with several operators: PReLUs as choices, SiLU, GELU and hard swishes as products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, shape_of
from bitkiln.pipeline.ir.operands import clip_bounds

#: Products within products that a spelling may have.
_DEEPEST = 3


def prelu_of_choice(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    """x < 0 ? x*slope : x and the like are PReLUs."""
    condition, first, second = call.args
    compared = graph.call_of(condition, "less", "less_equal", "greater", "greater_equal")
    if compared is None or not _is_zero(compared.args[1]):
        return None
    scaled, x = (first, second) if op_name(compared).startswith("less") else (second, first)
    product = graph.call_of(scaled, "multiply")
    if product is None or not product.args[0].same_as(x) or not compared.args[0].same_as(x):
        return None
    slope = array_of(product.args[1])
    if slope is None or np.broadcast_shapes(shape_of(x), slope.shape) != shape_of(x) or not np.all(np.isfinite(slope)):
        return None
    return ops.prelu(x, product.args[1])


def _is_zero(expr: relax.Expr) -> bool:
    value = array_of(expr)
    return value is not None and not np.any(value)


def _hardswish(graph: Graph, x: relax.Expr, other: relax.Expr) -> relax.Expr | None:
    """x * clip(x/6 + 0.5, 0, 1), or x * clip(x + 3, 0, 6) / 6."""
    factor, other = _scaled(graph, other)
    clip = graph.call_of(other, "clip", "nn.relu6")
    shifted = graph.call_of(clip.args[0], "add") if clip is not None else None
    shift = _scalar(shifted.args[1]) if shifted is not None else None
    if clip is None or shifted is None or shift is None:
        return None
    inner, slope = shifted.args[0], 1.0
    if not inner.same_as(x):
        slope, inner = _scaled(graph, inner)
    low, high = clip_bounds(clip)
    numbers = [slope * factor, shift * factor, low * factor, high * factor]
    return ops.hardswish(x) if inner.same_as(x) and np.allclose(numbers, [1 / 6, 0.5, 0, 1], atol=1e-6) else None


def _scaled(graph: Graph, expr: relax.Expr) -> tuple[float, relax.Expr]:
    """(factor, y) with ``expr`` = factor * y."""
    call = graph.call_of(expr, "multiply", "divide")
    value = _scalar(call.args[1]) if call is not None else None
    if call is None or value is None or (op_name(call) == "divide" and value == 0):
        return 1.0, expr
    return (value if op_name(call) == "multiply" else 1 / value), call.args[0]


def _scaled_hardswish(graph: Graph, call: Call) -> relax.Expr | None:
    """(x * clip(x + 3, 0, 6)) / 6."""
    product, factor = graph.call_of(call.args[0], "multiply"), _scalar(call.args[1])
    if product is None or factor is None or not graph.used_once(call.args[0]):
        return None
    for x, other in (product.args, reversed(product.args)):
        clip = graph.call_of(other, "clip", "nn.relu6")
        if clip is not None and graph.used_once(other):
            gate = graph.emit(relax.op.multiply(other, call.args[1]), "gate")
            found = _hardswish(graph, x, gate)
            if found is not None:
                return found
    return None


def _scalar(expr: relax.Expr) -> float | None:
    value = array_of(expr)
    return value.item() if value is not None and value.size == 1 else None


def _factors(
    graph: Graph, exprs: Sequence[relax.Expr], x: relax.Expr | None = None, depth: int = _DEEPEST
) -> tuple[float, list[relax.Expr]]:
    """(scale, factors) with the product of ``exprs`` = scale * that of the factors; ``x`` is not looked into."""
    scale = 1.0
    factors: list[relax.Expr] = []
    for expr in exprs:
        number = _scalar(expr)
        outer, inner = (1.0, expr) if x is not None and expr.same_as(x) else _scaled(graph, expr)
        product = graph.call_of(inner, "multiply") if x is None or not inner.same_as(x) else None
        if number is not None:
            outer = number
        elif product is not None and depth:
            more, found = _factors(graph, product.args, x, depth - 1)
            outer *= more
            factors += found
        else:
            factors.append(inner)
        scale *= outer
    return scale, factors


def _is_product(
    graph: Graph, exprs: Sequence[relax.Expr], scale: float, of: Sequence[relax.Expr], x: relax.Expr
) -> bool:
    """Whether the product of ``exprs`` is ``scale`` times that of ``of``; ``x`` is not looked into."""
    found, factors = _factors(graph, exprs, x)
    counts = [sum(map(each.same_as, of)) == sum(map(each.same_as, factors)) for each in of]
    return len(factors) == len(of) and all(counts) and math.isclose(found, scale, rel_tol=1e-4)


def _gelu(graph: Graph, product: Call) -> relax.Expr | None:
    """x * (1 + erf(x / sqrt(2))) / 2, and with tanh of sqrt(2 / pi) * (x + 0.044715 x^3) for the erf, however associated."""
    for gate in _factors(graph, product.args)[1]:
        shifted = graph.call_of(gate, "add")
        if shifted is None or _scalar(shifted.args[1]) != 1:
            continue
        for argument, gelu in ((_of_erf, relax.op.nn.gelu), (_of_tanh, relax.op.nn.gelu_tanh)):
            x = argument(graph, shifted.args[0])
            if x is not None and _is_product(graph, product.args, 0.5, [x, gate], x):
                return gelu(x)
    return None


def _of_erf(graph: Graph, expr: relax.Expr) -> relax.Expr | None:
    """x, where ``expr`` is erf(x / sqrt(2))."""
    call = graph.call_of(expr, "erf")
    factor, x = _scaled(graph, call.args[0]) if call is not None else (0.0, expr)
    return x if math.isclose(factor, 0.5**0.5, rel_tol=1e-5) else None


def _of_tanh(graph: Graph, expr: relax.Expr) -> relax.Expr | None:
    """x, where ``expr`` is tanh(sqrt(2 / pi) * (x + 0.044715 x^3))."""
    call = graph.call_of(expr, "tanh")
    factor, inner = _scaled(graph, call.args[0]) if call is not None else (0.0, expr)
    total = graph.call_of(inner, "add")
    if total is None or not math.isclose(factor, (2 / math.pi) ** 0.5, rel_tol=1e-5):
        return None
    for x, other in (total.args, reversed(total.args)):
        scale, cube = _scaled(graph, other)
        power = graph.call_of(cube, "power")
        if power is not None and power.args[0].same_as(x) and _scalar(power.args[1]) == 3:
            return x if math.isclose(scale, 0.044715, rel_tol=1e-4) else None
        if _is_product(graph, [other], 0.044715, [x] * 3, x):
            return x
    return None


def gated(graph: Graph, product: Call) -> relax.Expr | None:
    """x * sigmoid(x) as SiLU, and the spellings of GELU and hard swish; None for other products."""
    gelu = _gelu(graph, product)
    if gelu is not None:
        return gelu
    for x, other in (product.args, reversed(product.args)):
        gate = graph.call_of(other, "sigmoid")
        if gate is not None and gate.args[0].same_as(x):
            return relax.op.nn.silu(x)
        hard = _hardswish(graph, x, other)
        if hard is not None:
            return hard
    return _scaled_hardswish(graph, product)
