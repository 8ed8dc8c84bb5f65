"""Bring every image to NHWC, whatever layout the file used, without leaving transposes inside a network.

Each tensor is stored in some order of its axes, remembered beside it; a transpose in the file only changes what is
remembered. Convolutions and poolings ask for NHWC, elementwise operators take what their first input has, operators with
an axis follow it, and whatever we do not know gets its inputs back in the file's own order. A real transpose is made only
where the stored order is not the wanted one: at NCHW inputs, and at outputs that are images. A flattened image keeps the
stored order too, and the rows of the dense layer behind it are permuted instead.

TVM's own ConvertLayout stops at operators it has no rule for (leaky_relu among them) and leaves transposes around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    bindings,
    constant,
    op_name,
    result_of,
    shape_of,
    substitute,
    variables,
    with_main,
)
from bitkiln.pipeline.ops.register import ints


@dataclass(frozen=True)
class Order:
    """How a tensor is stored: axis i of what is stored is axis ``axes[i]`` of ``shape``, the tensor as the file means it.

    With ``flat`` the file means the one-row matrix [1, n] that flattening ``shape`` gives.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    flat: bool = False

    @property
    def plain(self) -> bool:
        """Is it stored as the file means it? Axes of size one may move freely in a flat tensor."""
        axes = [axis for axis in self.axes if self.shape[axis] != 1] if self.flat else self.axes
        return list(axes) == sorted(axes)

    def permutation(self) -> np.ndarray:
        """For a flat tensor: position in the file's order of each stored element."""
        return np.arange(prod(self.shape)).reshape(self.shape).transpose(self.axes).reshape(-1)


