"""ONNX's arithmetic where types, constants or attributes decide what is computed."""

from __future__ import annotations

import numpy as np
from onnx import helper
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands

#: Whole exponents up to this are written out as products.
_MOST_FACTORS = 16


def divide(node: Operands) -> relax.Expr:
    """Integers are divided towards zero."""
    if node.is_constant(1) and not np.all(node.array(1, "divisor")):
        raise node.unsupported("divides by a constant that is zero")
    return relax.op.divide(node.value(0), node.value(1))


def modulo(node: Operands) -> relax.Expr:
    """The remainder has the divisor's sign, or with ``fmod`` the dividend's, as in C."""
    if node.is_constant(1) and not np.all(node.array(1, "divisor")):
        raise node.unsupported("divides by a constant that is zero")
    truncated = bool(node.attributes.get("fmod", 0))
    if node.dtype(0).startswith("float") and not truncated:
        raise node.unsupported("takes the remainder of floats with fmod=0, which ONNX does not define")
    operator = relax.op.mod if truncated or node.dtype(0).startswith("uint") else relax.op.floor_mod
    return operator(node.value(0), node.value(1))


def power(node: Operands) -> relax.Expr:
    """The result has the type of the base; exponents of any type become floats. Whole powers of integers are products."""
    if node.dtype(0) == "float32":
        return relax.op.power(node.value(0), _as_float(node, 1))
    exponents = node.array(1, "exponent") if node.is_constant(1) else np.zeros(0)
    whole = int(exponents.reshape(-1)[0]) if exponents.size == 1 else 0
    if exponents.size == 1 and whole == exponents.item() and 1 <= whole <= _MOST_FACTORS:
        result = node.value(0)
        for factor in range(1, whole):
            result = node.step(relax.op.multiply(result, node.value(0)), f"power{factor + 1}")
        return result
    if node.dtype(1) != "float32":
        raise node.unsupported(f"raises {node.dtype(0)} to powers other than one constant of 1 to {_MOST_FACTORS}")
    raised = relax.op.power(_as_float(node, 0), node.value(1))
    return relax.op.astype(node.step(raised, "power"), node.dtype(0))


def _as_float(node: Operands, index: int) -> relax.Expr:
    if node.is_constant(index):
        return relax.const(node.array(index, "operand").astype(np.float32))
    value = node.value(index)
    return value if node.dtype(index) == "float32" else node.step(relax.op.astype(value, "float32"), f"float{index}")


def is_infinite(node: Operands) -> relax.Expr:
    """IsInf, of either sign or both."""
    positive, negative = (node.attributes.get(f"detect_{sign}", 1) for sign in ("positive", "negative"))
    infinite = relax.op.isinf(node.value(0))
    if positive and negative:
        return infinite
    if not positive and not negative:
        return relax.const(np.zeros(node.shape(), np.bool_))
    compare = relax.op.greater if positive else relax.op.less
    sided = node.step(compare(node.value(0), relax.const(np.float32(0))), "sided")
    return relax.op.logical_and(node.step(infinite, "infinite"), sided)


def mean(node: Operands) -> relax.Expr:
    """The mean of any number of tensors, element by element."""
    total = node.value(0)
    for index in range(1, len(node)):
        total = node.step(relax.op.add(total, node.value(index)), f"sum{index}")
    return relax.op.divide(total, relax.const(np.float32(len(node)))) if len(node) > 1 else total


def swish(node: Operands) -> relax.Expr:
    """x * sigmoid(alpha * x)."""
    x, alpha = node.value(0), float(node.attributes.get("alpha", 1.0))
    if alpha == 1:
        return relax.op.nn.silu(x)
    scaled = node.step(relax.op.multiply(x, relax.const(np.float32(alpha))), "scaled")
    return relax.op.multiply(x, node.step(relax.op.sigmoid(scaled), "gate"))


def bit_shift(node: Operands) -> relax.Expr:
    """By constants that are less than the width; beyond it, machines disagree."""
    amounts, bits = node.array(1, "amount"), np.dtype(node.dtype(0)).itemsize * 8
    if np.any(amounts < 0) or np.any(amounts >= bits):
        raise node.unsupported(f"shifts {node.dtype(0)} by {amounts.min()} to {amounts.max()} bits")
    operator = relax.op.left_shift if node.text("direction", "") == "LEFT" else relax.op.right_shift
    return operator(node.value(0), node.value(1))


def cast(node: Operands) -> relax.Expr:
    """Cast and CastLike, to truth values, integers and floats of 32 and 64 bits."""
    if node.node.op_type == "CastLike":
        kind = node.file_dtype(1)
    else:
        known = node.attributes["to"] in helper.get_all_tensor_dtypes()
        kind = str(helper.tensor_dtype_to_np_dtype(node.attributes["to"])) if known else "an unknown type"
    if node.holds_whole(0) and kind == "float32":
        return node.floats(0)
    for each in (kind, node.dtype(0)):
        if each not in _TYPES:
            raise node.unsupported(f"casts to or from {each}, which is not supported")
    return node.by_frontend()


_TYPES = frozenset(
    {"bool", "float32", "float64"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def greater_or_equal(node: Operands) -> relax.Expr:
    """Comparison."""
    return relax.op.greater_equal(node.value(0), node.value(1))


def select(node: Operands) -> relax.Expr:
    """Where."""
    return relax.op.where(node.value(0), node.value(1), node.value(2))


def round_half_even(node: Operands) -> relax.Expr:
    """Halves to even."""
    return relax.op.round(node.value(0))


def variadic(node: Operands) -> relax.Expr:
    """Sum, Max or Min of any number of tensors, two at a time."""
    operator = {"Sum": relax.op.add, "Max": relax.op.maximum, "Min": relax.op.minimum}[node.node.op_type]
    result = node.value(0)
    for index in range(1, len(node)):
        result = operator(result, node.value(index))
        if index < len(node) - 1:
            result = node.step(result, str(index))
    return result


def clip(node: Operands) -> relax.Expr:
    """The upper bound wins where it is below the lower one."""
    kind = node.dtype(0)
    limits = np.finfo(np.float32) if kind == "float32" else np.iinfo(kind)
    bounds = []
    for index, name, default in ((1, "min", limits.min), (2, "max", limits.max)):
        given = node.array(index, name).item() if node.has(index) else node.attributes.get(name, default)
        bounds.append(min(max(given, limits.min), limits.max))
    low, high = min(bounds), bounds[1]
    if kind == "float32":
        return relax.op.clip(node.value(0), float(low), float(high))
    raised = node.step(relax.op.maximum(node.value(0), relax.const(np.array(low, kind), kind)), "raised")
    return relax.op.minimum(raised, relax.const(np.array(high, kind), kind))
