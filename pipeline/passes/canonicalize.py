"""Few operators for many: what importers write in several ways becomes one way, and constants are computed.

Inference batch norm becomes an addition, a multiplication and an addition, subtractions of constants and divisions by powers
of two likewise, shape changes become reshape, and clamps become relu or clip. Operations on constants alone become constants.

All of it is exact: no float32 comes out other than the file's operators give it, one after another. What batch norm gives is
(x - mean) * s + beta with s = gamma / sqrt(variance + epsilon), rounded once. (Swishes alone are told by numbers near theirs.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    bindings,
    constant,
    op_name,
    rewrite,
    shape_of,
    value_of,
    variables,
)
from bitkiln.pipeline.ir.operands import clip_bounds, fits_float32, float64_of
from bitkiln.pipeline.passes.channel_shuffles import shuffled
from bitkiln.pipeline.passes.recognise_activations import gated, prelu_of_choice


def canonicalize(module: tvm.IRModule) -> tvm.IRModule:
    """The same network in fewer operators."""
    module = tvm.transform.Sequential([relax.transform.Normalize(), relax.transform.ConvertToDataflow()])(module)
    _check(module)
    module = rewrite(module, lambda graph, name, value: _visit(module, graph, name, value))
    for name, value in bindings(module["main"]):
        if isinstance(value.ty, relax.ShapeType):
            raise UnsupportedLayer(f"{name}: {op_name(value) or 'an operator'} makes a shape, which no kernel does")
        if not _is_static(value.ty):
            raise UnsupportedLayer(f"{name}: the shape that {op_name(value)} gives depends on the input's values")
    return module


def _check(module: tvm.IRModule) -> None:
    for param in module["main"].params:
        if not _is_static(param.ty):
            raise ModelError(f"input {param.name} has no static shape")


def _is_static(ty: tvm.ir.Type) -> bool:
    """Has a tensor, or each of a tuple, a known shape? Shapes as values have none to ask for."""
    if hasattr(ty, "fields"):
        return all(map(_is_static, ty.fields))
    if not isinstance(ty, relax.TensorType):
        return True
    return isinstance(ty.shape, relax.ShapeExpr) and all(hasattr(size, "value") for size in ty.shape.values)


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
    if value.index or not isinstance(made_by, Call) or op_name(made_by) not in ("nn.batch_norm", "nn.dropout"):
        return None
    return made_by.args[0] if op_name(made_by) == "nn.dropout" else _batch_norm(graph, name, made_by)


def _batch_norm(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    params = [values for arg in call.args[1:] if (values := float64_of(arg)) is not None]
    if len(params) < 4:
        return None
    gamma, beta, mean, variance = params
    scale = 1 / np.sqrt(variance + float(call.attrs["epsilon"]))
    scale = scale * gamma if call.attrs["scale"] else scale
    x = call.args[0]
    rank = len(shape_of(x))
    shape = [-1 if axis == int(call.attrs["axis"]) % rank else 1 for axis in range(rank)]
    if np.any(mean):
        x = graph.emit(relax.op.add(x, constant(-mean.reshape(shape))), f"{name}.centred")
    scaled = relax.op.multiply(x, constant(scale.reshape(shape)))
    if not (call.attrs["center"] and np.any(beta)):
        return scaled
    return relax.op.add(graph.emit(scaled, f"{name}.scaled"), constant(beta.reshape(shape)))


def _subtract(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    first, second = call.args
    if _float(second):
        return relax.op.add(first, constant(-value_of(second)))
    if _float(first):
        return relax.op.add(graph.emit(_negate(second), f"{name}.negative"), first)
    return None


def _divide(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    """Into a product where the reciprocal is exact, or where it is part of a swish."""
    first, second = call.args
    if not _float(second) or not np.all(value_of(second)):
        return None
    reciprocal = 1 / value_of(second).astype(np.float64)
    if not fits_float32(reciprocal):
        return None
    product = relax.op.multiply(first, constant(reciprocal))
    better = _multiply(graph, name, product)
    if better is None and _powers_of_two(value_of(second)):
        return product
    return better


def _powers_of_two(array: np.ndarray) -> bool:
    """Are all numbers of ``array`` powers of two whose reciprocals are normal numbers as well?"""
    share, exponent = np.frexp(array)
    return bool(np.all(np.abs(share) == 0.5) and np.all(np.abs(exponent) < 126))


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


def _prelu(_graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    x, slope = call.args
    array = array_of(slope)
    if array is None or array.dtype != np.float32:
        return None
    rank = len(shape_of(x))
    return ops.prelu(x, constant(array.reshape((-1,) + (1,) * (rank - 1 - int(call.attrs["axis"]) % rank))))


def _reshape(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    shape = shape_of(graph.normalized(call))
    shuffle = shuffled(graph, call)
    if shuffle is not None:
        return shuffle
    return relax.op.reshape(call.args[0], shape) if op_name(call) != "reshape" else None


def _permute_dims(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    """An image's pixels as rows, [1, C, H*W] turned round: the image is turned instead, which NHWC saves."""
    rows = graph.call_of(call.args[0], "reshape")
    axes = call.attrs["axes"]
    if rows is None or axes is None or [int(axis) for axis in axes] != [0, 2, 1]:
        return None
    x, shape = rows.args[0], shape_of(rows.args[0])
    if len(shape) != 4 or shape_of(call.args[0]) != (*shape[:2], shape[2] * shape[3]):
        return None
    pixels = graph.emit(relax.op.permute_dims(x, [0, 2, 3, 1]), f"{name}.pixels")
    return relax.op.reshape(pixels, (shape[0], shape[2] * shape[3], shape[1]))


def _broadcast(graph: Graph, _name: str, call: Call) -> relax.Expr | None:
    return call.args[0] if shape_of(graph.normalized(call)) == shape_of(call.args[0]) else None


def _multiply(graph: Graph, name: str, call: Call) -> relax.Expr | None:
    activation = gated(graph, call)
    return _constant_last(graph, name, call) if activation is None else activation


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
    "multiply": _multiply,
    "subtract": _subtract,
    "divide": _divide,
    "negative": _negative,
    "maximum": _maximum,
    "minimum": _minimum,
    "nn.prelu": _prelu,
    "where": prelu_of_choice,
    "reshape": _reshape,
    "flatten": _reshape,
    "nn.batch_flatten": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_to": _broadcast,
    "permute_dims": _permute_dims,
}
