"""Tensors of whole numbers, times a factor: of all activations, those whose exact zeros are no rare accident.

The sums of a binary convolution are whole, and as often 0 as any other number near it. Where a file has Sign(0) = 0 for
these, counting a zero as +1 would change the network.
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, array_of, op_name
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.pipeline.passes.binary.rounding import ROUNDINGS
from bitkiln.pipeline.passes.binary.signs import SignFinder
from bitkiln.schedules.workload import Conv2d

#: Operators that keep zeros and whole numbers, up to a factor.
_KEEPING = frozenset(
    {
        *("reshape", "permute_dims", "strided_slice", "take", "nn.max_pool2d"),
        *("nn.relu", "clip", "bitkiln.prelu", "nn.leakyrelu", "negative", "abs"),
    }
)

_MAX_DEPTH = 12


def often_zero(graph: Graph, finder: SignFinder, expr: relax.Expr) -> bool:
    """Are elements of ``expr`` whole numbers, times a factor, of which 0 is one?"""
    steps = _step_to_zero(graph, finder, expr, 0)
    return steps is not None and steps != 2


def _step_to_zero(graph: Graph, finder: SignFinder, expr: relax.Expr, depth: int) -> int | None:
    """1 for whole numbers, 2 for odd ones, None for what need not be whole."""
    call = graph.definition(expr)
    operator = op_name(call)
    if depth == _MAX_DEPTH or call is None:
        return None
    if operator in ROUNDINGS:
        return 1
    if operator == "bitkiln.bconv2d":
        work = workload_of(call, Conv2d)
        terms = work.kernel[0] * work.kernel[1] * work.channels // work.groups
        return 2 if terms % 2 and (work.pad_value or not any(work.padding)) else 1
    if operator in _KEEPING or (operator == "multiply" and array_of(call.args[1]) is not None):
        return _step_to_zero(graph, finder, call.args[0], depth + 1)
    if operator == "add":
        return 1 if all(_is_whole(graph, finder, arg, depth) for arg in call.args) else None
    return None


def _is_whole(graph: Graph, finder: SignFinder, expr: relax.Expr, depth: int) -> bool:
    """Is ``expr`` whole without a factor, as far as its operators tell?"""
    array = array_of(expr)
    if array is not None:
        return bool(np.all(array == np.round(array)))
    signs = finder.of(expr)
    if signs is not None:
        return bool(np.all(signs.levels == np.round(signs.levels))) and signs.factor is None
    return _step_to_zero(graph, finder, expr, depth + 1) is not None
