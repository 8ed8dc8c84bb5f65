"""Follow a tensor back to the one sign or comparison that decides its values.

A tensor of signs takes one value where some ``source`` is negative, one where it is zero and one where it is positive.
Whatever elementwise operators make of such tensors of one source, and of numbers, is again one: the operators are
evaluated on the three values. That covers Sign -> Add(0.1) -> Sign, 2 * (x >= 0) - 1, Where(x == 0, 1, Sign(x)) and the
like without a list of spellings. Operators that only move elements move the source instead.

Signs may carry what straight-through estimators leave: (s - p) + p and its kin are s, whatever tensor p is, as the network
was trained to have it; a runtime that evaluates p gets s up to the rounding of p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, shape_of, value_of
from bitkiln.pipeline.ir.operands import clip_bounds
from bitkiln.pipeline.passes.binary.residue import cancelled
from bitkiln.pipeline.passes.binary.rounding import ROUNDINGS, Jump, bounds, jump_between, jump_of
from bitkiln.pipeline.reference import OPERATORS

#: Operations followed from a tensor to its sign; exporters write about thirty.
_MAX_DEPTH = 80


@dataclass(frozen=True, eq=False)
class Signs:
    """A tensor that takes ``levels[0]`` where ``source`` is negative, ``levels[1]`` where it is zero, else ``levels[2]``.

    ``shape`` is the tensor's where it differs from that of ``source``: the elements are the same, in the same order.
    The levels are multiplied by ``factor`` where there is one: a constant, or a tensor of one element.
    """

    source: relax.Expr
    levels: np.ndarray
    shape: tuple[int, ...] = ()
    factor: relax.Expr | None = None

    @property
    def negative(self) -> float:
        return float(self.levels[0])

    @property
    def zero(self) -> float:
        return float(self.levels[1])

    @property
    def positive(self) -> float:
        return float(self.levels[2])

    @property
    def middle(self) -> float:
        """Half way between the levels of negative and positive numbers; 0 where they are +-s."""
        return (self.negative + self.positive) / 2

    @property
    def binary(self) -> bool:
        """Are there two levels, and is that of zero one of them or, as of Sign, in the middle?"""
        distinct = bool(np.isfinite(self.levels).all()) and self.negative != self.positive
        return distinct and self.zero in (self.negative, self.middle, self.positive)


class SignFinder:
    """Finds signs in a network under construction; what it finds of a tensor is kept."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, Signs | None] = {}
        self._shifted: dict[tuple[str, bytes], relax.Expr] = {}
        self._depth = 0

    def of(self, expr: relax.Expr) -> Signs | None:
        """What values ``expr`` takes, if one sign or comparison decides it."""
        if not isinstance(expr, relax.Var) or self._depth == _MAX_DEPTH:
            return None
        if expr.name not in self._known:
            self._depth += 1
            call = self._graph.definition(expr)
            bits = op_name(call) == "bitkiln.unpack"
            self._known[expr.name] = _signs(expr, -1.0, 1.0, 1.0) if bits else self._find(call)
            self._depth -= 1
        return self._known[expr.name]

    def source(self, signs: Signs) -> relax.Expr:
        """The source in the shape of the signs."""
        if not signs.shape:
            return signs.source
        return self._graph.emit(relax.op.reshape(signs.source, signs.shape), f"{signs.source.name}.reshaped")

    def _find(self, call: relax.Expr | None) -> Signs | None:
        operator = op_name(call)
        found = self._elementwise(call) if operator in ELEMENTWISE else None
        rule = _RULES.get(operator)
        return rule(self, call) if found is None and rule is not None else found

    def _elementwise(self, call: Call) -> Signs | None:
        """An operator on signs of one source, and on numbers."""
        compute = OPERATORS.get(op_name(call))
        operands = [self._operand(arg) for arg in call.args]
        signs = [operand for operand in operands if isinstance(operand, Signs)]
        if compute is None or not signs or any(operand is None for operand in operands):
            return None
        shapes = [shape_of(arg) for arg in call.args if hasattr(arg.ty, "shape")]
        first, shape = signs[0], shape_of(next(a for a, o in zip(call.args, operands, strict=True) if o is signs[0]))
        if np.broadcast_shapes(*shapes) != shape or not all(_together(first, other) for other in signs):
            return None
        values = [operand.levels if isinstance(operand, Signs) else operand for operand in operands]
        return replace(first, levels=np.asarray(compute(call, *values)))

    def _operand(self, arg: relax.Expr) -> Signs | np.ndarray | relax.Expr | None:
        """Signs, a number as an array without axes, or a parameter that is no tensor; None for any other tensor."""
        array = array_of(arg)
        if array is not None:
            return array.reshape(-1)[0] if array.size and (array == array.flat[0]).all() else None
        if isinstance(arg, relax.Var):
            found = self.of(arg)
            return found if found is not None and found.factor is None else None
        return arg if not isinstance(arg, (Call, relax.Tuple)) else None

    def _sign(self, call: Call) -> Signs | None:
        """Of a ReLU, a sign is never -1; many of its values are exact zeros, which are then no rounding matter."""
        x = call.args[0]
        low, high = bounds(self._graph, x)
        return _signs(x, -1.0 if low < 0 else 0.0, 0.0, 1.0 if high > 0 else 0.0)

    def _comparison(self, call: Call) -> Signs | None:
        first, second = call.args
        turned = array_of(first) is not None
        x, level = (second, first) if turned else (first, second)
        below, equal, above = _COMPARISONS[op_name(call)]
        source = self._minus(x, array_of(level))
        return None if source is None else _signs(source, *((above, equal, below) if turned else (below, equal, above)))

    def _minus(self, x: relax.Expr, level: np.ndarray | None) -> relax.Expr | None:
        """``x - level``, whose sign is that of the comparison exactly; None where it cannot be a source."""
        if level is None or str(x.ty.dtype) != "float32" or not np.isfinite(level).all():
            return None
        if np.broadcast_shapes(level.shape, shape_of(x)) != shape_of(x):
            return None
        if not np.any(level):
            return x
        shift = constant(-level)
        key = (x.name, np.broadcast_to(value_of(shift), level.shape).tobytes())
        if key not in self._shifted:
            self._shifted[key] = self._graph.emit(relax.op.add(x, shift), f"{x.name}.shifted")
        return self._shifted[key]

    def _rounding(self, call: Call) -> Signs | None:
        return self._stepped(call.args[0], jump_of(self._graph, call))

    def _clip(self, call: Call) -> Signs | None:
        """A clip that leaves two results of a rounding."""
        inner = self._graph.call_of(call.args[0], *ROUNDINGS)
        if inner is None:
            return None
        return self._stepped(inner.args[0], jump_between(op_name(inner), *clip_bounds(call)))

    def _stepped(self, x: relax.Expr, jump: Jump | None) -> Signs | None:
        source = self._minus(x, np.asarray(jump.level, np.float32)) if jump is not None else None
        return None if jump is None or source is None else _signs(source, jump.low, jump.at, jump.low + 1)

    def _sum(self, call: Call) -> Signs | None:
        """Signs that are left where everything else cancels."""
        terms = cancelled(self._graph, call)
        if terms is None:
            return None
        operands = [(sign, self._operand(term)) for sign, term in terms]
        signs = [operand for _, operand in operands if isinstance(operand, Signs)]
        if not signs or any(operand is None for _, operand in operands):
            return None
        if not all(_together(signs[0], other) for other in signs):
            return None
        values = [(sign, operand.levels if isinstance(operand, Signs) else operand) for sign, operand in operands]
        terms32 = [np.float32(sign) * np.asarray(value, np.float32) for sign, value in values]
        return replace(signs[0], levels=reduce(np.add, terms32))

    def _product(self, call: Call) -> Signs | None:
        """Signs times a constant that is no single number, or times a tensor of one element."""
        for x, factor in (call.args, list(call.args)[::-1]):
            signs = self.of(x)
            if signs is None or signs.factor is not None or signs.levels.dtype != np.float32:
                continue
            single = isinstance(factor, relax.Var) and prod(shape_of(factor)) == 1
            if (single or array_of(factor) is not None) and len(shape_of(factor)) <= len(shape_of(x)):
                fits = np.broadcast_shapes(shape_of(x), shape_of(factor)) == shape_of(x)
                return replace(signs, factor=factor) if fits else None
        return None

    def _moved(self, call: Call) -> Signs | None:
        """Elements moved about: those of the source are."""
        signs = self.of(call.args[0])
        return None if signs is None or array_of(signs.factor) is not None else self._move(signs, call)

    def _move(self, signs: Signs, call: Call) -> Signs:
        moved = Call(call.op, [self.source(signs), *call.args[1:]], call.attrs, call.ty_args)
        return replace(signs, source=self._graph.emit(moved, f"{signs.source.name}.moved"), shape=())

    def _resized(self, call: Call) -> Signs | None:
        return self._moved(call) if str(call.attrs["method"]) == "nearest_neighbor" else None

    def _padded(self, call: Call) -> Signs | None:
        return None if str(call.attrs["pad_mode"]) == "constant" else self._moved(call)

    def _reshaped(self, call: Call) -> Signs | None:
        signs = self.of(call.args[0])
        if signs is None or array_of(signs.factor) is not None:
            return None
        return replace(signs, shape=tuple(int(size) for size in call.args[1].values))

    def _pooled(self, call: Call) -> Signs | None:
        """The greatest sign is the sign of the greatest."""
        signs = self.of(call.args[0])
        if signs is None or signs.factor is not None:
            return None
        rising = signs if signs.negative < signs.positive else self._turned(signs)
        if not rising.negative <= rising.zero <= rising.positive:
            return None
        return self._move(rising, call)

    def _turned(self, signs: Signs) -> Signs:
        """The same levels as those of the negated source."""
        key = (signs.source.name, b"negated")
        if key not in self._shifted:
            negated = relax.op.multiply(signs.source, constant(np.float32(-1)))
            self._shifted[key] = self._graph.emit(negated, f"{signs.source.name}.negated")
        return replace(signs, source=self._shifted[key], levels=signs.levels[::-1])

    def _joined(self, call: Call) -> Signs | None:
        """Signs side by side, all with the same levels."""
        fields = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
        found = [self.of(field) for field in fields]
        signs = [each for each in found if each is not None and each.factor is None]
        if not signs or len(signs) < len(found):
            return None
        levels = signs[0].levels
        signs = [each if np.array_equal(each.levels, levels) else self._turned(each) for each in signs]
        if not all(np.array_equal(each.levels, levels) for each in signs):
            return None
        sources = relax.Tuple([self.source(each) for each in signs])
        joined = Call(call.op, [sources], call.attrs, call.ty_args)
        return Signs(self._graph.emit(joined, f"{signs[0].source.name}.joined"), signs[0].levels)


