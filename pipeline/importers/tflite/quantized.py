"""Quantised TensorFlow Lite: tensors of int8 and uint8 that stand for ``scale * (q - zero point)``.

A tensor is held as float32 of the whole numbers q - zero point, exactly. Convolutions and dense layers multiply and add whole
numbers: their sums are exact, split over the input channels where they could pass 2**24, beyond which float32 has not every
whole number. Sums are rescaled by one factor a channel, rounded, and clipped to the type's range and the fused activation's, as
TensorFlow Lite defines it; where its kernels round a tie the other way, or multiply by fixed-point factors, results differ by
one.
Operators that move or choose elements do so with the whole numbers; all others compute with the reals these stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.tflite.file import Operator, Quantization, Tensor
from bitkiln.pipeline.importers.tflite.operands import Operands, Tensors
from bitkiln.pipeline.ir.graph import shape_of

_TYPES = ("int8", "uint8")

#: Whole numbers up to here are exact in float32.
_EXACT = 1 << 24

#: Operators that multiply by constant weights: the positions of data, weights and bias.
_WEIGHTED = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}

#: Operators whose results are elements of their operands.
_MOVING = frozenset(
    {
        *("BATCH_TO_SPACE_ND", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "MAXIMUM"),
        *("MAX_POOL_2D", "MINIMUM", "MIRROR_PAD", "PACK", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE"),
        *("RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE"),
        *("STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"),
    }
)

#: Operators of one operand that may as well be applied to multiples of it.
_LINEAR = frozenset({"AVERAGE_POOL_2D", "MEAN", "RELU", "RESIZE_BILINEAR", "SUM"})

#: ActivationFunctionType -> the reals that it lets through.
_ACTIVATIONS = {0: (-np.inf, np.inf), 1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}

Converter = Callable[[Operands], relax.Expr | list[relax.Expr]]


def is_quantized(tensor: Tensor) -> bool:
    """Does it hold integers of 8 bits that stand for reals?"""
    return tensor.dtype in _TYPES and tensor.quantization is not None


def _quantization(tensor: Tensor) -> Quantization:
    assert tensor.quantization is not None
    return tensor.quantization


def is_quantized_activation(tensor: Tensor) -> bool:
    """Is it one that the network computes or is given, with one scale for all elements?"""
    return is_quantized(tensor) and tensor.data is None and _quantization(tensor).scale.size == 1


def entered(tensors: Tensors, index: int, parameter: relax.Expr) -> relax.Expr:
    """An input of the file's integers as the whole numbers less their zero point."""
    floats = tensors.emit(relax.op.astype(parameter, "float32"), f"{tensors.name(index)}_floats")
    zero = zero_of(tensors.file.tensors[index])
    return (
        floats if not zero else tensors.emit(relax.op.subtract(floats, _number(zero)), f"{tensors.name(index)}_whole")
    )


def left(tensors: Tensors, index: int, value: relax.Expr) -> relax.Expr:
    """An output as integers of the file's type."""
    tensor = tensors.file.tensors[index]
    if zero_of(tensor):
        value = tensors.emit(relax.op.add(value, _number(zero_of(tensor))), f"{tensors.name(index)}_shifted")
    return relax.op.astype(value, tensor.dtype)


def meant(tensors: Tensors, index: int, value: relax.Expr) -> relax.Expr:
    """An output as the numbers that its integers stand for."""
    return relax.op.multiply(value, _number(scale_of(tensors.file.tensors[index])))


