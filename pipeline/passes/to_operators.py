"""Turn every NHWC convolution, pooling and concatenation of batch 1 into one of our operators."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import is_image
from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.passes import concats
from bitkiln.schedules.workload import Pool


def to_operators(module: tvm.IRModule) -> tvm.IRModule:
    """Every NHWC convolution, pooling and concatenation of batch 1 as one of our operators."""
    return rewrite(module, lambda graph, _name, value: _as_ours(graph, value))


def _as_ours(graph: Graph, value: relax.Expr) -> relax.Expr | None:
    operator = op_name(value)
    if operator == "nn.conv2d":
        return _conv2d(graph, value)
    if operator in ("nn.max_pool2d", "nn.avg_pool2d"):
        return _pool2d(value, operator[3:6])
    if operator in ("mean", "nn.adaptive_avg_pool2d"):
        return _global_average(graph, value)
    if operator == "concat":
        return concats.joined(graph, value)
    if operator == "strided_slice":
        return concats.sliced(graph, value)
    return None


def _conv2d(graph: Graph, call: Call) -> relax.Expr | None:
    attrs = call.attrs
    x, weight = call.args
    if str(attrs["data_layout"]) != "NHWC" or not is_image(x) or array_of(weight) is None:
        return None
    return ops.conv2d(
        x,
        weight,
        strides=ints(attrs["strides"]),
        padding=ints(attrs["padding"]),
        dilation=ints(attrs["dilation"]),
        groups=int(attrs["groups"]),
    )


def _pool2d(call: Call, kind: str) -> relax.Expr | None:
    attrs = call.attrs
    x = call.args[0]
    if str(attrs["layout"]) != "NHWC" or ints(attrs["dilation"]) != (1, 1) or not is_image(x):
        return None
    kernel, strides, padding = ints(attrs["pool_size"]), ints(attrs["strides"]), ints(attrs["padding"])
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
    return ops.pool2d(x, pool=Pool(kernel, strides, padding, kind, include or kind == "max"))


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
    pooled = ops.pool2d(x, pool=Pool(shape[1:3], (1, 1), kind="avg"))
    return pooled if len(result) == 4 else relax.op.reshape(graph.emit(pooled, f"{x.name}.pooled"), result)
