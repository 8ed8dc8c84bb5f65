"""Dense layers become 1x1 convolutions of a 1x1 image, and what follows them stays on that image.

So dense layers get the epilogues, bits and kernels of convolutions. A one-row matrix [1, K] and the image [1, 1, 1, K] hold
the same data: the reshapes between them cost nothing, and elementwise operators on rows are moved to the image so that the
reshapes do not part a layer from its bias and activation. Several rows, as of a dense layer on each pixel or token, are an
image of one line.
"""

from __future__ import annotations

from math import prod

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of, value_of


def dense_to_conv(module: tvm.IRModule) -> tvm.IRModule:
    """The same network without dense layers whose weights are known."""
    images: dict[str, relax.Expr] = {}
    return rewrite(module, lambda graph, name, value: _visit(graph, name, value, images))


#: Rows by name as images that have been made of them.
_Images = dict[str, relax.Expr]


def _visit(graph: Graph, name: str, value: relax.Expr, images: _Images) -> relax.Expr | None:
    match op_name(value):
        case "matmul":
            return _matmul(graph, name, value, images)
        case "reshape":
            return _reshape(graph, value)
        case operator if operator in ELEMENTWISE:
            return _elementwise(graph, name, value, images)
    return None


def _matmul(graph: Graph, name: str, call: Call, images: _Images) -> relax.Expr | None:
    x, weight = call.args[0], array_of(call.args[1])
    shape = shape_of(x)
    if weight is None or weight.ndim != 2 or len(shape) < 2 or str(x.ty.dtype) != "float32":
        return None
    conv = relax.op.nn.conv2d(
        _image(graph, x, images),
        constant(weight.T[:, None, None, :]),
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_layout="NHWC",
    )
    return _row(graph, name, conv, (*shape[:-1], weight.shape[1]))


def _reshape(graph: Graph, call: Call) -> relax.Expr | None:
    """Skip reshapes of reshapes, and those to the shape that is there already."""
    x = call.args[0]
    shape = tuple(int(size) for size in call.args[1].values)
    inner = graph.call_of(x, "reshape")
    source = inner.args[0] if inner is not None else x
    return source if shape_of(source) == shape else relax.op.reshape(source, shape)


def _elementwise(graph: Graph, name: str, call: Call, images: _Images) -> relax.Expr | None:
    shape = shape_of(graph.normalized(call))
    one_row = len(shape) == 2 and shape[0] == 1
    if not one_row and not (len(shape) > 1 and any(_is_dense(graph, arg, shape) for arg in call.args)):
        return None
    args = [_on_image(graph, arg, shape, images) for arg in call.args]
    if any(arg is None for arg in args):
        return None
    return _row(graph, name, Call(call.op, args, call.attrs), shape)


def _is_dense(graph: Graph, arg: relax.Expr, shape: tuple[int, ...]) -> bool:
    """Are these the rows of a dense layer, of ``shape``, perhaps after elementwise operators?"""
    row = graph.call_of(arg, "reshape")
    return row is not None and shape_of(arg) == shape and shape_of(row.args[0]) == _image_shape(shape)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, 1, prod(shape[:-1]), shape[-1])


def _on_image(graph: Graph, arg: relax.Expr, shape: tuple[int, ...], images: _Images) -> relax.Expr | None:
    """``arg`` of an operator on rows of ``shape`` [..., K] as an argument of the same operator on their image."""
    if isinstance(arg, GenericConst):
        array = value_of(arg)
        if array.size == 1:
            return arg
        same = prod(array.shape[:-1]) == 1
        values = array.reshape(-1) if same else np.broadcast_to(array, shape).reshape(_image_shape(shape))
        return constant(values, str(array.dtype))
    if not isinstance(arg, relax.Var):
        return arg
    return _image(graph, arg, images) if shape_of(arg) == shape else None


def _image(graph: Graph, row: relax.Expr, images: _Images) -> relax.Expr:
    """``row`` [..., K] as [1, 1, rows, K]."""
    shape = _image_shape(shape_of(row))
    inner = graph.call_of(row, "reshape")
    source = inner.args[0] if inner is not None else row
    if shape_of(source) == shape:
        return source
    if not isinstance(row, relax.Var):
        return graph.emit(relax.op.reshape(row, shape), "constant.image")
    if row.name not in images:
        images[row.name] = graph.emit(relax.op.reshape(source, shape), f"{row.name}.image")
    return images[row.name]


def _row(graph: Graph, name: str, value: Call, shape: tuple[int, ...]) -> relax.Expr:
    """Give ``value`` [1, 1, rows, K] the name; what comes sees it as ``shape``."""
    image = graph.bind(name, value)
    return graph.emit(relax.op.reshape(image, shape), f"{name}.row")