def to_nhwc(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with NHWC images; inputs and outputs keep the layout of the file."""
    function = module["main"]
    converter = _Converter(Graph(function))
    for param in _nchw_params(function):
        converter.transpose_input(param)
    for name, value in bindings(function):
        converter.convert(name, value)
    result = result_of(function)
    fields = result.fields if isinstance(result, relax.Tuple) else [result]
    outputs = [converter.plain(field) for field in fields]
    graph = converter.graph
    return with_main(module, graph.finish(relax.Tuple(outputs) if isinstance(result, relax.Tuple) else outputs[0]))


class _Converter:
    """Orders of the tensors so far; every method takes expressions of the network before the rewrite."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._orders: dict[str, Order | list[Order]] = {}
        self._made: dict[tuple[str, tuple[int, ...]], relax.Expr] = {}

    def convert(self, name: str, value: relax.Expr) -> None:
        if isinstance(value, TupleGetItem):
            self._tuple_item(name, value)
            return
        rule = _RULES.get(op_name(value))
        if op_name(value) in ELEMENTWISE:
            rule = _elementwise
        if rule is None or not rule(self, name, value):
            self._keep(name, value)

    def transpose_input(self, param: relax.Var) -> None:
        """Store an NCHW parameter as NHWC from the start, so that signs and the like right behind it are NHWC too."""
        self._orders[param.name] = Order(shape_of(param), (0, 2, 3, 1))
        self.graph.alias(param.name, self._moved(param, param, Order(shape_of(param), (0, 1, 2, 3)), (0, 2, 3, 1)))
        self._made[param.name, (0, 1, 2, 3)] = param

    def order(self, expr: relax.Expr) -> Order:
        """How ``expr`` is stored."""
        order = self._orders.get(expr.name) if isinstance(expr, relax.Var) else None
        if order is not None:
            return order
        shape = shape_of(expr)
        return Order(shape, tuple(range(len(shape))))

    def stored(self, expr: relax.Expr, axes: tuple[int, ...]) -> relax.Expr:
        """``expr`` (not flat) stored with ``axes``."""
        array = array_of(expr)
        if array is not None:
            return constant(array.transpose(axes), str(array.dtype)) if axes != tuple(sorted(axes)) else expr
        order, var = self.order(expr), self.graph.remap(expr)
        if order.axes == axes:
            return var
        key = (expr.name, axes)
        if key not in self._made:
            self._made[key] = self._moved(expr, var, order, axes)
        return self._made[key]

    def _moved(self, expr: relax.Var, var: relax.Expr, order: Order, axes: tuple[int, ...]) -> relax.Expr:
        shape = shape_of(var)
        moves = [order.axes.index(axis) for axis in axes]
        same_data = [move for move in moves if shape[move] != 1] == [i for i, size in enumerate(shape) if size != 1]
        letters = "nhwc" if axes == (0, 2, 3, 1) else "nchw" if len(axes) == 4 else "plain"
        moved = relax.op.reshape(var, [shape[i] for i in moves]) if same_data else relax.op.permute_dims(var, moves)
        return self.graph.emit(moved, f"{expr.name}.{letters}")

    def plain(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` as the file means it."""
        if not _tensor(expr) or not isinstance(expr, relax.Var):
            return self.graph.remap(expr)
        order = self.order(expr)
        if isinstance(order, list) or order.plain:
            return self.graph.remap(expr)
        if not order.flat:
            return self.stored(expr, tuple(range(len(order.shape))))
        key = (expr.name, ())
        if key not in self._made:
            image = relax.op.reshape(self.graph.remap(expr), [order.shape[axis] for axis in order.axes])
            image = self.graph.emit(image, f"{expr.name}.image")
            back = [order.axes.index(axis) for axis in range(len(order.axes))]
            image = self.graph.emit(relax.op.permute_dims(image, back), f"{expr.name}.nchw")
            self._made[key] = self.graph.emit(relax.op.reshape(image, (1, prod(order.shape))), f"{expr.name}.plain")
        return self._made[key]

    def bind(self, name: str, value: relax.Expr, order: Order | list[Order]) -> bool:
        """Store ``value`` under ``name``."""
        self.graph.bind(name, value)
        self._orders[name] = order
        return True

    def _keep(self, name: str, value: relax.Expr) -> None:
        self.graph.bind(name, substitute(value, {var.name: self.plain(var) for var in variables(value)}))

    def _tuple_item(self, name: str, value: TupleGetItem) -> None:
        self.graph.bind(name, self.graph.remap(value))
        orders = self._orders.get(value.tuple_value.name)
        if isinstance(orders, list):
            self._orders[name] = orders[value.index]


def _nchw_params(function: relax.Function) -> list[relax.Var]:
    """The inputs that are NCHW images, as far as a convolutional network's own operators tell."""
    values = [value for _, value in bindings(function)]
    layouts = {str(value.attrs["data_layout"]) for value in values if op_name(value) == "nn.conv2d"}
    transposed = {value.args[0].name for value in values if op_name(value) == "permute_dims"}
    if layouts != {"NCHW"}:
        return []
    return [param for param in function.params if len(shape_of(param)) == 4 and param.name not in transposed]


def _axes(layout: str, wanted: str) -> tuple[int, ...]:
    return tuple(layout.index(letter) for letter in wanted)


def _result_order(value: Call, layout: str) -> Order:
    return Order(shape_of(value), _axes(layout, "NHWC"))


def _conv2d(converter: _Converter, name: str, call: Call) -> bool:
    attrs = call.attrs
    layout, kernel = str(attrs["data_layout"]), str(attrs["kernel_layout"])
    out = str(attrs["out_layout"] or layout)
    if sorted(layout) != sorted("NCHW") or sorted(kernel) != sorted("OIHW") or sorted(out) != sorted("NCHW"):
        return False
    value = relax.op.nn.conv2d(
        converter.stored(call.args[0], _axes(layout, "NHWC")),
        converter.stored(call.args[1], _axes(kernel, "OHWI")),
        strides=list(ints(attrs["strides"])),
        padding=list(ints(attrs["padding"])),
        dilation=list(ints(attrs["dilation"])),
        groups=int(attrs["groups"]),
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_layout="NHWC",
    )
    return converter.bind(name, value, _result_order(call, out))


def _pool2d(make: Callable[..., Call]) -> Callable[[_Converter, str, Call], bool]:
    def rule(converter: _Converter, name: str, call: Call) -> bool:
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


def _adaptive(converter: _Converter, name: str, call: Call) -> bool:
    layout = str(call.attrs["layout"])
    if sorted(layout) != sorted("NCHW"):
        return False
    size = call.attrs["output_size"]
    x = converter.stored(call.args[0], _axes(layout, "NHWC"))
    value = relax.op.nn.adaptive_avg_pool2d(x, list(ints(size)) if size is not None else None, "NHWC", "NHWC")
    return converter.bind(name, value, _result_order(call, layout))


def _resize2d(converter: _Converter, name: str, call: Call) -> bool:
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


def _elementwise(converter: _Converter, name: str, call: Call) -> bool:
    order = next((converter.order(arg) for arg in call.args if _tensor(arg) and not converter.order(arg).plain), None)
    if order is None:
        return False
    args = [_stored_like(converter, arg, order) if _tensor(arg) else arg for arg in call.args]
    if any(arg is None for arg in args):
        return False
    result = Order(order.shape if order.flat else shape_of(call), order.axes, order.flat)
    return converter.bind(name, Call(call.op, args, call.attrs), result)


def _stored_like(converter: _Converter, arg: relax.Expr, order: Order) -> relax.Expr | None:
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


def _flat_like(converter: _Converter, arg: relax.Expr, order: Order) -> relax.Expr | None:
    array = array_of(arg)
    if array is None:
        return converter.graph.remap(arg) if converter.order(arg) == order else None
    if array.size == 1:
        return arg
    if array.size != prod(order.shape):
        return None
    return constant(array.reshape(-1)[order.permutation()].reshape(array.shape), str(array.dtype))


def _along_axis(make: Callable[[relax.Expr, int], Call]) -> Callable[[_Converter, str, Call], bool]:
    def rule(converter: _Converter, name: str, call: Call) -> bool:
        order = converter.order(call.args[0])
        if order.flat:
            return False
        axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
        return converter.bind(name, make(converter.graph.remap(call.args[0]), axis), Order(shape_of(call), order.axes))

    return rule


def _concat(converter: _Converter, name: str, call: Call) -> bool:
    if not isinstance(call.args[0], relax.Tuple):
        return False
    fields = list(call.args[0].fields)
    order = next((converter.order(field) for field in fields if not converter.order(field).plain), None)
    if order is None or order.flat or any(converter.order(field).flat for field in fields):
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    value = relax.op.concat([converter.stored(field, order.axes) for field in fields], axis)
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _split(converter: _Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat:
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    where = call.attrs["indices_or_sections"]
    where = int(where) if isinstance(where, int) or hasattr(where, "value") else list(ints(where))
    value = relax.op.split(converter.graph.remap(call.args[0]), where, axis)
    orders = [Order(tuple(int(size) for size in field.shape.values), order.axes) for field in call.ty.fields]
    return converter.bind(name, value, orders)


def _reduce(make: Callable[[relax.Expr, list[int], bool], Call]) -> Callable[[_Converter, str, Call], bool]:
    def rule(converter: _Converter, name: str, call: Call) -> bool:
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


def _pad(converter: _Converter, name: str, call: Call) -> bool:
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


def _strided_slice(converter: _Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat or order.plain:
        return False
    axes, *bounds = ([int(getattr(item, "value", item)) for item in arg] for arg in call.args[1:])
    stored = [order.axes.index(axis % len(order.axes)) for axis in axes]
    value = relax.op.strided_slice(converter.graph.remap(call.args[0]), stored, *bounds)
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _take(converter: _Converter, name: str, call: Call) -> bool:
    order, indices = converter.order(call.args[0]), array_of(call.args[1])
    if order.flat or order.plain or indices is None or indices.ndim != 1 or call.attrs["axis"] is None:
        return False
    axis = order.axes.index(int(call.attrs["axis"]) % len(order.axes))
    value = relax.op.take(converter.graph.remap(call.args[0]), call.args[1], axis, str(call.attrs["mode"]))
    return converter.bind(name, value, Order(shape_of(call), order.axes))


def _permute_dims(converter: _Converter, name: str, call: Call) -> bool:
    order = converter.order(call.args[0])
    if order.flat:
        return False
    moves = ints(call.attrs["axes"]) if call.attrs["axes"] is not None else tuple(range(len(order.axes)))[::-1]
    axes = tuple(moves.index(axis) for axis in order.axes)
    return converter.bind(name, converter.graph.remap(call.args[0]), Order(shape_of(call), axes))


def _reshape(converter: _Converter, name: str, call: Call) -> bool:
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


def _matmul(converter: _Converter, name: str, call: Call) -> bool:
    order, weight = converter.order(call.args[0]), array_of(call.args[1])
    if not order.flat or weight is None or weight.ndim != 2:
        return False
    rows = constant(weight[order.permutation()])
    shape = shape_of(call)
    value = relax.op.matmul(converter.graph.remap(call.args[0]), rows)
    return converter.bind(name, value, Order(shape, tuple(range(len(shape)))))


def _tensor(arg: relax.Expr) -> bool:
    return isinstance(arg, (relax.Var, GenericConst)) and isinstance(arg.ty, relax.TensorType)


_RULES: dict[str, Callable[[_Converter, str, Call], bool]] = {
    "nn.conv2d": _conv2d,
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
