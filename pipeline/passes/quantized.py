"""Keep whole numbers of 8 bits as such between the convolutions that compute with them.

Importers give quantised networks as floats that hold whole numbers: a convolution of such, a bias, a factor, ``round``,
``clip``. Where data and result have at most 256 values and the weights at most 9 bits, that is ``qconv2d``, whose sums are the
same numbers exactly. Between two of them a tensor is int8, the whole number plus a zero point; whatever else reads it gets
floats of it, which fuse with what they are read by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, bindings, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import channel_operand, clip_bounds, is_image
from bitkiln.pipeline.ir.whole import WholeNumbers
from bitkiln.pipeline.ops.register import pair, sides
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.qconv2d import planned
from bitkiln.schedules.workload import QConv2d
from bitkiln.targets import Target

#: The largest weight: a product with 128 fits 16 bits.
_LARGEST_WEIGHT = 255
_LARGEST_BIAS = 1 << 30
_LEAST, _MOST = -128, 127

#: Operators whose results are among the elements of their first operand.
_MOVING = frozenset(
    {"reshape", "nn.max_pool2d", "strided_slice", "squeeze", "expand_dims", "permute_dims", "flatten", "take", "tile"}
)


def quantized(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Convolutions of whole numbers of 8 bits as ``qconv2d``, where the target has kernels for them."""
    return rewrite(module, _Quantized(module["main"]).visit) if kernel_set(target).whole else module


@dataclass(frozen=True)
class _Bytes:
    """An int8 tensor: the whole numbers from ``low`` to ``high``, plus ``zero``."""

    tensor: relax.Expr
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class _Layer:
    """A convolution with the bias and the factor of each output channel."""

    call: Call
    weight: np.ndarray
    bias: np.ndarray
    factor: np.ndarray


class _Quantized:
    def __init__(self, function: relax.Function) -> None:
        self._exact = WholeNumbers(function).exact
        #: Tensors that a convolution reads which may be one of 8 bits.
        self._wanted = {
            value.args[0].name
            for name, value in bindings(function)
            if name in self._exact and isinstance(value.args[0], relax.Var) and _weights(value) is not None
        }
        self._bytes: dict[str, _Bytes] = {}

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        """A rounded and limited tensor as int8, if it is computed by a convolution of such or read by one."""
        limits = _limits(graph, value)
        if limits is None:
            return None
        low, high = limits
        rounded, shift = _rounding(graph, value)
        layer = self._layer(graph, rounded) if graph.used_once(value.args[0]) else None
        data = self._bytes_of(graph, layer.call.args[0]) if layer else None
        if layer is not None and data is not None:
            tensor = graph.emit(_convolution(layer, data, limits, shift), f"{name}.int8")
        elif name in self._wanted:
            tensor = _narrowed(graph, graph.emit(value, f"{name}.whole"), limits, name)
        else:
            return None
        self._bytes[name] = _Bytes(tensor, _zero(low, high), low, high)
        floats = relax.op.astype(tensor, "float32")
        zero = _zero(low, high)
        return relax.op.add(graph.emit(floats, f"{name}.floats"), constant(np.float32(-zero))) if zero else floats

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
        conv = graph.call_of(expr, "nn.conv2d")
        if conv is None or not graph.used_once(expr) or expr.name not in self._exact:
            return None
        weight = _weights(conv)
        whole = np.all(bias == np.round(bias)) and np.abs(bias).max(initial=0) <= _LARGEST_BIAS
        return _Layer(conv, weight, bias, factor) if weight is not None and whole else None

    def _bytes_of(self, graph: Graph, data: relax.Expr) -> _Bytes | None:
        """``data`` as int8; None where it may have more than 256 values."""
        if not isinstance(data, relax.Var):
            return None
        shifted = graph.call_of(data, "add")
        if data.name not in self._bytes and shifted is not None:
            inner, by = self._stored(graph, shifted.args[0]), _whole_number(shifted.args[1])
            if inner is not None and by is not None:
                self._bytes[data.name] = _Bytes(inner.tensor, inner.zero - by, inner.low + by, inner.high + by)
        if data.name not in self._bytes:
            found = self._range(graph, data)
            if found is None or found[1] - found[0] > _MOST - _LEAST:
                return None
            self._bytes[data.name] = _Bytes(_narrowed(graph, data, found, data.name), _zero(*found), *found)
        return self._bytes[data.name]

    def _stored(self, graph: Graph, data: relax.Expr) -> _Bytes | None:
        """``data`` where there is an int8 tensor of it already, the network's input among them."""
        cast = graph.call_of(data, "astype")
        if cast is not None and str(getattr(cast.args[0].ty, "dtype", "")) == "int8":
            return _Bytes(cast.args[0], 0, _LEAST, _MOST)
        return self._bytes.get(data.name) if isinstance(data, relax.Var) else None

    def _range(self, graph: Graph, expr: relax.Expr) -> tuple[int, int] | None:
        """The smallest and the largest whole number that ``expr`` may be."""
        if isinstance(expr, relax.Var) and expr.name in self._bytes:
            return self._bytes[expr.name].low, self._bytes[expr.name].high
        value = graph.definition(expr)
        if value is None:
            kind = str(getattr(expr.ty, "dtype", ""))
            return (np.iinfo(kind).min, np.iinfo(kind).max) if kind in ("int8", "uint8") else None
        limits = _limits(graph, value)
        if limits is not None:
            return limits
        operator = op_name(value)
        if operator in _MOVING or operator == "astype":
            return self._range(graph, value.args[0])
        if operator == "add":
            inner, by = self._range(graph, value.args[0]), _whole_number(value.args[1])
            if inner is not None and by is not None:
                return inner[0] + by, inner[1] + by
        if operator == "concat":
            parts = [self._range(graph, each) for each in getattr(value.args[0], "fields", [])]
            known = [part for part in parts if part is not None]
            if known and len(known) == len(parts):
                return min(low for low, _ in known), max(high for _, high in known)
        return None


