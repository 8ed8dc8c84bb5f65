"""Which tensors of a network hold whole numbers, and how large they get: the integers of a quantised network, in floats.

float32 holds whole numbers up to 2**24 exactly. A convolution of whole numbers whose sums stay below is exact in whatever order
they are added, as long as nothing else touches its weights and nothing transforms them.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import array_of, bindings, op_name
from bitkiln.pipeline.ir.operands import clip_bounds

#: Magnitudes of whole numbers up to which float32 has all of them.
EXACT = float(1 << 24)

_ROUNDING = frozenset({"round", "floor", "ceil"})

#: Operators whose results are among the elements of their first operand, or zero.
_CHOOSING = frozenset(
    {
        *("reshape", "permute_dims", "strided_slice", "take", "nn.max_pool2d", "max", "min", "nn.relu", "squeeze"),
        *("expand_dims", "broadcast_to", "tile", "flatten", "negative", "abs"),
    }
)

#: Operators that sum products of data and weights.
_CONVOLUTIONS = frozenset({"nn.conv2d", "nn.conv2d_transpose"})

#: Operators between the sums of a convolution and the rounding that makes whole numbers of them again.
_RESCALING = frozenset({"add", "subtract", "multiply", "divide"})


class WholeNumbers:
    """The tensors of ``function`` that hold whole numbers: ``bounds`` has the largest magnitude of each, by name.

    ``exact`` names the convolutions whose sums are exact; ``rescaled`` the operations that lead from them to a rounding,
    which decides by what they give.
    """

    def __init__(self, function: relax.Function) -> None:
        self.bounds: dict[str, float] = {}
        self.exact: set[str] = set()
        self.rescaled: set[str] = set()
        defined = dict(bindings(function))
        for name, value in defined.items():
            bound = self._bound(value)
            if bound is None or not isinstance(value, Call):
                continue
            self.bounds[name] = bound
            if op_name(value) in _CONVOLUTIONS and bound <= EXACT:
                self.exact.add(name)
        for value in defined.values():
            if op_name(value) in _ROUNDING:
                self.rescaled |= self._back_to_sums(value.args[0], defined)

    def _back_to_sums(self, expr: relax.Expr, defined: dict[str, relax.Expr]) -> set[str]:
        """The operations with constants between ``expr`` and an exact convolution; none where there is none."""
        passed: set[str] = set()
        while isinstance(expr, relax.Var) and expr.name in defined:
            if expr.name in self.exact:
                return passed
            value = defined[expr.name]
            if op_name(value) not in _RESCALING or array_of(value.args[1]) is None:
                break
            passed.add(expr.name)
            expr = value.args[0]
        return set()

    def _bound(self, expr: relax.Expr) -> float | None:
        """The largest magnitude of ``expr``; None where it need not be whole."""
        array = array_of(expr)
        if array is not None:
            whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool(np.all(array == np.round(array))))
            return float(np.abs(array.astype(np.float64)).max(initial=0.0)) if whole else None
        if isinstance(expr, relax.Var):
            return self.bounds.get(expr.name, _of_type(expr))
        if not isinstance(expr, Call):
            return None
        operator = op_name(expr)
        if operator in _ROUNDING:
            return float("inf")
        if operator == "clip":
            return self._clipped(expr)
        if operator == "astype" or operator in _CHOOSING:
            return self._bound(expr.args[0])
        if operator == "nn.pad":
            return self._bound(expr.args[0]) if float(expr.attrs["pad_value"]).is_integer() else None
        if operator == "concat":
            fields = getattr(expr.args[0], "fields", [])
            known = [bound for each in fields if (bound := self._bound(each)) is not None]
            return max(known) if known and len(known) == len(fields) else None
        if operator in ("add", "subtract", "multiply", "maximum", "minimum"):
            first, second = (self._bound(each) for each in expr.args)
            if first is None or second is None:
                return None
            return {"multiply": first * second, "maximum": max(first, second), "minimum": max(first, second)}.get(
                operator, first + second
            )
        return self._summed(expr) if operator in _CONVOLUTIONS else None

    def _clipped(self, call: Call) -> float | None:
        inner, limits = self._bound(call.args[0]), clip_bounds(call)
        if inner is None or not all(float(each).is_integer() or not np.isfinite(each) for each in limits):
            return None
        return min(inner, max(abs(float(each)) for each in limits))

    def _summed(self, call: Call) -> float | None:
        data, weight = self._bound(call.args[0]), array_of(call.args[1])
        if data is None or weight is None or self._bound(call.args[1]) is None:
            return None
        axis = str(call.attrs["kernel_layout"]).index("O")
        sums = np.abs(weight.astype(np.float64)).sum(axis=tuple(each for each in range(weight.ndim) if each != axis))
        return float(sums.max(initial=0.0)) * data


def _of_type(var: relax.Var) -> float | None:
    """What integers of a type reach."""
    kind = str(getattr(var.ty, "dtype", ""))
    if kind == "bool":
        return 1.0
    return float(2 ** (np.dtype(kind).itemsize * 8)) if kind.startswith(("int", "uint")) else None
