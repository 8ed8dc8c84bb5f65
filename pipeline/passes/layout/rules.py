"""How each operator takes stored tensors: which order it asks for, and which it gives."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import array_of, constant, shape_of
from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.passes.layout.order import Converter, Order, is_tensor


def _axes(layout: str, wanted: str) -> tuple[int, ...]:
    return tuple(layout.index(letter) for letter in wanted)


def _result_order(value: Call, layout: str) -> Order:
    return Order(shape_of(value), _axes(layout, "NHWC"))


def _windows(call: Call) -> dict[str, Any]:
    """The attributes of a convolution that stay, and its layouts."""
    windows = {name: list(ints(call.attrs[name])) for name in ("strides", "padding", "dilation")}
    return {**windows, "groups": int(call.attrs["groups"]), "data_layout": "NHWC", "out_layout": "NHWC"}


def _conv2d(converter: Converter, name: str, call: Call) -> bool:
    attrs = call.attrs
    layout, kernel = str(attrs["data_layout"]), str(attrs["kernel_layout"])
    out = str(attrs["out_layout"] or layout)
    if sorted(layout) != sorted("NCHW") or sorted(kernel) != sorted("OIHW") or sorted(out) != sorted("NCHW"):
        return False
    value = relax.op.nn.conv2d(
        converter.stored(call.args[0], _axes(layout, "NHWC")),
        converter.stored(call.args[1], _axes(kernel, "OHWI")),
        kernel_layout="OHWI",
        **_windows(call),
    )
    return converter.bind(name, value, _result_order(call, out))


def _conv2d_transpose(converter: Converter, name: str, call: Call) -> bool:
    """Only what becomes an operator of ours: TVM knows NCHW alone."""
    attrs = call.attrs
    layout, kernel = str(attrs["data_layout"]), str(attrs["kernel_layout"])
    out = str(attrs["out_layout"] or layout)
    if sorted(layout) != sorted("NCHW") or sorted(kernel) != sorted("IOHW") or sorted(out) != sorted("NCHW"):
        return False
    x, weight = call.args
    if shape_of(x)[layout.index("N")] != 1 or str(x.ty.dtype) != "float32" or array_of(weight) is None:
        return False
    value = relax.op.nn.conv2d_transpose(
        converter.stored(x, _axes(layout, "NHWC")),
        converter.stored(weight, _axes(kernel, "IOHW")),
        kernel_layout="IOHW",
        output_padding=list(ints(attrs["output_padding"])),
        **_windows(call),
    )
    return converter.bind(name, value, _result_order(call, out))


def _pool2d(make: Callable[..., Call]) -> Callable[[Converter, str, Call], bool]:
    def rule(converter: Converter, name: str, call: Call) -> bool:
        attrs = call.attrs
        layout = str(attrs["layout"])
        if sorted(layout) != sorted("NCHW") or str(attrs["out_layout"] or layout) != layout:
            return False
        value = make(
            converter.stored(call.args[0], _axes(layout, "NHWC")),
            list(ints(attrs["pool_size"])),
            list(ints(attrs["strides"])),
            list(ints(attrs["padding"])),
            list(ints(attrs["dilation"])),
            bool(attrs["ceil_mode"]),
            bool(attrs["count_include_pad"]),
            "NHWC",
            "NHWC",
        )
        return converter.bind(name, value, _result_order(call, layout))

    return rule


def _adaptive(converter: Converter, name: str, call: Call) -> bool:
    layout = str(call.attrs["layout"])
    if sorted(layout) != sorted("NCHW"):
        return False
    size = call.attrs["output_size"]
    x = converter.stored(call.args[0], _axes(layout, "NHWC"))
    value = relax.op.nn.adaptive_avg_pool2d(x, list(ints(size)) if size is not None else None, "NHWC", "NHWC")
    return converter.bind(name, value, _result_order(call, layout))


def _resize2d(converter: Converter, name: str, call: Call) -> bool:
    attrs = call.attrs
    layout = str(attrs["layout"])
    if sorted(layout) != sorted("NCHW"):
        return False
    value = relax.op.image.resize2d(
        converter.stored(call.args[0], _axes(layout, "NHWC")),
        call.args[1],
        layout="NHWC",
        roi=[float(value) for value in attrs["roi"]],
        method=str(attrs["method"]),
        coordinate_transformation_mode=str(attrs["coordinate_transformation_mode"]),
        rounding_method=str(attrs["rounding_method"]),
        cubic_alpha=float(attrs["cubic_alpha"]),
        cubic_exclude=int(attrs["cubic_exclude"]),
        extrapolation_value=float(attrs["extrapolation_value"]),
    )
    return converter.bind(name, value, _result_order(call, layout))


def _elementwise(converter: Converter, name: str, call: Call) -> bool:
    order = next((converter.order(arg) for arg in call.args if is_tensor(arg) and not converter.order(arg).plain), None)
    if order is None:
        return False
    args = [_stored_like(converter, arg, order) if is_tensor(arg) else arg for arg in call.args]
    if any(arg is None for arg in args):
        return False
    result = Order(order.shape if order.flat else shape_of(call), order.axes, order.flat)
    return converter.bind(name, Call(call.op, args, call.attrs), result)


def _stored_like(converter: Converter, arg: relax.Expr, order: Order) -> relax.Expr | None:
    """``arg`` in ``order``, up to broadcasting; None if it does not fit."""
    own = converter.order(arg)
    if order.flat:
        return _flat_like(converter, arg, order)
    if own.flat or len(own.shape) > len(order.shape):
        return None
    if len(own.shape) == len(order.shape):
        return converter.stored(arg, order.axes)
    shape = (1,) * (len(order.shape) - len(own.shape)) + own.shape
    array = array_of(arg)
    if array is not None:
        return (
            arg if array.size == 1 else converter.stored(constant(array.reshape(shape), str(array.dtype)), order.axes)
        )
    if not own.plain:
        return None
    wide = converter.graph.emit(relax.op.reshape(converter.graph.remap(arg), shape), f"{arg.name}.wide")
    return converter.graph.emit(relax.op.permute_dims(wide, list(order.axes)), f"{arg.name}.like")


def _flat_like(converter: Converter, arg: relax.Expr, order: Order) -> relax.Expr | None:
    array = array_of(arg)
    if array is None:
        return converter.graph.remap(arg) if converter.order(arg) == order else None
    if array.size == 1:
        return arg
    if array.size != prod(order.shape):
        return None
    return constant(array.reshape(-1)[order.permutation()].reshape(array.shape), str(array.dtype))


def _along_axis(make: Callable[[relax.Expr, int], Call]) -> Callable[[Converter, str, Call], bool]:
    def rule(converter: Converter, name: str, call: Call) -> bool:
        order = converter.order(call.args[0])
        if order.flat:
            return False
        axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
        return converter.bind(name, make(converter.graph.remap(call.args[0]), axis), Order(shape_of(call), order.axes))

    return rule


def _concat(converter: Converter, name: str, call: Call) -> bool:
    if not isinstance(call.args[0], relax.Tuple):
        return False
    fields = list(call.args[0].fields)
    order = next((converter.order(field) for field in fields if not converter.order(field).plain), None)
    if order is None or order.flat or any(converter.order(field).flat for field in fields):
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    value = relax.op.concat([converter.stored(field, order.axes) for field in fields], axis)
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _split(converter: Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat:
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    where = call.attrs["indices_or_sections"]
    where = int(where) if isinstance(where, int) or hasattr(where, "value") else list(ints(where))
    value = relax.op.split(converter.graph.remap(call.args[0]), where, axis)
    orders = [Order(tuple(int(size) for size in field.shape.values), order.axes) for field in call.ty.fields]
    return converter.bind(name, value, orders)


def _reduce(make: Callable[[relax.Expr, list[int], bool], Call]) -> Callable[[Converter, str, Call], bool]:
    def rule(converter: Converter, name: str, call: Call) -> bool:
        order = converter.order(call.args[0])
        if order.flat or call.attrs["axis"] is None:
            return False
        reduced = [axis % len(order.axes) for axis in ints(call.attrs["axis"])]
        keep = bool(call.attrs["keepdims"])
        left = [axis for axis in order.axes if axis not in reduced]
        if not keep and left != sorted(left):
            return False
        value = make(converter.graph.remap(call.args[0]), [order.axes.index(axis) for axis in reduced], keep)
        shape = shape_of(call)
        return converter.bind(name, value, Order(shape, order.axes if keep else tuple(range(len(shape)))))

    return rule


def _pad(converter: Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat:
        return False
    widths = np.reshape(ints(call.attrs["pad_width"]), (-1, 2))[list(order.axes)].reshape(-1)
    value = relax.op.nn.pad(
        converter.graph.remap(call.args[0]),
        [int(width) for width in widths],
        str(call.attrs["pad_mode"]),
        float(call.attrs["pad_value"]),
    )
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _strided_slice(converter: Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat or order.plain:
        return False
    axes, *bounds = ([int(getattr(item, "value", item)) for item in arg] for arg in call.args[1:])
    stored = [order.axes.index(axis % len(order.axes)) for axis in axes]
    value = relax.op.strided_slice(converter.graph.remap(call.args[0]), stored, *bounds)
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _take(converter: Converter, name: str, call: Call) -> bool:
    order, indices = converter.order(call.args[0]), array_of(call.args[1])
    if order.flat or order.plain or indices is None or indices.ndim != 1 or call.attrs["axis"] is None:
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    value = relax.op.take(converter.graph.remap(call.args[0]), call.args[1], axis, str(call.attrs["mode"]))
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _permute_dims(converter: Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat:
        return False
    moves = ints(call.attrs["axes"]) if call.attrs["axes"] is not None else tuple(range(len(order.axes)))[::-1]
    axes = tuple(moves.index(axis) for axis in order.axes)
    return converter.bind(name, converter.graph.remap(call.args[0]), Order(shape_of(call), axes))


def _reshape(converter: Converter, name: str, call: Call) -> bool:
    order, shape = converter.order(call.args[0]), shape_of(call)
    if order.plain:
        return False
    x = converter.graph.remap(call.args[0])
    if order.flat:
        if shape != (1, prod(order.shape)):
            return False
        return converter.bind(name, x, order)
    moved = [axis for axis in order.axes if order.shape[axis] != 1]
    if moved == sorted(moved):
        return converter.bind(name, relax.op.reshape(x, shape), Order(shape, tuple(range(len(shape)))))
    if [size for size in order.shape if size != 1] == [size for size in shape if size != 1]:
        axes = _without_ones(order, shape)
        return converter.bind(name, relax.op.reshape(x, [shape[axis] for axis in axes]), Order(shape, axes))
    if shape != (1, prod(order.shape)) or order.axes[0] != 0:
        return False
    return converter.bind(name, relax.op.reshape(x, shape), Order(order.shape, order.axes, flat=True))


def _without_ones(order: Order, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of ``shape``, which has more or fewer axes of one than ``order.shape``, in the order that is stored; ones first."""
    wide = [axis for axis, size in enumerate(shape) if size != 1]
    before = [axis for axis, size in enumerate(order.shape) if size != 1]
    stored = [wide[before.index(axis)] for axis in order.axes if axis in before]
    return (*(axis for axis, size in enumerate(shape) if size == 1), *stored)


