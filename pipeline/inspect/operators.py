"""Properties of a single operation: shapes, windows, weights, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.ir.graph import op_name, shape_of, variables
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.ops.register import ints
from bitkiln.schedules.workload import Binarize, Conv2d, Pool2d

#: Layers that multiply by weights and get an answer to whether they are binary.
CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "bconv2d", "matmul"} | {f"conv{n}d_transpose" for n in (1, 2, 3)}
)


#: Our operator for layers of whole numbers of 8 bits.
QCONV2D = "bitkiln.qconv2d"


def is_layer(value: relax.Expr) -> bool:
    """Does it multiply by weights?"""
    return op_name(value).removeprefix("nn.").removeprefix("bitkiln.") in CONVOLUTIONS


def operations(function: relax.Function) -> Iterator[tuple[str, relax.Expr]]:
    """Name and value of each binding, those that check a shape while the network runs included."""
    for block in function.body.blocks:
        for binding in block.bindings:
            yield binding.var.name, binding.value


def shape_of_type(ty: tvm.ir.Type) -> tuple[int, ...]:
    """The shape of a tensor, -1 where it is not known; of a tuple the first tensor's."""
    ty = ty.fields[0] if hasattr(ty, "fields") and len(ty.fields) else ty
    sizes = getattr(getattr(ty, "shape", None), "values", [None] * max(int(getattr(ty, "ndim", 0)), 0))
    return tuple(int(getattr(size, "value", -1)) for size in sizes)


def tensor_type(value: Call) -> tvm.ir.Type | None:
    """The type of a call that gives a tensor, or several."""
    ty = value.ty
    given = isinstance(ty, relax.TensorType) or (hasattr(ty, "fields") and len(ty.fields) > 0)
    return ty if given else None


def is_convolution(value: relax.Expr | None) -> bool:
    """Is it a convolution of ours, binary or not?"""
    return has_workload(value) and isinstance(workload_of(value), Conv2d)


def constant_args(value: relax.Expr) -> list[relax.Expr]:
    """The constants that a call reads."""
    return [arg for arg in getattr(value, "args", ()) if isinstance(arg, GenericConst)]


def constant_nbytes(constant: relax.Expr) -> int:
    """Bytes of a constant; what has less than a byte an element is counted with one."""
    return math.prod(shape_of(constant)) * max(constant.value.numpy().itemsize, 1)


def why_unseen(call: Call) -> str:
    """Why a convolution or matrix product got no verdict."""
    if not list(variables(call)):
        return "its result is known before the network runs"
    if op_name(call) == "matmul" and not isinstance(call.args[1], GenericConst):
        return "a product of two tensors that are computed while the network runs"
    if op_name(call) == "matmul":
        return "only rows of batch 1, in float32, can be binary"
    return f"only two-dimensional convolutions can be binary, not {op_name(call).removeprefix('nn.')}"


def packed_channels(call: Call) -> dict[str, Any]:
    """How many channels the bits hold that an operator of ours reads and writes."""
    workload = workload_of(call) if has_workload(call) else None
    if isinstance(workload, Binarize):
        return {"bits": workload.channels}
    if isinstance(workload, Conv2d):
        written = workload.out_channels if workload.out == "bits" else 0
        return {"bits": written, "input_bits": workload.channels if workload.binary else 0}
    if isinstance(workload, Pool2d):
        read = workload.channels if workload.bits else 0
        return {"bits": workload.channels if workload.out == "bits" else 0, "input_bits": read}
    return {}


def window_of(call: Call) -> dict[str, Any]:
    """Kernel, strides, padding, dilation and groups of a convolution or pooling in the file."""
    workload = workload_of(call) if has_workload(call) else None
    if isinstance(workload, Conv2d):
        names = ("kernel", "strides", "padding", "dilation", "groups")
        return {name: getattr(workload, name) for name in names}
    if isinstance(workload, Pool2d):
        return {name: getattr(workload.pool, name) for name in ("kernel", "strides", "padding")}
    operator, attrs = op_name(call).removeprefix("nn."), call.attrs
    if operator in ("max_pool2d", "avg_pool2d"):
        kernel = ints(attrs["pool_size"])
    elif operator in CONVOLUTIONS and operator != "matmul":
        layout = str(attrs["kernel_layout"])
        kernel = tuple(size for size, letter in zip(shape_of(call.args[1]), layout, strict=False) if letter in "DHW")
    else:
        return {}
    window = {"kernel": kernel} | {name: ints(attrs[name]) for name in ("strides", "padding", "dilation")}
    return window | ({"groups": int(attrs["groups"])} if "conv" in operator else {})


def weight_count(call: Call) -> int:
    """How many weights a convolution or matrix product has; those computed while the network runs do not count."""
    if has_workload(call):
        work = workload_of(call, Conv2d)
        return work.out_channels * math.prod(work.kernel) * (work.channels // work.groups)
    return sum(math.prod(shape_of(arg)) for arg in constant_args(call))


def macs_of(call: Call) -> int:
    """Multiply-accumulates of a convolution or matrix product; none where a shape is not known."""
    if has_workload(call):
        return workload_of(call).macs
    operator = op_name(call).removeprefix("nn.")
    if operator not in CONVOLUTIONS:
        return 0
    result, read, weights = (shape_of_type(expr.ty) for expr in (call, *call.args[:2]))
    if min((*result, *read, *weights), default=-1) < 0:
        return 0
    if operator == "matmul":
        return math.prod(result) * read[-1]
    if operator.endswith("_transpose"):
        # Every input element meets the weights of its channel.
        channels = weights[str(call.attrs["kernel_layout"]).index("I")]
        return math.prod(read) * (math.prod(weights) // max(channels, 1))
    channels = weights[str(call.attrs["kernel_layout"]).index("O")]
    return math.prod(result) * (math.prod(weights) // max(channels, 1))
