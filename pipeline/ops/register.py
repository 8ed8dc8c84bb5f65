"""How an operator of ours joins Relax: its arguments, attributes, type inference, purity and legalization.

A call of an operator stands for exactly one workload: ``workload_of(call)`` makes the ``Workload`` from the call's attributes
and argument types, ``call_of(workload, args)`` is the inverse. The result's type and the function a call is legalized to
follow from the workload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, TypeVar, overload

import tvm
from tvm import relax
from tvm.ir import Call, Op
from tvm.ir import _ffi_api as ir_ffi

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import (
    WORKLOAD_ATTR,
    Conv2d,
    DepthFirst,
    Lookup,
    Matrices,
    Normalize,
    Pool,
    QConv2d,
    Signs,
    Softmax,
    Workload,
    argument_specs,
    from_json,
    result_specs,
    signs_of,
    to_json,
)

#: TVM's pattern kind for a function that fusion must leave alone (kOpaque).
OPAQUE = 8

#: A kind of workload, e.g. ``Conv2d``.
Kind = TypeVar("Kind", bound=Workload)


@dataclass(frozen=True)
class RelaxOperator:
    """An operator and the workloads of class ``kind`` that its calls stand for: those whose fields are as in ``fixed``.

    ``attributes`` are the fields that a call carries; ``sizes`` tells the others from the types of its arguments.
    """

    op: Op
    kind: type[Workload]
    attributes: Mapping[str, Any]
    sizes: Callable[[Call], dict[str, Any]]
    fixed: Mapping[str, Any]

    def call(self, args: Sequence[relax.Expr], values: Mapping[str, Any]) -> Call:
        """A call with the attributes ``values`` and defaults for others. TypeError for one that is missing or unknown."""
        if unknown := values.keys() - self.attributes.keys():
            raise TypeError(f"{self.op.name} has no attribute {', '.join(sorted(unknown))}")
        defaults = {each.name: each.default for each in fields(self.kind)}
        given = {name: values.get(name, defaults[name]) for name in self.attributes}
        if missing := [name for name, value in given.items() if value is MISSING]:
            raise TypeError(f"{self.op.name} needs {', '.join(missing)}")
        plain = {name: _as_attribute(name, value) for name, value in given.items()}
        return Call(self.op, list(args), tvm.ir.make_node("ir.DictAttrs", **plain))

    def workload(self, call: Call) -> Workload:
        """What a call has to compute."""
        declared = {each.name: each.type for each in fields(self.kind)}
        stated = {name: _from_attribute(call.attrs[name], declared[name]) for name in self.attributes}
        return self.kind(**self.fixed, **self.sizes(call), **stated)


_operators: dict[str, RelaxOperator] = {}


def register(
    name: str,
    doc: str,
    arguments: tuple[str, ...],
    kind: type[Workload],
    attributes: type,
    sizes: Callable[[Call], dict[str, Any]],
    **fixed: bool | str,
) -> RelaxOperator:
    """Register ``relax.bitkiln.<name>``; further operands may follow ``arguments`` in a call.

    ``attributes`` is a TypedDict of those that the constructor takes; the rest is as in ``RelaxOperator``.
    """
    full_name = f"relax.bitkiln.{name}"
    ir_ffi.RegisterOp(full_name, doc)
    op = Op.get(full_name)
    made = _operators[full_name] = RelaxOperator(op, kind, attributes.__annotations__, sizes, fixed)
    op.set_num_inputs(-1)
    for argument in arguments:
        op.add_argument(argument, "Tensor", "")
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", lambda call, _builder: _infer_type(made.workload(call), call))
    op.set_attr("FLegalize", lambda builder, call: _legalize(builder, call, made.workload(call)))
    return made


def call_of(workload: Workload, args: Sequence[relax.Expr]) -> Call:
    """The call of the operator that computes ``workload``; ``args`` have the types that ``workload.shapes`` lists."""
    for each in _operators.values():
        if each.kind is type(workload) and all(getattr(workload, name) == value for name, value in each.fixed.items()):
            return each.call(args, {name: getattr(workload, name) for name in each.attributes})
    raise ValueError(f"no operator computes {workload.key()}")


@overload
def workload_of(call: Call) -> Workload: ...


@overload
def workload_of(call: Call, kind: type[Kind]) -> Kind: ...


def workload_of(call: Call, kind: type[Kind] | None = None) -> Workload | Kind:
    """What a call of one of our operators has to compute; ValueError for another operator, or a workload not of ``kind``."""
    operator = _operators.get(getattr(call.op, "name", ""))
    if operator is None:
        raise ValueError(f"{call.op} is no operator with a workload")
    workload = operator.workload(call)
    if kind is not None and not isinstance(workload, kind):
        raise ValueError(f"{call.op.name} computes a {workload.tag}, no {kind.__name__}")
    return workload


def has_workload(expr: relax.Expr) -> bool:
    """Is ``expr`` a call of one of our operators?"""
    return isinstance(expr, Call) and getattr(expr.op, "name", "") in _operators


def _as_attribute(name: str, value: Any) -> Any:
    """A field of a workload as the attribute of a call; epilogues and pools as JSON text, which every IR format can hold."""
    if name == "epilogue":
        return json.dumps([[step.op, step.operand, list(step.values)] for step in value])
    if name == "signs":
        return json.dumps([[_as_attribute("epilogue", each.epilogue), each.sign_zero] for each in value])
    if name == "layers":
        return json.dumps([to_json(each) for each in value])
    if isinstance(value, Matrices):
        return json.dumps([getattr(value, each.name) for each in fields(Matrices)])
    if name == "pool":
        return "" if value is None else json.dumps([getattr(value, each.name) for each in fields(Pool)])
    return list(map(int, value)) if isinstance(value, tuple) else value


def _from_attribute(value: Any, declared: Any) -> Any:
    """The inverse of ``_as_attribute`` for a field ``declared`` so."""
    match declared:
        case "tuple[Step, ...]":
            return tuple(Step(op, operand, tuple(values)) for op, operand, values in json.loads(value))
        case "tuple[Signs, ...]":
            return tuple(Signs(_from_attribute(steps, "tuple[Step, ...]"), zero) for steps, zero in json.loads(value))
        case "tuple[Conv2d, ...]":
            return tuple(from_json(text) for text in json.loads(value))
        case "Pool" | "Pool | None":
            if not value:
                return None
            kernel, strides, padding, *rest = json.loads(value)
            return Pool(pair(kernel), pair(strides), sides(padding), *rest)
        case "Matrices":
            shape, begin, stack, *rest = json.loads(value)
            return Matrices(tuple(shape), begin, tuple(stack), *rest)
        case "int":
            return int(value)
        case "float":
            return float(value)
        case "bool":
            return bool(value)
        case "str":
            return str(value)
        case _:
            return ints(value)


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


def operands_of(call: Call) -> list[relax.Expr]:
    """The operands of a call's epilogue."""
    begin, end = _operand_range(call)
    return list(call.args)[begin:end]