def _matmul(converter: Converter, name: str, call: Call) -> bool:
    order, weight = converter.order(call.args[0]), array_of(call.args[1])
    if not order.flat or weight is None or weight.ndim != 2:
        return False
    rows = constant(weight[order.permutation()])
    shape = shape_of(call)
    value = relax.op.matmul(converter.graph.remap(call.args[0]), rows)
    return converter.bind(name, value, Order(shape, tuple(range(len(shape)))))


RULES: dict[str, Callable[[Converter, str, Call], bool]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "nn.conv2d": _conv2d,
    "nn.conv2d_transpose": _conv2d_transpose,
    "nn.max_pool2d": _pool2d(relax.op.nn.max_pool2d),
    "nn.avg_pool2d": _pool2d(relax.op.nn.avg_pool2d),
    "nn.adaptive_avg_pool2d": _adaptive,
    "image.resize2d": _resize2d,
    "nn.softmax": _along_axis(relax.op.nn.softmax),
    "nn.log_softmax": _along_axis(relax.op.nn.log_softmax),
    "concat": _concat,
    "split": _split,
    "mean": _reduce(relax.op.mean),
    "sum": _reduce(relax.op.sum),
    "max": _reduce(relax.op.max),
    "min": _reduce(relax.op.min),
    "nn.pad": _pad,
    "permute_dims": _permute_dims,
    "strided_slice": _strided_slice,
    "take": _take,
    "reshape": _reshape,
    "matmul": _matmul,
}
