"""Keep whole numbers of 8 bits as such between the convolutions that compute with them.

Importers give quantised networks as floats that hold whole numbers: a convolution of such, a bias, a factor, ``round``,
``clip``. Where data and result have at most 256 values and the weights at most 9 bits, that is ``qconv2d``, whose sums are the
same numbers exactly. Between two of them a tensor is int8, the whole number plus a zero point. What moves its elements moves
bytes, what depends on one element alone is a table (``tables``), and whatever else reads it gets floats of it, which fuse with
what they are read by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.elementwise import ELEMENTWISE
from bitkiln.pipeline.ir.graph import Graph, array_of, bindings, constant, op_name, rewrite, shape_of, variables
from bitkiln.pipeline.ir.operands import channel_operand, is_image
from bitkiln.pipeline.ir.whole import WholeNumbers
from bitkiln.pipeline.ops.register import ints, pair, sides
from bitkiln.pipeline.passes.quantized.tables import Function, entries, function_of, identity
from bitkiln.pipeline.passes.quantized.whole_numbers import (
    LEAST,
    MOST,
    MOVING,
    Bytes,
    Zeros,
    floats_of,
    limits_of,
    narrowed,
    rounding_of,
    whole_number,
    zero_between,
)
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.qconv2d import planned
from bitkiln.schedules.workload import QConv2d
from bitkiln.targets import Target

#: The largest weight: a product with 128 fits 16 bits.
_LARGEST_WEIGHT = 255
_LARGEST_BIAS = 1 << 30
#: Operators through which a tensor may be computed of others in 8 bits.
_PASSING = ELEMENTWISE | MOVING | {"concat", "mean", "nn.avg_pool2d"}


def quantized(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Convolutions of whole numbers of 8 bits as ``qconv2d``, where the target has kernels for them."""
    return rewrite(module, _Quantized(module["main"]).visit) if kernel_set(target).whole else module


@dataclass(frozen=True)
class _Layer:
    """A convolution with the bias and the factor of each output channel."""

    call: Call
    weight: np.ndarray
    bias: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True)
class _Ends:
    """What a layer reads, the limits of its result, what is added to what it rounds, and the zero point of its result."""

    data: Bytes
    limits: tuple[int, int]
    shift: int
    zero: int


