"""The straight line of named bindings that every pass rewrites.

A network is one Relax function ``main``: a list of bindings, each with a unique name, and a result. A pass visits the
bindings in order and answers what each becomes, in terms of what came before; what nobody uses any more is dropped.
So to fuse a conv into the add behind it, the visit of the add answers the conv with the add as its epilogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.errors import ModelError


class Graph:
    """The network under construction during a rewrite.

    ``uses`` counts how often each binding of the network before the rewrite was used; a binding made by the pass under a
    fresh name is taken to be used once.
    """

    def __init__(self, function: relax.Function) -> None:
        self.params = list(function.params)
        self.uses = count_uses(function)
        self._attrs = function.attrs
        self._taken = {name for name, _ in bindings(function)} | {param.name for param in self.params}
        self._values: dict[str, relax.Expr] = {}
        self._replaced: dict[str, relax.Expr] = {param.name: param for param in self.params}
        self._positions: dict[str, int] = {}
        self._builder = relax.BlockBuilder()

    def bind(self, name: str, value: relax.Expr) -> relax.Expr:
        """Make ``name`` stand for ``value``: an operation, or a tensor that exists already."""
        self.alias(name, value if is_leaf(value) else self._emit(name, value))
        return self._replaced[name]

    def alias(self, name: str, value: relax.Expr) -> None:
        """Let what comes use ``value`` where it used the tensor ``name``."""
        self._replaced[name] = value

    def emit(self, value: relax.Expr, hint: str) -> relax.Expr:
        """Add an operation under a fresh name made from ``hint``."""
        name, number = hint, 0
        while name in self._taken:
            number += 1
            name = f"{hint}.{number}"
        self._taken.add(name)
        return self._emit(name, value)

    def definition(self, expr: relax.Expr) -> relax.Expr | None:
        """The operation that makes ``expr``; None for parameters and constants."""
        return self._values.get(expr.name) if isinstance(expr, relax.Var) else None

    def call_of(self, expr: relax.Expr, *names: str) -> Call | None:
        """The operation that makes ``expr`` if it is a call of one of the operators ``names``."""
        made_by = self.definition(expr)
        return made_by if made_by is not None and op_name(made_by) in names else None

    def made_by(self, expr: relax.Expr) -> Call:
        """The call that is known to make ``expr``; ValueError where none does."""
        call = self.definition(expr)
        if not isinstance(call, Call):
            raise ValueError("no result of an operator, as it was taken for")
        return call

    def position(self, expr: relax.Var) -> int:
        """How many operations stand before the one that makes ``expr``."""
        return self._positions[expr.name]

    def used_once(self, expr: relax.Expr) -> bool:
        """Has ``expr`` exactly one use, so that it need not be kept when that use takes its place?"""
        return isinstance(expr, relax.Var) and self.uses.get(expr.name, 1) == 1

    def taken_over(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` for a binding that adds nothing to it; where that is its only use, it gets the binding's name."""
        made_by = self.definition(expr)
        return made_by if made_by is not None and self.used_once(expr) else expr

    def remap(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` of the network before the rewrite, in terms of the one under construction."""
        return substitute(expr, self._replaced)

    def normalized(self, value: relax.Expr) -> relax.Expr:
        """``value`` with its type inferred."""
        return self._builder.normalize(value)

    def finish(self, result: relax.Expr) -> relax.Function:
        """The new function; ``result`` is that of the network under construction."""
        return make_function(self.params, list(self._values.items()), result, self._attrs)

    def _emit(self, name: str, value: relax.Expr) -> relax.Var:
        value = self.normalized(value)
        self._positions[name] = len(self._values)
        self._values[name] = value
        return relax.DataflowVar(name, value.ty)


Visit = Callable[[Graph, str, relax.Expr], relax.Expr | None]


def rewrite(module: tvm.IRModule, visit: Visit) -> tvm.IRModule:
    """Rewrite ``main``: ``visit(graph, name, value)`` answers the new value of a binding, or None to keep it.

    Types of ``value``'s arguments are known; its own is inferred only when it is bound.
    """
    function = module["main"]
    graph = Graph(function)
    for name, value in bindings(function):
        value = graph.remap(value)
        changed = visit(graph, name, value)
        graph.bind(name, value if changed is None else changed)
    return with_main(module, graph.finish(graph.remap(result_of(function))))


def with_main(module: tvm.IRModule, function: relax.Function) -> tvm.IRModule:
    """``module`` with another ``main``."""
    functions = dict(module.functions_items()) | {module.get_global_var("main"): function}
    return relax.transform.Normalize()(tvm.IRModule(functions))


def make_function(
    params: list[relax.Var], values: list[tuple[str, relax.Expr]], result: relax.Expr, attrs: tvm.ir.DictAttrs
) -> relax.Function:
    """A straight line of bindings, without those that the result does not need."""
    outputs = {var.name for var in variables(result)}
    live = _needed(values, outputs)
    vars_by_name: dict[str, relax.Expr] = {param.name: param for param in params}
    block = []
    for name, value in values:
        if name in live:
            kind = relax.Var if name in outputs else relax.DataflowVar
            vars_by_name[name] = kind(name, value.ty)
            block.append(relax.VarBinding(vars_by_name[name], substitute(value, vars_by_name)))
    result = substitute(result, vars_by_name)
    body = relax.SeqExpr([relax.DataflowBlock(block)] if block else [], result)
    return relax.Function(params, body, relax.BlockBuilder().normalize(result).ty, attrs=attrs)


def bindings(function: relax.Function) -> Iterator[tuple[str, relax.Expr]]:
    """Name and value of each binding, in order."""
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding):
                raise ModelError(f"{binding.var.name}: shapes that depend on the data are not supported")
            yield binding.var.name, binding.value


#: Attribute of an imported function: what the file calls its operations, by their variables.
FILE_NAMES = "bitkiln.file_names"


def with_file_names(function: relax.Function, names: Mapping[str, str]) -> relax.Function:
    """``function``, knowing what the file calls its operations."""
    return function.with_attr(FILE_NAMES, dict(names))


def file_names(function: relax.Function) -> dict[str, str]:
    """What the file calls operations, by their variables; those that are missing it calls as we do."""
    known = function.attrs[FILE_NAMES] if function.attrs and FILE_NAMES in function.attrs else {}
    return {str(variable): str(name) for variable, name in known.items()}


def result_of(function: relax.Function) -> relax.Expr:
    """The function's result: a variable, or a tuple of variables written out."""
    result = function.body.body
    made_by = dict(bindings(function)).get(result.name) if isinstance(result, relax.Var) else None
    return made_by if isinstance(made_by, relax.Tuple) else result


def variables(expr: relax.Expr) -> Iterator[relax.Var]:
    """The variables that an operation reads, as often as it reads them."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, Call):
        for arg in expr.args:
            yield from variables(arg)
    elif isinstance(expr, relax.Tuple):
        for item in expr.fields:
            yield from variables(item)
    elif isinstance(expr, TupleGetItem):
        yield from variables(expr.tuple_value)


def substitute(expr: relax.Expr, replaced: dict[str, relax.Expr]) -> relax.Expr:
    """``expr`` with variables replaced by name."""
    if isinstance(expr, relax.Var):
        return replaced.get(expr.name, expr)
    if isinstance(expr, Call):
        args = [substitute(arg, replaced) for arg in expr.args]
        return Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(item, replaced) for item in expr.fields])
    if isinstance(expr, TupleGetItem):
        inner = substitute(expr.tuple_value, replaced)
        return inner.fields[expr.index] if isinstance(inner, relax.Tuple) else TupleGetItem(inner, expr.index)
    return expr


def count_uses(function: relax.Function) -> Counter[str]:
    """How often each variable is read; the result counts as a use."""
    uses = Counter(var.name for _, value in bindings(function) for var in variables(value))
    uses.update(var.name for var in variables(result_of(function)))
    return uses


def op_name(expr: relax.Expr | None) -> str:
    """The operator that ``expr`` calls, without the prefix "relax."; "" for anything else."""
    name = getattr(expr.op, "name", "") if isinstance(expr, Call) else ""
    return name.removeprefix("relax.")


def is_leaf(expr: relax.Expr) -> bool:
    """Is ``expr`` a variable or a constant?"""
    return isinstance(expr, (relax.Var, GenericConst))


def array_of(expr: relax.Expr) -> np.ndarray | None:
    """The value of a constant; None for anything else."""
    return expr.value.numpy() if isinstance(expr, GenericConst) else None


def value_of(expr: relax.Expr) -> np.ndarray:
    """The value of what is known to be a constant; ValueError for anything else."""
    array = array_of(expr)
    if array is None:
        raise ValueError("not a constant, as it was taken for")
    return array


def constant(array: np.ndarray | np.generic, dtype: str = "float32") -> GenericConst:
    """An array as a constant."""
    # What float32 cannot hold becomes infinite, as it does in every engine that reads the file.
    with np.errstate(over="ignore"):
        return relax.const(np.array(array, dtype=dtype, order="C"), dtype)


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor."""
    return tuple(int(size) for size in expr.ty.shape.values)


def _needed(values: list[tuple[str, relax.Expr]], outputs: set[str]) -> set[str]:
    needed = set(outputs)
    for name, value in reversed(values):
        if name in needed:
            needed.update(var.name for var in variables(value))
    return needed
