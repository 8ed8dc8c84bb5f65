"""Sums in which terms cancel: what straight-through estimators leave in an exported network.

An estimator gives the sign forwards and the gradient of some p(x) backwards: (sign(x) - p).detach() + p. The export has both
p, as one tensor or computed twice over.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call
from tvm_ffi import structural_equal

from bitkiln.pipeline.ir.graph import Graph, array_of, op_name

#: Terms of a sum that are looked at.
_MAX_TERMS = 32

#: Operations compared to tell whether two tensors are the same.
_MAX_COMPARED = 500

Term = tuple[int, relax.Expr]


def cancelled(graph: Graph, call: Call) -> list[Term] | None:
    """The terms of the sum ``call``, each with +1 or -1, without those that cancel; None where no tensor does."""
    terms = _terms(graph, call)
    if terms is None:
        return None
    kept: list[Term] = []
    tensors = 0
    for sign, term in terms:
        opposite = next((i for i, other in enumerate(kept) if other[0] == -sign and _same(graph, term, other[1])), None)
        if opposite is None:
            kept.append((sign, term))
        else:
            del kept[opposite]
            tensors += isinstance(term, relax.Var)
    return kept if tensors else None


def _terms(graph: Graph, call: Call) -> list[Term] | None:
    """The sum written out; None if it is a long one."""
    terms: list[Term] = []
    pending = _parts(call, 1)
    while pending:
        sign, expr = pending.pop()
        parts = _parts(graph.definition(expr), sign)
        if not parts:
            terms.append((sign, expr))
        pending.extend(parts)
        if len(terms) + len(pending) > _MAX_TERMS:
            return None
    return terms


def _parts(call: relax.Expr | None, sign: int) -> list[Term]:
    """The terms of one addition, subtraction or negation."""
    if not isinstance(call, Call):
        return []
    match op_name(call):
        case "add":
            return [(sign, call.args[0]), (sign, call.args[1])]
        case "subtract":
            return [(sign, call.args[0]), (-sign, call.args[1])]
        case "negative":
            return [(-sign, call.args[0])]
        case "multiply":
            factor = array_of(call.args[1])
            if factor is not None and factor.size and np.all(factor == -1):
                return [(-sign, call.args[0])]
    return []


def _same(graph: Graph, first: relax.Expr, second: relax.Expr) -> bool:
    """Are two tensors computed alike?"""
    pending, seen = [(first, second)], set()
    while pending:
        one, other = pending.pop()
        if one.same_as(other):
            continue
        names = (getattr(one, "name", ""), getattr(other, "name", ""))
        if all(names) and names in seen:
            continue
        seen.add(names)
        parts = _pairs(graph.definition(one), graph.definition(other)) if all(names) else _constants(one, other)
        if parts is None or len(seen) > _MAX_COMPARED:
            return False
        pending.extend(parts)
    return True


def _pairs(one: relax.Expr | None, other: relax.Expr | None) -> list[tuple[relax.Expr, relax.Expr]] | None:
    """What has to be the same for two operations to be; None if they differ."""
    if not isinstance(one, Call) or not isinstance(other, Call):
        return None
    if one.op != other.op or len(one.args) != len(other.args) or not structural_equal(one.attrs, other.attrs):
        return None
    return list(zip(one.args, other.args, strict=True))


def _constants(one: relax.Expr, other: relax.Expr) -> list[tuple[relax.Expr, relax.Expr]] | None:
    first, second = array_of(one), array_of(other)
    if first is not None and second is not None:
        same = first.dtype == second.dtype and first.shape == second.shape and np.array_equal(first, second)
        return [] if same else None
    return [] if structural_equal(one, other) else None
