"""Operators to functions: ours to the reference of their workload, the rest to TVM's own definitions, fused.

FuseOps leaves our functions alone, since their epilogues have been fused by then, and joins what is left: softmax, concats,
residual additions that no convolution took. It makes up names for what it joins; here the tensors get theirs back.
"""

from __future__ import annotations

import hashlib

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar
from tvm.relax import TupleGetItem

from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.ir.graph import bindings, make_function, op_name, result_of, substitute, variables, with_main
from bitkiln.pipeline.support.tvm_messages import reason_of, silenced
from bitkiln.targets import Target


def legalize(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """``main`` as a straight line of call_tir and reshapes."""
    with target.tvm_target():
        legal = _with_functions(module)
        _check(legal)
        legal = relax.transform.AnnotateTIROpPattern()(legal)
        params = [param.name for param in legal["main"].params]
        marked = _renamed(
            legal, [name + _MARK for name, _ in bindings(legal["main"])], [name + _MARK for name in params]
        )
        fused = relax.transform.FuseOps()(marked)
        names = _names_of_groups(marked, fused)
        fused = _renamed(relax.transform.FuseTIR()(fused), names, params)
        return relax.transform.DeadCodeElimination()(fused)


def _with_functions(module: tvm.IRModule) -> tvm.IRModule:
    """A function for every operator. Raises UnsupportedLayer with the name of the first that TVM cannot make one for."""
    legalize_ops = relax.transform.LegalizeOps(skip_ops=["relax.reshape"])
    try:
        with silenced():
            return legalize_ops(module)
    except Exception as error:  # the operators' definitions raise whatever they meet
        for name, value in bindings(module["main"]):
            reason = _failure(legalize_ops, module, name, value)
            if reason:
                raise UnsupportedLayer(f"{name}: operator {op_name(value)} has no kernel: {reason}") from error
        raise


def _failure(transform: tvm.ir.transform.Pass, module: tvm.IRModule, name: str, value: relax.Expr) -> str:
    """Why ``transform`` fails on one binding; "" where it does not."""
    params = {var.name: relax.Var(var.name, var.ty) for var in variables(value)}
    function = make_function(list(params.values()), [(name, value)], relax.Var(name, value.ty), module["main"].attrs)
    try:
        with silenced():
            transform(with_main(module, function))
    except Exception as error:
        return reason_of(error)
    return ""


#: Ends every name while FuseOps makes up names of its own ("lv", "gv1"), which the network's may equal.
_MARK = "_"


def _check(module: tvm.IRModule) -> None:
    """Every operator must have become a function."""
    for name, value in bindings(module["main"]):
        if isinstance(value, Call) and op_name(value) not in ("call_tir", "reshape"):
            raise UnsupportedLayer(f"{name}: operator {op_name(value) or value.op} has no kernel")


#: Names in the network before FuseOps, of a variable after it; of each field where it holds a tuple.
_Originals = dict[str, str | tuple[str, ...]]


def _names_of_groups(legal: tvm.IRModule, fused: tvm.IRModule) -> list[str]:
    """The name in ``legal`` of each binding of ``fused``.

    Both do the same calls. A call is known by its function and what it reads, and is followed through the groups that
    FuseOps made.
    """
    known = {_identity(value, {}): name for name, value in bindings(legal["main"])}
    originals: _Originals = {param.name: param.name for param in legal["main"].params}
    names: list[str] = []
    for name, value in bindings(fused["main"]):
        if isinstance(value, Call) and isinstance(value.op, GlobalVar):
            inside = {p.name: _leaf(a, originals) for p, a in zip(fused[value.op].params, value.args, strict=True)}
            originals[name] = _follow(fused[value.op], inside, known)
        else:
            originals[name] = _original(value, originals, known)
        original = originals[name]
        plain = original.removesuffix(_MARK) if isinstance(original, str) else ""
        names.append(_unique(plain or f"{name}.group", names))
    return names


def _follow(group: relax.Function, inside: _Originals, known: dict[tuple[str, ...], str]) -> str | tuple[str, ...]:
    """The original of a group's result."""
    for name, value in bindings(group):
        inside[name] = _original(value, inside, known)
    return _original(group.body.body, inside, known)


def _original(value: relax.Expr, originals: _Originals, known: dict[tuple[str, ...], str]) -> str | tuple[str, ...]:
    if isinstance(value, relax.Tuple):
        return tuple(str(_leaf(field, originals)) for field in value.fields)
    if isinstance(value, TupleGetItem):
        whole = _leaf(value.tuple_value, originals)
        if isinstance(whole, tuple):
            return whole[value.index]
    if isinstance(value, relax.Var):
        return _leaf(value, originals)
    return known.get(_identity(value, originals), "")


def _identity(value: relax.Expr, originals: _Originals) -> tuple[str, ...]:
    """What a binding computes, in terms of original names."""
    if isinstance(value, TupleGetItem):
        return ("item", str(value.index), str(_leaf(value.tuple_value, originals)))
    if op_name(value) == "call_tir":
        function, args = value.args
        return (function.name_hint, *(str(_leaf(arg, originals)) for arg in args.fields))
    if isinstance(value, Call):
        return (op_name(value), *(str(_leaf(arg, originals)) for arg in value.args))
    return (str(value),)


def _leaf(expr: relax.Expr, originals: _Originals) -> str | tuple[str, ...]:
    if isinstance(expr, relax.Var):
        return originals.get(expr.name, expr.name)
    if isinstance(expr, GenericConst):
        return hashlib.sha256(expr.value.numpy().tobytes()).hexdigest()
    return str(expr)


def _unique(base: str, taken: list[str]) -> str:
    """``base``, or a name like it where it is taken."""
    number, unique = 0, base
    while unique in taken:
        number += 1
        unique = f"{base}.{number}"
    return unique


def _renamed(module: tvm.IRModule, names: list[str], param_names: list[str]) -> tvm.IRModule:
    """``module`` with other names for the bindings and parameters of ``main``."""
    function = module["main"]
    builder = relax.BlockBuilder()
    params = [relax.Var(name, param.ty) for name, param in zip(param_names, function.params, strict=True)]
    replaced: dict[str, relax.Expr] = {old.name: new for old, new in zip(function.params, params, strict=True)}
    values = []
    for (old, value), name in zip(bindings(function), names, strict=True):
        value = builder.normalize(substitute(value, replaced))
        values.append((name, value))
        replaced[old] = relax.DataflowVar(name, value.ty)
    result = substitute(result_of(function), replaced)
    return with_main(module, make_function(params, values, result, function.attrs))
