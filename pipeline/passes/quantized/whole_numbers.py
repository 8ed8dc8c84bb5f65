"""Whole numbers of 8 bits: what limits them, and how int8 holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, array_of, bindings, constant, op_name, variables
from bitkiln.pipeline.ir.operands import clip_bounds

LEAST, MOST = -128, 127

#: Operators whose results are among the elements of their first operand.
MOVING = frozenset(
    {"reshape", "nn.max_pool2d", "strided_slice", "squeeze", "expand_dims", "permute_dims", "flatten", "take", "tile"}
)


@dataclass(frozen=True)
class Bytes:
    """An int8 tensor: the whole numbers from ``low`` to ``high``, plus ``zero``."""

    tensor: relax.Expr
    zero: int
    low: int
    high: int

    def moved(self, tensor: relax.Expr) -> Bytes:
        """``tensor``, which has the same numbers in other places."""
        return Bytes(tensor, self.zero, self.low, self.high)


class Zeros:
    """The zero point of each limited tensor: the same for all that are moved to one place, where int8 holds them all."""

    def __init__(self, function: relax.Function) -> None:
        self._alike: dict[str, str] = {}
        defined = dict(bindings(function))
        for name, value in defined.items():
            if op_name(value) == "concat" or op_name(value) in MOVING:
                for var in variables(value.args[0]):
                    self._alike[self._first(var.name)] = self._first(name)
        self._limits: dict[str, tuple[int, int]] = {}
        for name, value in defined.items():
            own = _limits_in(value, defined)
            if own is not None:
                known = self._limits.get(self._first(name), own)
                self._limits[self._first(name)] = min(own[0], known[0]), max(own[1], known[1])

    def of(self, name: str, limits: tuple[int, int]) -> int:
        """That of the tensor ``name``, which lies within ``limits``."""
        low, high = self._limits.get(self._first(name), limits)
        return zero_between(low, high) if high - low <= MOST - LEAST else zero_between(*limits)

    def _first(self, name: str) -> str:
        while name in self._alike and self._alike[name] != name:
            name = self._alike[name]
        return name


def zero_between(low: int, high: int) -> int:
    """The zero point that puts ``low`` to ``high`` into the middle of what int8 holds."""
    return -((low + high + 1) // 2)


def whole_number(expr: relax.Expr) -> int | None:
    """The one whole number that a constant is."""
    array = array_of(expr)
    if array is None or array.size != 1 or not float(array.reshape(-1)[0]).is_integer():
        return None
    return int(array.reshape(-1)[0])


def rounding_of(graph: Graph, clip: relax.Expr) -> tuple[relax.Expr | None, int]:
    """What of a call of clip is a rounding's result, and the zero point that was added to it."""
    inner, shift = clip.args[0], 0
    shifted = graph.call_of(inner, "add")
    by = whole_number(shifted.args[1]) if shifted is not None else None
    if shifted is not None and by is not None:
        inner, shift = shifted.args[0], by
    return (inner if graph.call_of(inner, "round") is not None else None), shift


def limits_of(graph: Graph, value: relax.Expr) -> tuple[int, int] | None:
    """The whole numbers that a call of clip lets through, if it follows a rounding and they are at most 256."""
    if op_name(value) != "clip" or rounding_of(graph, value)[0] is None:
        return None
    return _whole_limits(value)


def floats_of(graph: Graph, found: Bytes, name: str) -> relax.Expr:
    """The whole numbers that ``found`` holds, as floats."""
    floats = relax.op.astype(found.tensor, "float32")
    if not found.zero:
        return floats
    return relax.op.add(graph.emit(floats, f"{name}.floats"), constant(np.float32(-found.zero)))


def narrowed(graph: Graph, whole: relax.Expr, zero: int, name: str) -> relax.Expr:
    """Floats that hold whole numbers as int8, plus ``zero``."""
    moved = graph.emit(relax.op.add(whole, constant(np.float32(zero))), f"{name}.moved") if zero else whole
    return graph.emit(relax.op.astype(moved, "int8"), f"{name}.int8")


def _whole_limits(clip: relax.Expr) -> tuple[int, int] | None:
    low, high = clip_bounds(clip)
    whole = np.isfinite([low, high]).all() and low.is_integer() and high.is_integer()
    return (int(low), int(high)) if whole and 0 <= high - low <= MOST - LEAST else None


def _limits_in(value: relax.Expr, defined: Mapping[str, relax.Expr]) -> tuple[int, int] | None:
    """As ``limits_of``, in a network that is not under construction."""
    if op_name(value) != "clip":
        return None
    inner = defined.get(getattr(value.args[0], "name", ""))
    if op_name(inner) == "add" and inner is not None and whole_number(inner.args[1]) is not None:
        inner = defined.get(getattr(inner.args[0], "name", ""))
    return _whole_limits(value) if op_name(inner) == "round" else None