def _whole_number(expr: relax.Expr) -> int | None:
    """The one whole number that a constant is."""
    array = array_of(expr)
    if array is None or array.size != 1 or not float(array.reshape(-1)[0]).is_integer():
        return None
    return int(array.reshape(-1)[0])


def _rounding(graph: Graph, clip: relax.Expr) -> tuple[relax.Expr | None, int]:
    """What of a call of clip is a rounding's result, and the zero point that was added to it."""
    inner, shift = clip.args[0], 0
    shifted = graph.call_of(inner, "add")
    by = _whole_number(shifted.args[1]) if shifted is not None else None
    if shifted is not None and by is not None:
        inner, shift = shifted.args[0], by
    return (inner if graph.call_of(inner, "round") is not None else None), shift


def _limits(graph: Graph, value: relax.Expr) -> tuple[int, int] | None:
    """The whole numbers that a call of clip lets through, if it follows a rounding and they are at most 256."""
    if op_name(value) != "clip" or _rounding(graph, value)[0] is None:
        return None
    low, high = clip_bounds(value)
    whole = np.isfinite([low, high]).all() and low.is_integer() and high.is_integer()
    return (int(low), int(high)) if whole and 0 <= high - low <= _MOST - _LEAST else None


def _zero(low: int, high: int) -> int:
    """The zero point that puts ``low`` to ``high`` into the middle of what int8 holds."""
    return -((low + high + 1) // 2)


def _narrowed(graph: Graph, whole: relax.Expr, limits: tuple[int, int], name: str) -> relax.Expr:
    """Floats that hold whole numbers within ``limits`` as int8."""
    zero = _zero(*limits)
    moved = graph.emit(relax.op.add(whole, constant(np.float32(zero))), f"{name}.moved") if zero else whole
    return graph.emit(relax.op.astype(moved, "int8"), f"{name}.int8")


def _weights(conv: relax.Expr) -> np.ndarray | None:
    """The weights OHWI of a convolution that ``qconv2d`` may be, whole numbers of 9 bits."""
    if op_name(conv) != "nn.conv2d" or not is_image(conv.args[0]):
        return None
    array, attrs = array_of(conv.args[1]), conv.attrs
    if array is None or str(attrs["data_layout"]) != "NHWC" or str(attrs["kernel_layout"]) != "OHWI":
        return None
    groups, channels = int(attrs["groups"]), shape_of(conv.args[0])[-1]
    if groups != 1 and not groups == channels == len(array):
        return None
    whole = np.all(array == np.round(array)) and np.abs(array).max(initial=0) <= _LARGEST_WEIGHT
    return array.astype(np.int16) if whole else None


def _convolution(layer: _Layer, data: _Bytes, limits: tuple[int, int], shift: int) -> Call:
    """The layer on ``data``; ``shift`` is added to what it rounds."""
    attrs, weight, zero = layer.call.attrs, layer.weight, _zero(*limits)
    args = (
        data.tensor,
        constant(weight, "int16"),
        constant(layer.bias, "int32"),
        constant(layer.factor),
    )
    call = ops.qconv2d(
        *args,
        strides=pair(attrs["strides"]),
        padding=sides(attrs["padding"]),
        dilation=pair(attrs["dilation"]),
        groups=int(attrs["groups"]),
        zero=data.zero,
        out_zero=zero + shift,
        low=limits[0] + zero,
        high=limits[1] + zero,
    )
    return ops.call_of(planned(ops.workload_of(call, QConv2d), weight), args)
