"""Operators to functions: ours to the reference of their workload, the rest to TVM's own definitions, fused.

FuseOps leaves our functions alone, since their epilogues have been fused by then, and joins what is left: softmax, concats,
residual additions that no convolution took. It makes up names for what it joins; here the tensors get theirs back.
"""

from __future__ import annotations

import hashlib

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar

from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.passes.graph import bindings, make_function, op_name, result_of, substitute, with_main
from bitkiln.targets import Target


def legalize(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """``main`` as a straight line of call_tir and reshapes."""
    with target.tvm_target():
        legal = relax.transform.LegalizeOps(skip_ops=["relax.reshape"])(module)
        _check(legal)
        legal = relax.transform.AnnotateTIROpPattern()(legal)
        fused = relax.transform.FuseOps()(legal)
        names = _names_of_groups(legal, fused)
        fused = _renamed(relax.transform.FuseTIR()(fused), names)
        return relax.transform.DeadCodeElimination()(fused)


def _check(module: tvm.IRModule) -> None:
    """Every operator must have become a function."""
    for name, value in bindings(module["main"]):
        if isinstance(value, Call) and op_name(value) not in ("call_tir", "reshape"):
            raise UnsupportedLayer(f"{name}: operator {op_name(value) or value.op} has no kernel")


def _names_of_groups(legal: tvm.IRModule, fused: tvm.IRModule) -> list[str]:
    """The name in ``legal`` of each binding of ``fused``.

    Both do the same calls. A call is known by its function and what it reads, and follows through the groups that FuseOps
    made of them.
    """
    known = {_identity(value, {}): name for name, value in bindings(legal["main"])}
    names: list[str] = []
    originals = {param.name: param.name for param in legal["main"].params}
    for name, value in bindings(fused["main"]):
        if isinstance(value, Call) and isinstance(value.op, GlobalVar):
            original = _name_in_group(fused[value.op], value, originals, known)
        else:
            original = known.get(_identity(value, originals), name)
        originals[name] = original
        names.append(original)
    return names


def _name_in_group(
    group: relax.Function, call: Call, originals: dict[str, str], known: dict[tuple[str, ...], str]
) -> str:
    inside = {param.name: _leaf(arg, originals) for param, arg in zip(group.params, call.args, strict=True)}
    for name, value in bindings(group):
        inside[name] = known[_identity(value, inside)]
    return inside[group.body.body.name]


def _identity(value: relax.Expr, originals: dict[str, str]) -> tuple[str, ...]:
    """What a binding computes, in terms of original names."""
    if not isinstance(value, Call):
        return ("other", str(value))
    if op_name(value) == "call_tir":
        function, args = value.args
        return (function.name_hint, *(_leaf(arg, originals) for arg in args.fields))
    return (op_name(value), *(_leaf(arg, originals) for arg in value.args))


def _leaf(expr: relax.Expr, originals: dict[str, str]) -> str:
    if isinstance(expr, relax.Var):
        return originals.get(expr.name, expr.name)
    if isinstance(expr, GenericConst):
        return hashlib.sha256(expr.value.numpy().tobytes()).hexdigest()
    return str(expr)


def _renamed(module: tvm.IRModule, names: list[str]) -> tvm.IRModule:
    function = module["main"]
    builder = relax.BlockBuilder()
    replaced: dict[str, relax.Expr] = {}
    values = []
    for (old, value), name in zip(bindings(function), names, strict=True):
        value = builder.normalize(substitute(value, replaced))
        values.append((name, value))
        replaced[old] = relax.DataflowVar(name, value.ty)
    result = substitute(result_of(function), replaced)
    return with_main(module, make_function(list(function.params), values, result, function.attrs))
