"""Few operators for many: what importers write in several ways becomes one way, and constants are computed.

Inference batch norm becomes a multiplication and an addition, subtractions and divisions by constants likewise, shape
changes become reshape, and clamps become relu or clip. Operations on constants alone become constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.passes.graph import (
    Graph,
    array_of,
    constant,
    count_uses,
    op_name,
    result_of,
    rewrite,
    shape_of,
    variables,
)


def canonicalize(module: tvm.IRModule) -> tvm.IRModule:
    """The same network in fewer operators."""
    module = tvm.transform.Sequential([relax.transform.Normalize(), relax.transform.ConvertToDataflow()])(module)
    _check(module)
    return rewrite(module, lambda graph, name, value: _visit(module, graph, name, value))


def _check(module: tvm.IRModule) -> None:
    function = module["main"]
    for param in function.params:
        if not isinstance(param.ty, relax.TensorType) or not isinstance(param.ty.shape, relax.ShapeExpr):
            raise ModelError(f"input {param.name} has no static shape")
    if not count_uses(function) or not list(variables(result_of(function))):
        raise ModelError("the network computes nothing from its inputs")


def _visit(module: tvm.IRModule, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
    if isinstance(value, Call) and op_name(value) and not list(variables(value)):
        return _fold(module, graph, name, value)
    if isinstance(value, TupleGetItem):
        return _tuple_item(graph, name, value)
    visit = _VISITS.get(op_name(value))
    return visit(graph, name, value) if visit else None


def _fold(module: tvm.IRModule, graph: Graph, name: str, value: Call) -> relax.Expr | None:
    try:
        array = reference.evaluate_call(module, value, {})
    except NotImplementedError:
        return None
    if not isinstance(array, np.ndarray):
        return None
    return constant(array, str(graph.normalized(value).ty.dtype))


def _tuple_item(graph: Graph, name: str, value: TupleGetItem) -> relax.Expr | None:
    made_by = graph.definition(value.tuple_value)
    if isinstance(made_by, relax.Tuple):
        return made_by.fields[value.index]
    if value.index or op_name(made_by) not in ("nn.batch_norm", "nn.dropout"):
        return None
    return made_by.args[0] if op_name(made_by) == "nn.dropout" else _batch_norm(graph, name, made_by)


def _batch_norm(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    params = [array_of(arg) for arg in call.args[1:]]
    if any(param is None for param in params):
        return None
    gamma, beta, mean, variance = (param.astype(np.float64) for param in params)
    scale = 1 / np.sqrt(variance + float(call.attrs["epsilon"]))
    scale = scale * gamma if call.attrs["scale"] else scale
    shift = -mean * scale + (beta if call.attrs["center"] else 0)
    x = call.args[0]
    rank = len(shape_of(x))
    shape = [-1 if axis == int(call.attrs["axis"]) % rank else 1 for axis in range(rank)]
    scaled = graph.emit(relax.op.multiply(x, constant(scale.reshape(shape))), f"{name}.scaled")
    return relax.op.add(scaled, constant(shift.reshape(shape)))


def _subtract(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    first, second = call.args
    if _float(second):
        return relax.op.add(first, constant(-array_of(second)))
    if _float(first):
        return relax.op.add(graph.emit(_negate(second), f"{name}.negative"), first)
    return None


def _divide(_graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    first, second = call.args
    if not _float(second) or not np.all(array_of(second)):
        return None
    return relax.op.multiply(first, constant(1 / array_of(second).astype(np.float64)))


def _constant_last(_graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    first, second = call.args
    return Call(call.op, [second, first], call.attrs) if isinstance(first, GenericConst) else None


def _negative(_graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    return _negate(call.args[0]) if str(call.args[0].ty.dtype) == "float32" else None


def _negate(x: relax.Expr) -> Call:
    return relax.op.multiply(x, relax.const(-1.0, "float32"))


def _maximum(_graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    x, low = _with_scalar(call)
    if low is None or str(x.ty.dtype) != "float32":
        return None
    return relax.op.nn.relu(x) if low == 0 else relax.op.clip(x, low, np.inf)


def _minimum(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    x, high = _with_scalar(call)
    if high is None or str(x.ty.dtype) != "float32":
        return None
    inner = graph.call_of(x, "nn.relu", "clip")
    if inner is None or not graph.used_once(x):
        return relax.op.clip(x, -np.inf, high)
    low, top = clip_bounds(inner)
    return relax.op.clip(inner.args[0], low, min(top, high))


def clip_bounds(call: Call) -> tuple[float, float]:
    """Low and high of a call of relu, relu6 or clip."""
    match op_name(call):
        case "nn.relu":
            return 0.0, np.inf
        case "nn.relu6":
            return 0.0, 6.0
    return float(call.args[1]), float(call.args[2])


def _reshape(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    shape = shape_of(graph.normalized(call))
    return relax.op.reshape(call.args[0], shape) if op_name(call) != "reshape" else None


def _broadcast(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    return call.args[0] if shape_of(graph.normalized(call)) == shape_of(call.args[0]) else None


def _silu(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    """x * sigmoid(x)."""
    for x, other in (call.args, reversed(call.args)):
        gate = graph.call_of(other, "sigmoid")
        if gate is not None and gate.args[0].same_as(x):
            return relax.op.nn.silu(x)
    return _constant_last(graph, _name, call)


def _with_scalar(call: Call) -> tuple[relax.Expr, float | None]:
    for x, other in (call.args, reversed(call.args)):
        value = array_of(other)
        if value is not None and value.size == 1 and not isinstance(x, GenericConst):
            return x, value.item()
    return call.args[0], None


def _float(expr: relax.Expr) -> bool:
    return isinstance(expr, GenericConst) and str(expr.ty.dtype) == "float32"


_VISITS: dict[str, Callable[[Graph, str, Call], relax.Expr | None]] = {
    "add": _constant_last,
    "multiply": _silu,
    "subtract": _subtract,
    "divide": _divide,
    "negative": _negative,
    "maximum": _maximum,
    "minimum": _minimum,
    "reshape": _reshape,
    "flatten": _reshape,
    "nn.batch_flatten": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_to": _broadcast,
}