class _Quantized:
    def __init__(self, function: relax.Function) -> None:
        self._exact = WholeNumbers(function).exact
        self._zeros = Zeros(function)
        self._wanted = _wanted(function, self._exact)
        self._bytes: dict[str, Bytes] = {}
        self._functions: dict[str, Function | None] = {}

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """What a tensor of 8 bits is computed by, and the floats of it."""
        limits = limits_of(graph, value)
        if limits is not None:
            return self._limited(graph, name, value, limits)
        if op_name(value) in MOVING:
            return self._moved(graph, name, value)
        if op_name(value) == "concat":
            return self._joined(graph, name, value)
        if op_name(value) in ("mean", "nn.avg_pool2d"):
            return self._averaged(graph, name, value)
        return None

    def _limited(self, graph: Graph, name: str, value: relax.Expr, limits: tuple[int, int]) -> relax.Expr | None:
        """A rounded and limited tensor as int8, if it is computed by a convolution of such or leads to one."""
        zero = self._zeros.of(name, limits)
        rounded, shift = rounding_of(graph, value)
        layer = self._layer(graph, rounded) if graph.used_once(value.args[0]) else None
        data = self._bytes_of(graph, layer.call.args[0]) if layer else None
        if layer is not None and data is not None:
            tensor = self._layer_in_bytes(graph, name, layer, _Ends(data, limits, shift, zero))
        elif name in self._wanted:
            tensor = self._looked_up(graph, name, value, zero)
            if tensor is None:
                tensor = self._joined_tables(graph, name, value, zero)
            if tensor is None:
                tensor = narrowed(graph, graph.emit(value, f"{name}.whole"), zero, name)
        else:
            return None
        return self._known(graph, name, Bytes(tensor, zero, *limits))

    def _layer_in_bytes(self, graph: Graph, name: str, layer: _Layer, ends: _Ends) -> relax.Expr:
        """A layer as ``qconv2d``; a transposed convolution makes the pixels of a window as channels of one first."""
        if op_name(layer.call) == "nn.conv2d":
            return graph.emit(_convolution(layer, ends), f"{name}.int8")
        height, width = shape_of(layer.call.args[0])[1:3]
        (rows, columns), channels = pair(layer.call.attrs["strides"]), len(layer.bias)
        each = rows * columns
        wide = _Layer(layer.call, layer.weight, np.tile(layer.bias, each), np.tile(layer.factor, each))
        made = graph.emit(_convolution(wide, ends), f"{name}.windows")
        apart = relax.op.reshape(made, (1, height, width, rows, columns, channels))
        turned = relax.op.permute_dims(graph.emit(apart, f"{name}.apart"), [0, 1, 3, 2, 4, 5])
        joined = relax.op.reshape(graph.emit(turned, f"{name}.turned"), (1, height * rows, width * columns, channels))
        return graph.emit(joined, f"{name}.int8")

    def _looked_up(self, graph: Graph, name: str, value: relax.Expr, zero: int) -> relax.Expr | None:
        """``value`` by a table, if a single tensor of 8 bits decides it."""
        function = function_of(graph, value, self._functions)
        table = entries(function, zero) if function is not None else None
        if function is None or table is None:
            return None
        self._functions[name] = function
        return self._through(graph, f"{name}.int8", self._bytes[function.source], table)

    def _moved(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """Elements of a tensor of 8 bits in other places."""
        data = (self._bytes_of if name in self._wanted else self._stored)(graph, value.args[0])
        if data is None:
            self._move_reals(graph, name, value)
            return None
        moved = graph.emit(Call(value.op, [data.tensor, *value.args[1:]], value.attrs), f"{name}.int8")
        return self._known(graph, name, data.moved(moved))

    def _move_reals(self, graph: Graph, name: str, value: relax.Expr) -> None:
        """The same of reals that such a tensor decides: they are known by the moved tensor from now on."""
        function = function_of(graph, value.args[0], self._functions) if name in self._wanted else None
        rises = function is not None and not np.any(np.diff(function.values) < 0)
        if function is None or (op_name(value) == "nn.max_pool2d" and not rises):
            return
        source = self._bytes[function.source]
        moved = graph.emit(Call(value.op, [source.tensor, *value.args[1:]], value.attrs), f"{name}.int8")
        self._bytes[moved.name] = source.moved(moved)
        self._functions[name] = Function(moved.name, function.values)

    def _joined_tables(self, graph: Graph, name: str, value: relax.Expr, zero: int) -> relax.Expr | None:
        """What follows a concatenation of reals that tensors of 8 bits decide, as a table for each part."""
        joined = _joined_before(graph, value)
        if joined is None:
            return None
        concat, parts = graph.made_by(joined), []
        for number, field in enumerate(concat.args[0].fields):
            own = function_of(graph, field, self._functions)
            function = function_of(graph, value, {joined.name: own}) if own is not None else None
            table = entries(function, zero) if function is not None else None
            if function is None or table is None:
                return None
            parts.append((f"{name}.part{number}", self._bytes[function.source], table))
        tensors = [self._through(graph, *part) for part in parts]
        return graph.emit(Call(concat.op, [relax.Tuple(tensors)], concat.attrs), f"{name}.int8")

    @staticmethod
    def _through(graph: Graph, name: str, source: Bytes, table: np.ndarray) -> relax.Expr:
        """``source`` through a table, but for one that changes nothing of it."""
        there = np.arange(source.low + source.zero, source.high + source.zero + 1)
        if np.array_equal(table[there - LEAST], there):
            return source.tensor
        return graph.emit(ops.lookup(source.tensor, constant(table, "int8")), name)

    def _joined(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """Tensors of 8 bits side by side, where they have one zero point."""
        if name not in self._wanted or not isinstance(value.args[0], relax.Tuple):
            return None
        found = [self._bytes_of(graph, field) for field in value.args[0].fields]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found) or len({part.zero for part in parts}) != 1:
            return None
        joined = Call(value.op, [relax.Tuple([part.tensor for part in parts])], value.attrs)
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        return self._known(graph, name, Bytes(graph.emit(joined, f"{name}.int8"), parts[0].zero, low, high))

    def _averaged(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """The average of a whole image of 8 bits by sums of whole numbers."""
        x, factor = _without_factor(graph, value.args[0])
        if not is_image(x) or not _of_all_pixels(value):
            return None
        data = self._bytes_of(graph, x) if name in self._wanted else self._stored(graph, x)
        if data is None:
            return None
        _, height, width, _ = shape_of(value.args[0])
        keep = op_name(value) != "mean" or bool(value.attrs["keepdims"])
        wide = graph.emit(relax.op.astype(data.tensor, "int32"), f"{name}.wide")
        total = graph.emit(relax.op.sum(wide, [1, 2], keep), f"{name}.total")
        floats = graph.emit(relax.op.astype(total, "float32"), f"{name}.floats")
        if data.zero:
            zeros = constant(np.float32(-data.zero * height * width))
            floats = graph.emit(relax.op.add(floats, zeros), f"{name}.sums")
        mean = relax.op.multiply(floats, constant(np.float32(1) / np.float32(height * width)))
        return mean if factor is None else relax.op.multiply(graph.emit(mean, f"{name}.whole"), factor)

    def _known(self, graph: Graph, name: str, found: Bytes) -> relax.Expr:
        """Remember a tensor of 8 bits; the floats of it."""
        self._bytes[name] = found
        self._functions.setdefault(name, identity(found, name))
        return floats_of(graph, found, name)

    def _layer(self, graph: Graph, rounded: relax.Expr | None) -> _Layer | None:
        """The convolution of whole numbers whose sums are rescaled and ``rounded``, if nothing else reads it."""
        if rounded is None or not graph.used_once(rounded):
            return None
        expr = graph.made_by(rounded).args[0]
        shape = shape_of(expr)
        channels = shape[-1]
        factor, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        for operator in ("multiply", "add"):
            call = graph.call_of(expr, operator)
            array = array_of(call.args[1]) if call is not None else None
            if call is None or array is None:
                continue
            values = channel_operand(array, channels)
            if values is None or not graph.used_once(expr):
                return None
            factor, bias = (values, bias) if operator == "multiply" else (factor, values)
            expr = call.args[0]
        conv = graph.call_of(expr, "nn.conv2d", "nn.conv2d_transpose")
        if conv is None or not graph.used_once(expr) or expr.name not in self._exact:
            return None
        weight = _weights(conv)
        whole = np.all(bias == np.round(bias)) and np.abs(bias).max(initial=0) <= _LARGEST_BIAS
        return _Layer(conv, weight, bias, factor) if weight is not None and whole else None

    def _bytes_of(self, graph: Graph, data: relax.Expr) -> Bytes | None:
        """``data`` as int8; None where it may have more than 256 values."""
        if not isinstance(data, relax.Var):
            return None
        shifted = graph.call_of(data, "add")
        if data.name not in self._bytes and shifted is not None:
            inner, by = self._stored(graph, shifted.args[0]), whole_number(shifted.args[1])
            if inner is not None and by is not None:
                self._bytes[data.name] = Bytes(inner.tensor, inner.zero - by, inner.low + by, inner.high + by)
        if data.name not in self._bytes:
            found = self._range(graph, data)
            if found is None or found[1] - found[0] > MOST - LEAST:
                return None
            zero = zero_between(*found)
            self._bytes[data.name] = Bytes(narrowed(graph, data, zero, data.name), zero, *found)
        return self._bytes[data.name]

    def _stored(self, graph: Graph, data: relax.Expr) -> Bytes | None:
        """``data`` where there is an int8 tensor of it already, the network's input among them."""
        cast = graph.call_of(data, "astype")
        if cast is not None and str(getattr(cast.args[0].ty, "dtype", "")) == "int8":
            return Bytes(cast.args[0], 0, LEAST, MOST)
        return self._bytes.get(data.name) if isinstance(data, relax.Var) else None

    def _range(self, graph: Graph, expr: relax.Expr) -> tuple[int, int] | None:
        """The smallest and the largest whole number that ``expr`` may be."""
        if isinstance(expr, relax.Var) and expr.name in self._bytes:
            return self._bytes[expr.name].low, self._bytes[expr.name].high
        value = graph.definition(expr)
        if value is None:
            kind = str(getattr(expr.ty, "dtype", ""))
            return (np.iinfo(kind).min, np.iinfo(kind).max) if kind in ("int8", "uint8") else None
        limits = limits_of(graph, value)
        if limits is not None:
            return limits
        operator = op_name(value)
        if operator in MOVING or operator == "astype":
            return self._range(graph, value.args[0])
        if operator == "add":
            inner, by = self._range(graph, value.args[0]), whole_number(value.args[1])
            if inner is not None and by is not None:
                return inner[0] + by, inner[1] + by
        if operator == "concat":
            parts = [self._range(graph, each) for each in getattr(value.args[0], "fields", [])]
            known = [part for part in parts if part is not None]
            if known and len(known) == len(parts):
                return min(low for low, _ in known), max(high for _, high in known)
        return None


def _wanted(function: relax.Function, exact: set[str]) -> set[str]:
    """The tensors that lead to the data of a convolution of whole numbers through what passes 8 bits on."""
    wanted: set[str] = set()
    for name, value in reversed(list(bindings(function))):
        if name in exact and isinstance(value.args[0], relax.Var) and _weights(value) is not None:
            wanted.add(value.args[0].name)
        elif name in wanted and op_name(value) in _PASSING:
            wanted |= {var.name for var in variables(value)}
    return wanted


def _joined_before(graph: Graph, value: relax.Expr) -> relax.Var | None:
    """The concatenation that elementwise steps with constants lead back to."""
    while op_name(value) in ELEMENTWISE:
        read = [arg for arg in value.args if isinstance(arg, relax.Var)]
        if len(read) != 1:
            return None
        if graph.call_of(read[0], "concat") is not None:
            return read[0] if isinstance(graph.made_by(read[0]).args[0], relax.Tuple) else None
        definition = graph.definition(read[0])
        if definition is None:
            return None
        value = definition
    return None


def _without_factor(graph: Graph, expr: relax.Expr) -> tuple[relax.Expr, relax.Expr | None]:
    """What is multiplied by one number to give ``expr``, and that number; ``expr`` and None where it is no such product."""
    product = graph.call_of(expr, "multiply")
    if product is None:
        return expr, None
    x, factor = product.args
    number = array_of(factor)
    return (x, factor) if number is not None and number.size == 1 else (expr, None)


def _of_all_pixels(value: Call) -> bool:
    """Whether an average is that of a whole image."""
    size = shape_of(value.args[0])[1:3]
    if op_name(value) == "mean":
        axis = value.attrs["axis"]
        return axis is not None and sorted(each % 4 for each in ints(axis)) == [1, 2]
    attrs = value.attrs
    return pair(attrs["pool_size"]) == size and not any(ints(attrs["padding"])) and str(attrs["layout"]) == "NHWC"


def _weights(conv: relax.Expr) -> np.ndarray | None:
    """The weights OHWI of a convolution that ``qconv2d`` may be, whole numbers of 9 bits."""
    if op_name(conv) == "nn.conv2d_transpose":
        return _window_weights(conv)
    if op_name(conv) != "nn.conv2d" or not is_image(conv.args[0]):
        return None
    array, attrs = array_of(conv.args[1]), conv.attrs
    if array is None or str(attrs["data_layout"]) != "NHWC" or str(attrs["kernel_layout"]) != "OHWI":
        return None
    groups, channels = int(attrs["groups"]), shape_of(conv.args[0])[-1]
    if groups != 1 and not groups == channels == len(array):
        return None
    return _whole_weights(array)


def _whole_weights(array: np.ndarray) -> np.ndarray | None:
    whole = np.all(array == np.round(array)) and np.abs(array).max(initial=0) <= _LARGEST_WEIGHT
    return array.astype(np.int16) if whole else None


def _window_weights(conv: relax.Expr) -> np.ndarray | None:
    """Those of a transposed convolution whose windows do not overlap, [kh * kw * O, 1, 1, I]: a pixel makes a window."""
    array, attrs = array_of(conv.args[1]), conv.attrs
    if array is None or str(attrs["data_layout"]) != "NHWC" or str(attrs["kernel_layout"]) != "IOHW":
        return None
    ins, outs, height, width = array.shape
    plain = int(attrs["groups"]) == 1 and not any(ints(attrs["padding"])) and not any(ints(attrs["output_padding"]))
    if (
        not plain
        or not is_image(conv.args[0])
        or pair(attrs["strides"]) != (height, width)
        or max(ints(attrs["dilation"])) > 1
    ):
        return None
    return _whole_weights(array.transpose(2, 3, 1, 0).reshape(height * width * outs, 1, 1, ins))


def _convolution(layer: _Layer, ends: _Ends) -> Call:
    """The layer as ``qconv2d``; a transposed one, whose windows do not overlap, is made of single pixels."""
    attrs, weight, zero = layer.call.attrs, layer.weight, ends.zero
    single = op_name(layer.call) != "nn.conv2d"
    args = (
        ends.data.tensor,
        constant(weight, "int16"),
        constant(layer.bias, "int32"),
        constant(layer.factor),
    )
    call = ops.qconv2d(
        *args,
        strides=(1, 1) if single else pair(attrs["strides"]),
        padding=sides(attrs["padding"]),
        dilation=pair(attrs["dilation"]),
        groups=int(attrs["groups"]),
        zero=ends.data.zero,
        out_zero=zero + ends.shift,
        low=ends.limits[0] + zero,
        high=ends.limits[1] + zero,
    )
    return ops.call_of(planned(ops.workload_of(call, QConv2d), weight), args)
