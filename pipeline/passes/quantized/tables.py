"""Steps that depend on one number of 8 bits alone, as a table of its 256 values.

An activation between two roundings is such a step, and so are several in a row, or a product of a tensor with an activation of
itself: what matters is that all a step reads are functions of the same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import Graph, array_of, op_name
from bitkiln.pipeline.passes.quantized.whole_numbers import LEAST, MOST, Bytes
from bitkiln.pipeline.reference.operators import OPERATORS


@dataclass(frozen=True, eq=False)
class Function:
    """Floats that a tensor of 8 bits, called ``source``, decides one by one: ``values`` float32 [256], from -128 on."""

    source: str
    values: np.ndarray


def identity(found: Bytes, name: str) -> Function:
    """The whole numbers of a tensor themselves."""
    return Function(name, (np.arange(LEAST, MOST + 1) - found.zero).astype(np.float32))


def function_of(graph: Graph, expr: relax.Expr, known: dict[str, Function | None]) -> Function | None:
    """What ``expr`` is of a single tensor among the ``known`` functions; None where it depends on more, or on its place.

    What is found of tensors on the way is added to ``known``.
    """
    if not isinstance(expr, relax.Var):
        return _of_call(graph, expr, known)
    if expr.name not in known:
        known[expr.name] = _of_call(graph, graph.definition(expr), known)
    return known[expr.name]


def _of_call(graph: Graph, value: relax.Expr | None, known: dict[str, Function | None]) -> Function | None:
    operator = op_name(value)
    if value is None or operator not in ELEMENTWISE or operator not in OPERATORS:
        return None
    args: list[object] = []
    sources = set()
    for arg in value.args:
        array = array_of(arg)
        if array is not None:
            if array.size != 1:
                return None
            args.append(array.reshape(1))
        elif isinstance(arg, relax.Var):
            inner = function_of(graph, arg, known)
            if inner is None:
                return None
            sources.add(inner.source)
            args.append(inner.values)
        else:
            args.append(arg)
    if len(sources) != 1:
        return None
    values = OPERATORS[operator](value, *args)
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (MOST - LEAST + 1,):
        return None
    return Function(sources.pop(), values)


def entries(function: Function, zero: int) -> np.ndarray | None:
    """The function's values, which are whole numbers, as int8 with the zero point ``zero``; None where some do not fit."""
    values = function.values + zero
    if not np.all(np.isfinite(values)) or values.min() < LEAST or values.max() > MOST:
        return None
    return values.astype(np.int8)