def _signs(source: relax.Expr, negative: float, zero: float, positive: float) -> Signs | None:
    if str(source.ty.dtype) != "float32":
        return None
    return Signs(source, np.array([negative, zero, positive], np.float32))


def _together(first: Signs, second: Signs) -> bool:
    """Are two tensors decided by the same elements?"""
    return first.source.same_as(second.source) and first.shape == second.shape


#: What a comparison with zero is for a negative, zero and positive number.
_COMPARISONS = {
    "greater": (0.0, 0.0, 1.0),
    "greater_equal": (0.0, 1.0, 1.0),
    "less": (1.0, 0.0, 0.0),
    "less_equal": (1.0, 1.0, 0.0),
    "equal": (0.0, 1.0, 0.0),
    "not_equal": (1.0, 0.0, 1.0),
}

_RULES = {
    "sign": SignFinder._sign,
    **dict.fromkeys(_COMPARISONS, SignFinder._comparison),
    **dict.fromkeys(ROUNDINGS, SignFinder._rounding),
    "clip": SignFinder._clip,
    "add": SignFinder._sum,
    "subtract": SignFinder._sum,
    "multiply": SignFinder._product,
    "reshape": SignFinder._reshaped,
    "permute_dims": SignFinder._moved,
    "strided_slice": SignFinder._moved,
    "take": SignFinder._moved,
    "nn.pad": SignFinder._padded,
    "nn.max_pool2d": SignFinder._pooled,
    "image.resize2d": SignFinder._resized,
    "concat": SignFinder._joined,
}