def with_epilogue(call: Call, steps: Sequence[Step], operands: Sequence[relax.Expr]) -> Call:
    """``call`` with another epilogue."""
    begin, end = _operand_range(call)
    args = [*list(call.args)[:begin], *operands, *list(call.args)[end:]]
    workload = workload_of(call)
    fixed = QConv2d | Lookup | DepthFirst | Softmax | Normalize
    assert not isinstance(workload, fixed), "what follows those is always the same"
    return call_of(replace(workload, epilogue=tuple(steps)), args)


def _operand_range(call: Call) -> tuple[int, int]:
    """Where the operands of the epilogue stand among the arguments: behind the tensors, before all others."""
    workload = workload_of(call)
    count = sum(step.operand != "" for step in workload.epilogue)
    behind = sum(bool(getattr(workload, name, False)) for name in ("threshold", "shift"))
    behind += sum(step.operand != "" for each in signs_of(workload) for step in each.epilogue)
    behind += max(0, len(workload.parts) - 1) if isinstance(workload, Conv2d) else 0
    return len(call.args) - behind - count, len(call.args) - behind


def image_size(call: Call) -> dict[str, int]:
    """Height, width and channels of a call's first argument, NHWC."""
    _, height, width, channels = shape_of(call.args[0])
    return {"height": height, "width": width, "channels": channels}


def packed_size(call: Call) -> dict[str, int]:
    """Height and width of a call's first argument, which is bits."""
    _, height, width, _ = shape_of(call.args[0])
    return {"height": height, "width": width}


def kernel_size(call: Call) -> dict[str, Any]:
    """Output channels and kernel of a call's second argument, OHWI."""
    out_channels, *kernel, _ = shape_of(call.args[1])
    return {"out_channels": out_channels, "kernel": pair(kernel)}


def _infer_type(workload: Workload, call: Call) -> tvm.ir.Type:
    """That of a tensor; of a tuple where there are signs beside it."""
    expected = list(argument_specs(workload))
    given = [(shape_of(arg), str(arg.ty.dtype)) for arg in call.args]
    if given != expected:
        raise ValueError(f"{call.op.name} ({workload.key()}) takes {expected}, got {given}")
    types = _result_types(workload)
    return types[0] if len(types) == 1 else tvm.ir.TupleType(types)


def _result_types(workload: Workload) -> list[relax.TensorType]:
    return [relax.TensorType(shape, dtype) for shape, dtype in result_specs(workload)]


def _legalize(builder: relax.BlockBuilder, call: Call, workload: Workload) -> relax.Expr:
    func = operator_for(workload).reference(workload).without_attr("global_symbol")
    func = func.with_attr({WORKLOAD_ATTR: to_json(workload), "op_pattern": OPAQUE})
    function = builder.add_func(func, call.op.name.removeprefix("relax.bitkiln."))
    types = _result_types(workload)
    return relax.call_tir(function, list(call.args), types[0] if len(types) == 1 else types)
