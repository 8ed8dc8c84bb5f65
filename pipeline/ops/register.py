"""How an operator of ours joins Relax: its arguments, type inference, purity and legalization.

An operator stands for exactly one workload: ``describe(call)`` makes the ``Workload`` from the call's attributes and
argument types. The result's type and the function it is legalized to follow from the workload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, overload

import tvm
from tvm import relax
from tvm.ir import Call, Op
from tvm.ir import _ffi_api as ir_ffi

from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import WORKLOAD_ATTR, Pool, Workload, to_json

#: TVM's pattern kind for a function that fusion must leave alone (kOpaque).
OPAQUE = 8

#: A kind of workload, e.g. ``Conv2d``.
Kind = TypeVar("Kind", bound=Workload)

_describers: dict[str, Callable[[Call], Workload]] = {}


def register(name: str, doc: str, arguments: tuple[str, ...], describe: Callable[[Call], Workload]) -> Op:
    """Register ``relax.bitkiln.<name>``; further operands may follow ``arguments`` in a call."""
    full_name = f"relax.bitkiln.{name}"
    ir_ffi.RegisterOp(full_name, doc)
    op = Op.get(full_name)
    op.set_num_inputs(-1)
    for argument in arguments:
        op.add_argument(argument, "Tensor", "")
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", lambda call, _builder: _infer_type(describe(call), call))
    op.set_attr("FLegalize", lambda builder, call: _legalize(builder, call, describe(call)))
    _describers[full_name] = describe
    return op


@overload
def workload_of(call: Call) -> Workload: ...


@overload
def workload_of(call: Call, kind: type[Kind]) -> Kind: ...


def workload_of(call: Call, kind: type[Kind] | None = None) -> Workload | Kind:
    """What a call of one of our operators has to compute; ValueError for another operator, or a workload not of ``kind``."""
    describe = _describers.get(getattr(call.op, "name", ""))
    if describe is None:
        raise ValueError(f"{call.op} is no operator with a workload")
    workload = describe(call)
    if kind is not None and not isinstance(workload, kind):
        raise ValueError(f"{call.op.name} computes a {workload.tag}, no {kind.__name__}")
    return workload


def has_workload(expr: relax.Expr) -> bool:
    """Is ``expr`` a call of one of our operators?"""
    return isinstance(expr, Call) and getattr(expr.op, "name", "") in _describers


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(size) for size in expr.ty.shape.values)


def attributes(
    *, epilogue: Sequence[Step] = (), pool: Pool | None = None, **values: int | str | tuple[int, ...]
) -> tvm.ir.DictAttrs:
    """Attributes of a call; epilogues and pools are kept as JSON text, which every IR format can hold."""
    plain = {key: list(map(int, value)) if isinstance(value, tuple) else value for key, value in values.items()}
    texts = {"epilogue": _steps_as_text(epilogue), "pool": _pool_as_text(pool)}
    return tvm.ir.make_node("ir.DictAttrs", **plain, **texts)


def with_attributes(call: Call, **changed: Any) -> tvm.ir.DictAttrs:
    """The attributes of ``call``, some of them ``changed``, by the names and types of ``attributes``."""
    kept = {name: call.attrs[name] for name in call.attrs.keys()}  # noqa: SIM118  It is no mapping.
    made = attributes(**changed)
    return tvm.ir.make_node("ir.DictAttrs", **kept | {name: made[name] for name in changed})


def _steps_as_text(steps: Iterable[Step]) -> str:
    return json.dumps([[step.op, step.operand, list(step.values)] for step in steps])


def _pool_as_text(pool: Pool | None) -> str:
    if pool is None:
        return ""
    return json.dumps([pool.kernel, pool.strides, pool.padding, pool.kind, pool.count_include_pad])


def ints(value: Iterable[Any]) -> tuple[int, ...]:
    """A list attribute as a tuple."""
    return tuple(int(item) for item in value)


def pair(value: Iterable[Any]) -> tuple[int, int]:
    """A list attribute of two: along height and width."""
    height, width = map(int, value)
    return height, width


def sides(value: Iterable[Any]) -> tuple[int, int, int, int]:
    """A list attribute of four: top, left, bottom, right."""
    top, left, bottom, right = map(int, value)
    return top, left, bottom, right


def epilogue_of(call: Call) -> tuple[Step, ...]:
    """The epilogue of a call."""
    return tuple(Step(op, operand, tuple(values)) for op, operand, values in json.loads(call.attrs["epilogue"]))


def operands_of(call: Call) -> list[relax.Expr]:
    """The operands of a call's epilogue."""
    begin, end = _operand_range(call)
    return list(call.args)[begin:end]


def with_epilogue(call: Call, steps: Sequence[Step], operands: Sequence[relax.Expr]) -> Call:
    """``call`` with another epilogue."""
    begin, end = _operand_range(call)
    args = [*list(call.args)[:begin], *operands, *list(call.args)[end:]]
    return Call(call.op, args, with_attributes(call, epilogue=tuple(steps)))


def _operand_range(call: Call) -> tuple[int, int]:
    """Where the operands of the epilogue stand among the arguments: behind the tensors, before thresholds and shift."""
    count = sum(step.operand != "" for step in epilogue_of(call))
    workload = workload_of(call)
    behind = sum(bool(getattr(workload, name, False)) for name in ("threshold", "shift"))
    return len(call.args) - behind - count, len(call.args) - behind


def pool_of(call: Call) -> Pool | None:
    """The fused pooling of a call, if it has one."""
    if not call.attrs["pool"]:
        return None
    kernel, strides, padding, kind, count_include_pad = json.loads(call.attrs["pool"])
    return Pool(tuple(kernel), tuple(strides), tuple(padding), kind, count_include_pad)


def _infer_type(workload: Workload, call: Call) -> relax.TensorType:
    *expected, (shape, dtype) = workload.shapes
    given = [(shape_of(arg), str(arg.ty.dtype)) for arg in call.args]
    if given != expected:
        raise ValueError(f"{call.op.name} ({workload.key()}) takes {expected}, got {given}")
    return relax.TensorType(shape, dtype)


def _legalize(builder: relax.BlockBuilder, call: Call, workload: Workload) -> relax.Expr:
    func = operator_for(workload).reference(workload).without_attr("global_symbol")
    func = func.with_attr({WORKLOAD_ATTR: to_json(workload), "op_pattern": OPAQUE})
    function = builder.add_func(func, call.op.name.removeprefix("relax.bitkiln."))
    shape, dtype = workload.shapes[-1]
    return relax.call_tir(function, list(call.args), relax.TensorType(shape, dtype))