def applies(tensors: Tensors, operator: Operator) -> bool:
    """Does the operator read or make quantised tensors?"""
    if operator.custom and operator.kind not in ("Convolution2DTransposeBias",):
        return False
    indices = [index for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return any(is_quantized(tensors.file.tensors[index]) for index in indices)


def convert(tensors: Tensors, operator: Operator, converter: Converter | None) -> list[relax.Expr]:
    """The operator's results; ``converter`` is that of the same operator on floats, None where there is none."""
    node = _Reals(tensors, operator)
    read = [node.tensor(at) for at in range(len(node)) if node.has(at)]
    activations = [each for each in read if is_quantized(each) and each.index not in tensors.constants]
    for each in (*activations, *(node.result(at) for at in range(len(operator.outputs)))):
        if is_quantized(each) and _quantization(each).scale.size != 1:
            raise node.unsupported(f"{each.label} has a scale for each channel, which only weights may have")
    if operator.kind in ("QUANTIZE", "DEQUANTIZE"):
        return _results(node, [node.value(0)])
    if converter is None:
        raise node.unsupported("operators of this type are not supported")
    if operator.kind in _WEIGHTED and activations:
        return _weighted(tensors, operator, converter)
    if activations and operator.kind in _MOVING and _alike(node, read):
        return _as_list(_bounded(_Wholes(tensors, operator), converter(_Wholes(tensors, operator))))
    if activations and operator.kind in _LINEAR and is_quantized(node.result()):
        wholes = _Wholes(tensors, operator)
        return [_rescaled(wholes, _as_list(converter(wholes))[0], scale_of(read[0]) / scale_of(node.result()))]
    if not activations and operator.kind in _WEIGHTED:
        tensors.warn(
            "its weights are quantised and its activations are not: they are computed in floats, where TensorFlow Lite "
            "quantises them as it goes"
        )
    return _results(node, _as_list(converter(node)))


def _as_list(result: relax.Expr | list[relax.Expr]) -> list[relax.Expr]:
    return result if isinstance(result, list) else [result]


def scale_of(tensor: Tensor) -> float:
    """The scale of a tensor that has one."""
    return float(_quantization(tensor).scale.reshape(-1)[0])


def zero_of(tensor: Tensor) -> int:
    """The zero point of a tensor that has one scale."""
    return int(_quantization(tensor).zero_point.reshape(-1)[0])


def _number(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def _alike(node: Operands, read: Sequence[Tensor]) -> bool:
    """Have all quantised tensors the same scale and zero point?"""
    results = [node.result(at) for at in range(len(node.operator.outputs))]
    found = {(scale_of(each), zero_of(each)) if is_quantized(each) else None for each in results}
    found |= {(scale_of(each), zero_of(each)) for each in read if is_quantized(each)}
    return len(found) == 1 and None not in found


def _limits(node: Operands, tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest whole number of a result: those of its type, and of the fused activation."""
    scale, zero, integers = scale_of(tensor), zero_of(tensor), np.iinfo(tensor.dtype)
    activation = node.fused_activation() if isinstance(node, _Wholes) else 0
    if activation not in _ACTIVATIONS:
        raise node.unsupported(f"its fused activation {activation} is not supported")
    low, high = (np.round(np.float64(each) / scale) for each in _ACTIVATIONS[activation])
    return float(max(low, integers.min - zero)), float(min(high, integers.max - zero))


def _rounded(node: Operands, value: relax.Expr, tensor: Tensor) -> relax.Expr:
    return relax.op.clip(node.step(relax.op.round(value), "rounded"), *_limits(node, tensor))


def _rescaled(node: Operands, value: relax.Expr, factor: np.ndarray | float, position: int = 0) -> relax.Expr:
    """Whole numbers, times ``factor``, rounded and within the result's limits."""
    if np.any(np.asarray(factor) != 1):
        factor = relax.const(np.asarray(factor, np.float32))
        value = node.step(relax.op.multiply(node.step(value, "sums"), factor), "scaled")
    return _rounded(node, value, node.result(position))


def _bounded(node: _Wholes, result: relax.Expr | list[relax.Expr]) -> relax.Expr | list[relax.Expr]:
    """``result`` within the limits of a fused activation, which moving elements does not bring about."""
    if isinstance(result, list) or not node.fused_activation():
        return result
    return relax.op.clip(node.step(result, "moved"), *_limits(node, node.result()))


def _results(node: Operands, results: Sequence[relax.Expr]) -> list[relax.Expr]:
    """Reals as whole numbers, where the file has them quantised."""
    made = []
    for position, value in enumerate(results):
        tensor = node.result(position)
        if is_quantized(tensor):
            shares = node.step(relax.op.multiply(node.step(value, "reals"), _number(1 / scale_of(tensor))), "shares")
            value = _rounded(node, shares, tensor)
        made.append(value)
    return made


def _weighted(tensors: Tensors, operator: Operator, converter: Converter) -> list[relax.Expr]:
    """Sums of products of whole numbers, and what the result's scale makes of them."""
    data, weights, _ = _WEIGHTED[operator.kind]
    node = _Sums(tensors, operator)
    if not is_quantized(node.result()):
        raise node.unsupported(f"its result {node.result().label} is {node.result().dtype} of quantised operands")
    array, how = node.tensor(weights).data, node.tensor(weights).quantization
    if array is None or how is None or array.dtype.kind not in "iu":
        raise node.unsupported("its weights are not constant integers with a scale")
    factor = how.scale.astype(np.float64) * scale_of(node.tensor(data)) / scale_of(node.result())
    if not np.all(np.isfinite(factor) & (factor > 0)):
        raise node.error("its scales are not positive")
    grouped = operator.kind != "FULLY_CONNECTED" and shape_of(node.value(data))[-1] != array.shape[-1]
    whole = grouped or operator.kind in ("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
    parts = [(0, None)] if whole else _parts(node, weights)
    total: relax.Expr | None = None
    for at, channels in enumerate(parts):
        part = _Sums(tensors, operator, channels if len(parts) > 1 else None, biased=at == 0)
        sums = converter(part)
        total = sums if total is None else relax.op.add(node.step(total, f"part{at - 1}"), node.step(sums, f"part{at}"))
    assert total is not None and not isinstance(total, list)
    return [_rescaled(node, total, factor if factor.size > 1 else factor.reshape(-1)[0])]


def _parts(node: _Sums, weights: int) -> list[tuple[int, int | None]]:
    """Ranges of input channels, the last axis of the weights, whose sums stay exact whatever the data."""
    array = np.abs(node.weight(weights, "filter").astype(np.float64))
    reach = max(
        abs(limit - zero_of(node.data()))
        for limit in (np.iinfo(node.data().dtype).min, np.iinfo(node.data().dtype).max)
    )
    bias = float(np.abs(node.bias()).max(initial=0.0))
    each = array.reshape(len(array), -1, array.shape[-1]).sum(axis=1) * reach  # [O, I]
    if float(each.sum(axis=1).max(initial=0.0)) + bias <= _EXACT:
        return [(0, None)]
    parts, start, sums = [], 0, np.full(len(array), min(bias, _EXACT / 2))
    for channel in range(array.shape[-1]):
        if channel > start and float((sums + each[:, channel]).max()) > _EXACT:
            parts.append((start, channel))
            start, sums = channel, np.zeros(len(array))
        sums = sums + each[:, channel]
    return [*parts, (start, array.shape[-1])]


class _Reals(Operands):
    """An operator that sees its quantised operands as the reals they stand for."""

    def value(self, position: int) -> relax.Expr:
        """Whole numbers times their scale."""
        tensor = self.tensor(position)
        if not is_quantized(tensor):
            return super().value(position)
        if tensor.index in self.tensors.constants:
            return relax.const(self.array(position, "operand"))
        if tensor.index not in self.tensors.reals:
            product = relax.op.multiply(self.tensors.expression(tensor.index), _number(scale_of(tensor)))
            self.tensors.reals[tensor.index] = self.tensors.emit(product, f"{self.tensors.name(tensor.index)}_reals")
        return self.tensors.reals[tensor.index]

    def array(self, position: int, what: str) -> np.ndarray:
        """Constants as reals."""
        array, tensor = super().array(position, what), self.tensor(position)
        if tensor.quantization is None or array.dtype.kind not in "iu":
            return array
        if not is_quantized(tensor) and not self._is_bias(position):
            return array
        return spread(self, _quantization(tensor), array)[1]

    def _is_bias(self, position: int) -> bool:
        return self.operator.kind in _WEIGHTED and position == _WEIGHTED[self.operator.kind][2]


def spread(node: Operands, how: Quantization, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers less their zero points, and the reals, that ``array`` stands for."""
    shape: list[int] = []
    if how.scale.size > 1:
        if not 0 <= how.axis < array.ndim or how.scale.size != array.shape[how.axis]:
            raise node.error(f"a constant {list(array.shape)} has {how.scale.size} scales along axis {how.axis}")
        shape = [-1 if axis == how.axis else 1 for axis in range(array.ndim)]
    if how.zero_point.size not in (1, how.scale.size):
        raise node.error("a constant has more zero points than scales")
    scale, zero = (
        values.reshape(shape) if values.size > 1 else values.reshape(-1)[0] for values in (how.scale, how.zero_point)
    )
    whole = (array.astype(np.int64) - zero).astype(np.float32)
    reals = scale * whole
    if not np.isfinite(reals).all():
        raise node.error("non-finite weight in a constant")
    return whole, np.asarray(reals, np.float32)


class _Wholes(Operands):
    """An operator that sees its quantised operands as whole numbers less their zero points."""

    def value(self, position: int) -> relax.Expr:
        """The whole numbers."""
        tensor = self.tensor(position)
        if is_quantized(tensor) and tensor.index in self.tensors.constants:
            return relax.const(self.array(position, "operand"))
        return self.tensors.expression(tensor.index)

    def array(self, position: int, what: str) -> np.ndarray:
        """Constants as whole numbers."""
        array, tensor = super().array(position, what), self.tensor(position)
        return spread(self, _quantization(tensor), array)[0] if is_quantized(tensor) else array

    def option(self, table: str, name: str, default: object = None) -> object:
        """Fused activations are left to the limits of the result."""
        if name == "FusedActivationFunction":
            self.tensors.options_read.setdefault(self.operator.index, set()).add(name)
            return 0
        return super().option(table, name, default)

    def fused_activation(self) -> int:
        """The number of the fused activation; 0 is none."""
        table = self.operator.options_name
        known = (
            "Conv2DOptions",
            "DepthwiseConv2DOptions",
            "FullyConnectedOptions",
            "Pool2DOptions",
            "TransposeConvOptions",
            "ConcatenationOptions",
        )
        return int(super().option(table, "FusedActivationFunction", default=0)) if table in known else 0


class _Sums(_Wholes):
    """A layer with weights, of some of its input channels; the bias is counted once."""

    def __init__(
        self,
        tensors: Tensors,
        operator: Operator,
        channels: tuple[int, int | None] | None = None,
        biased: bool = True,
    ) -> None:
        super().__init__(tensors, operator)
        self._data, self._weights, self._bias = _WEIGHTED[operator.kind]
        self._channels, self._biased = channels, biased

    def data(self) -> Tensor:
        """The data as the file declares it."""
        return self.tensor(self._data)

    def bias(self) -> np.ndarray:
        """The bias, a whole number of the sums' scale for each channel."""
        return super().array(self._bias, "bias") if super().has(self._bias) else np.zeros(1)

    def has(self, position: int) -> bool:
        """Parts but the first have no bias."""
        return super().has(position) and (self._biased or position != self._bias)

    def value(self, position: int) -> relax.Expr:
        """Data of the part's channels."""
        value = super().value(position)
        if position != self._data or self._channels is None:
            return value
        first, last = self._channels
        if self.operator.kind == "FULLY_CONNECTED":  # its operand may have any shape: rows of the weights' length
            size = self.tensor(self._weights).shape[-1]
            assert size is not None
            value = self.step(relax.op.reshape(value, (prod(shape_of(value)) // size, size)), f"rows{first}")
        return self.step(relax.op.strided_slice(value, [len(shape_of(value)) - 1], [first], [last]), f"channels{first}")

    def weight(self, position: int, what: str, rank: int | None = None) -> np.ndarray:
        """Weights of the part's channels as whole numbers, and the bias."""
        array = self.array(position, what)
        if rank is not None and array.ndim != rank:
            raise self.error(f"its {what} has {array.ndim} dimensions, needs {rank}")
        if position == self._weights and self._channels is not None:
            array = array[..., self._channels[0] : self._channels[1]]
        return np.ascontiguousarray(array, "float32")
