"""Turn every NHWC convolution, pooling, resizing and concatenation of batch 1 into one of our operators."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import is_image, is_whole_image
from bitkiln.pipeline.ir.whole import WholeNumbers
from bitkiln.pipeline.ops.register import ints, pair, sides
from bitkiln.pipeline.passes import concats, matrices
from bitkiln.schedules.resize2d import COORDINATES, METHODS, ROUNDINGS
from bitkiln.schedules.workload import Pool


def to_operators(module: tvm.IRModule) -> tvm.IRModule:
    """Every NHWC convolution, pooling, resizing and concatenation of batch 1 as one of our operators."""
    exact = WholeNumbers(module["main"]).exact
    return rewrite(module, lambda graph, name, value: _as_ours(graph, value, name in exact))


def _as_ours(graph: Graph, value: relax.Expr, exact: bool) -> relax.Expr | None:
    operator = op_name(value)
    if operator == "nn.conv2d":
        return _conv2d(graph, value, exact)
    if operator == "nn.conv2d_transpose":
        return _conv2d_transpose(value)
    if operator == "image.resize2d":
        return _resize2d(value)
    if operator in ("nn.max_pool2d", "nn.avg_pool2d"):
        return _pool2d(value, operator[3:6])
    if operator in ("mean", "nn.adaptive_avg_pool2d"):
        return _global_average(graph, value)
    if operator == "matmul":
        return matrices.product(graph, value)
    if operator in ("nn.softmax", "nn.log_softmax"):
        return matrices.softmax(graph, value)
    if operator == "nn.layer_norm":
        return matrices.layer_norm(graph, value)
    if operator in ("multiply", "divide", "add"):
        spelled = matrices.spelled_layer_norm(graph, value) if operator == "divide" else None
        return matrices.scaled(graph, value) if spelled is None else spelled
    if operator == "concat":
        return concats.joined(graph, value)
    if operator == "strided_slice":
        return concats.sliced(graph, value)
    return None


def _conv2d(graph: Graph, call: Call, exact: bool) -> relax.Expr | None:
    attrs = call.attrs
    x, weight = call.args
    if str(attrs["data_layout"]) != "NHWC" or not is_image(x) or array_of(weight) is None:
        return None
    return ops.conv2d(
        x,
        weight,
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"]),
        dilation=pair(attrs["dilation"]),
        groups=int(attrs["groups"]),
        whole=exact,
    )


def _conv2d_transpose(call: Call) -> relax.Expr | None:
    """With stride 1 it is a convolution with its kernel turned round."""
    attrs = call.attrs
    x, weight = call.args
    array = array_of(weight)
    if str(attrs["data_layout"]) != "NHWC" or not is_image(x) or array is None:
        return None
    strides, dilation, extra = (pair(attrs[name]) for name in ("strides", "dilation", "output_padding"))
    padding = sides(attrs["padding"])
    groups, (ins, outs, height, width) = int(attrs["groups"]), array.shape
    grouped = array.reshape(groups, ins // groups, outs, height, width).transpose(0, 2, 3, 4, 1)
    weights = grouped.reshape(groups * outs, height, width, ins // groups)
    reach = [(size - 1) * step for size, step in zip((height, width), dilation, strict=True)]
    before = [r - pad for r, pad in zip(reach, padding[:2], strict=True)]
    around = sides([*before, *map(_after, reach, padding[2:], extra)])
    if strides == (1, 1) and min(around) >= 0:
        turned = constant(np.ascontiguousarray(weights[:, ::-1, ::-1]))
        return ops.conv2d(x, turned, padding=around, dilation=dilation, groups=groups)
    return ops.conv2d_transpose(
        x,
        constant(np.ascontiguousarray(weights)),
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=extra,
    )


def _after(reach: int, cropped: int, extra: int) -> int:
    """Zeros behind the image that a transposed convolution of stride 1 reads."""
    return reach - cropped + extra


def _resize2d(call: Call) -> relax.Expr | None:
    attrs, x = call.attrs, call.args[0]
    method, coordinates = str(attrs["method"]), str(attrs["coordinate_transformation_mode"])
    if str(attrs["layout"]) != "NHWC" or not is_image(x) or method not in METHODS or coordinates not in COORDINATES:
        return None
    rounding = str(attrs["rounding_method"]) if method == METHODS[0] else ""
    if method == METHODS[0] and rounding not in ROUNDINGS:
        return None
    size = pair(call.args[1].values)
    return ops.resize2d(x, size=size, method=method, coordinates=coordinates, rounding=rounding)


def _pool2d(call: Call, kind: str) -> relax.Expr | None:
    attrs = call.attrs
    x = call.args[0]
    whole = is_whole_image(x) and kind == "max"
    if str(attrs["layout"]) != "NHWC" or ints(attrs["dilation"]) != (1, 1) or not (is_image(x) or whole):
        return None
    kernel, strides, padding = pair(attrs["pool_size"]), pair(attrs["strides"]), sides(attrs["padding"])
    include = bool(attrs["count_include_pad"]) or not any(padding)
    if attrs["ceil_mode"]:
        extra = [
            -(size + padding[i] + padding[i + 2] - kernel[i]) % strides[i] for i, size in enumerate(shape_of(x)[1:3])
        ]
        if any(extra) and kind == "avg" and include:
            return None
        padding = (*padding[:2], padding[2] + extra[0], padding[3] + extra[1])
    if any(pad >= size for pad, size in zip(padding, (*kernel, *kernel), strict=True)):
        return None
    window = Pool(kernel, strides, padding, kind, include or kind == "max")
    return ops.pool2d(x, pool=window, out="int8" if whole else "float32")


def _global_average(graph: Graph, call: Call) -> relax.Expr | None:
    x = call.args[0]
    shape = shape_of(x)
    if not is_image(x):
        return None
    if op_name(call) == "mean":
        axis = call.attrs["axis"]
        whole = axis is not None and sorted(i % 4 for i in ints(axis)) == [1, 2]
    else:
        size = call.attrs["output_size"]
        whole = str(call.attrs["layout"]) == "NHWC" and size is not None and ints(size) == (1, 1)
    if not whole:
        return None
    result = shape_of(graph.normalized(call))
    pooled = ops.pool2d(x, pool=Pool(pair(shape[1:3]), (1, 1), kind="avg"))
    return pooled if len(result) == 4 else relax.op.reshape(graph.emit(pooled, f"{x.name}.pooled"), result)
