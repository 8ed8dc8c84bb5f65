"""A network evaluated binding by binding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.ir.graph import bindings, op_name, result_of, variables
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.reference.operators import OPERATORS
from bitkiln.pipeline.reference.through_tvm import run_operator, run_prim_func
from bitkiln.pipeline.reference.values import Tensors, Value
from bitkiln.pipeline.reference.workloads import compute

#: Stands in for the evaluation of single bindings: the name, the operation, what is known -> its value, or None.
Instead = Callable[[str, relax.Expr, Mapping[str, Value]], Value | None]


def evaluate(
    module: tvm.IRModule,
    known: Tensors,
    wanted: Iterable[str] | None = None,
    wide: bool = False,
    instead: Instead = lambda _name, _expr, _values: None,
) -> dict[str, np.ndarray]:
    """The tensors called ``wanted`` (all, where None) of ``main``, given ``known`` ones: inputs or anything between.

    Only what ``wanted`` needs beyond ``known`` is computed, so a part of the network can be run from its own inputs.
    With ``wide`` every float32 between is float64: the difference to float32 is what rounding makes of it. ``instead``
    may evaluate a binding in another way.
    """
    defined = dict(bindings(module["main"]))
    targets = list(defined) if wanted is None else list(wanted)
    widen = _widened if wide else lambda value: value
    values: dict[str, Value] = {name: widen(value) for name, value in known.items()}
    for name in _order(defined, values, targets):
        try:
            value = instead(name, defined[name], values)
            values[name] = widen(evaluate_call(module, defined[name], values) if value is None else value)
        except NotImplementedError as error:
            raise ModelError(f"{name}: no reference for operator {error}") from None
    return {name: values[name] for name in targets if isinstance(values[name], np.ndarray)}


def run(module: tvm.IRModule, inputs: Tensors) -> list[np.ndarray]:
    """The network's outputs."""
    return outputs_of(module, evaluate(module, inputs, output_names(module)))


def outputs_of(module: tvm.IRModule, values: Tensors) -> list[np.ndarray]:
    """The network's outputs, constants among them; ``values`` has the tensors that ``output_names`` gives."""
    return [
        values[output.name] if isinstance(output, relax.Var) else output.value.numpy() for output in outputs(module)
    ]


def needed(module: tvm.IRModule, known: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The bindings of ``main`` that compute ``wanted`` from ``known`` tensors, in order."""
    return _order(dict(bindings(module["main"])), dict.fromkeys(known), wanted)


def output_names(module: tvm.IRModule) -> list[str]:
    """Names of the tensors that ``main`` returns. Constants that it returns have none."""
    return [output.name for output in outputs(module) if isinstance(output, relax.Var)]


def outputs(module: tvm.IRModule) -> list[relax.Var | GenericConst]:
    """The tensors and constants that ``main`` returns, in order."""
    pending, found = [result_of(module["main"])], []
    while pending:
        each = pending.pop(0)
        if isinstance(each, relax.Tuple):
            pending[:0] = each.fields
        else:
            found.append(each)
    return found


def _order(defined: Mapping[str, relax.Expr], known: Collection[str], wanted: Iterable[str]) -> list[str]:
    """The bindings to compute for ``wanted``, in the order they stand in."""
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        if name in known or name in needed:
            continue
        if name not in defined:
            raise KeyError(f"{name} is neither known nor computed by the network")
        needed.add(name)
        pending.extend(var.name for var in variables(defined[name]))
    return [name for name in defined if name in needed]


def _widened(value: Value) -> Value:
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    return value.astype(np.float64) if value.dtype == np.float32 else value


def evaluate_call(module: tvm.IRModule, expr: relax.Expr, values: Mapping[str, Value]) -> Value:
    """One operation on the tensors it reads; NotImplementedError names an operator that has no reference."""
    if isinstance(expr, relax.Var):
        return values[expr.name]
    if isinstance(expr, GenericConst):
        return expr.value.numpy()
    if isinstance(expr, relax.Tuple):
        return tuple(evaluate_call(module, item, values) for item in expr.fields)
    if isinstance(expr, TupleGetItem):
        return evaluate_call(module, expr.tuple_value, values)[expr.index]
    if not isinstance(expr, Call):
        return expr
    if op_name(expr) == "call_tir":
        args = evaluate_call(module, expr.args[1], values)
        return run_prim_func(module[expr.args[0]], args, expr)
    args = [evaluate_call(module, arg, values) for arg in expr.args]
    if has_workload(expr):
        return compute(workload_of(expr), args)
    function = OPERATORS.get(op_name(expr))
    result = function(expr, *args) if function else run_operator(expr, args)
    return result if isinstance(result, tuple) else np.asarray(result)  # numpy makes numbers of tensors without axes
