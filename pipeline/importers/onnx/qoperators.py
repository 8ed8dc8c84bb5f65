"""ONNX's operators on quantised tensors, and those that onnxruntime's quantiser adds in its own domain.

Whole numbers are held in float32 (``thresholds``). Sums of their products are exact: where they could pass 2**24, beyond which
float32 has not every whole number, they are split over the input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.graph import LIMITED
from bitkiln.pipeline.importers.onnx.operands import Operands, Whole
from bitkiln.pipeline.importers.onnx.thresholds import QUANTIZED
from bitkiln.pipeline.ir.windows import Windows

#: Whole numbers up to here are exact in float32.
_EXACT = float(1 << 24)

_LIMITS = {kind: np.iinfo(kind) for kind in ("int8", "uint8", "int16", "uint16")}


def convolution(node: Operands) -> Whole:
    """QLinearConv: x, its scale and zero point, w, its, the result's, and a bias of the sums' scale."""
    sums, _ = _convolved(node, (0, 2), (3, 5), 8)
    scale = node.weight(1, "scale") * node.weight(4, "scale") / node.weight(6, "scale")
    return _requantized(node, sums, scale.reshape(-1, 1, 1) if scale.size > 1 else scale, 7)


def integer_convolution(node: Operands) -> Whole | relax.Expr:
    """ConvInteger: the sums themselves, int32."""
    return _integers(node, *_convolved(node, (0, 2), (1, 3), None))


def matrix_product(node: Operands) -> Whole:
    """QLinearMatMul: a, its scale and zero point, b, its, the result's."""
    sums, _ = _multiplied(node, (0, 2), (3, 5))
    scale = node.weight(1, "scale") * node.weight(4, "scale") / node.weight(6, "scale")
    return _requantized(node, sums, scale, 7)


def integer_matrix_product(node: Operands) -> Whole | relax.Expr:
    """MatMulInteger: the sums themselves, int32."""
    return _integers(node, *_multiplied(node, (0, 2), (1, 3)))


def dense(node: Operands) -> Whole | relax.Expr:
    """QGemm: a, its scale and zero point, b, its, whole numbers to add, the result's scale and zero point, or floats."""
    if node.attributes.get("transA", 0) or not node.is_constant(3):
        raise node.unsupported("its first matrix is transposed, or its second not constant")
    sums, _ = _multiplied(node, (0, 2), (3, 5), turned=bool(node.attributes.get("transB", 0)))
    if node.has(6):
        bias = relax.const(node.array(6, "bias").astype(np.float32))
        sums = node.step(relax.op.add(node.step(sums, "products"), bias), "biased")
    scale = node.weight(1, "scale") * node.weight(4, "scale") * np.float32(node.attributes.get("alpha", 1.0))
    if not node.has(7):
        return relax.op.multiply(sums, relax.const(scale.astype(np.float32)))
    return _requantized(node, sums, scale / node.weight(7, "scale"), 8)


def elementwise(node: Operands) -> Whole:
    """QLinearAdd and QLinearMul: a, its scale and zero point, b, its, the result's."""
    operator = {"QLinearAdd": relax.op.add, "QLinearMul": relax.op.multiply}[node.node.op_type]
    reals = [_reals(node, at, at + 1, at + 2) for at in (0, 3)]
    return _quantized(node, node.step(operator(*reals), "reals"), 6, 7)


def activation(node: Operands) -> Whole:
    """QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax, QLinearGlobalAveragePool: x, its scale and zero point, the result's."""
    x, rank = _reals(node, 0, 1, 2), len(node.shape())
    attributes = node.attributes
    if node.node.op_type == "QLinearGlobalAveragePool":
        axes = list(range(1, rank - 1) if attributes.get("channels_last", 0) else range(2, rank))
        result = relax.op.mean(x, axes, True)
    elif node.node.op_type == "QLinearLeakyRelu":
        result = relax.op.nn.leakyrelu(x, float(attributes.get("alpha", 0.01)))
    elif node.node.op_type == "QLinearSoftmax":
        result = relax.op.nn.softmax(x, attributes.get("axis", -1) % rank)
        if attributes.get("opset", 13) < 13 and attributes.get("axis", 1) % rank != rank - 1:
            raise node.unsupported("its axes before opset 13 are not supported")
    else:
        result = relax.op.sigmoid(x)
    return _quantized(node, node.step(result, "reals"), 3, 4)


def concatenation(node: Operands) -> Whole:
    """QLinearConcat: the result's scale and zero point, then each part with its own."""
    parts = [_reals(node, at, at + 1, at + 2) for at in range(2, len(node), 3)]
    joined = node.step(relax.op.concat(parts, node.attributes["axis"]), "reals")
    return _quantized(node, joined, 0, 1)


def _zero(node: Operands, index: int | None) -> relax.Expr | None:
    """A zero point as a number; None where it is zero or left out."""
    if index is None or not node.has(index):
        return None
    if node.is_constant(index):
        values = node.array(index, "zero point")
        if values.size != 1:
            raise node.unsupported("its data has several zero points")
        value = float(values.reshape(-1)[0])
        return relax.const(np.float32(value)) if value else None
    return node.step(relax.op.reshape(node.floats(index), ()), "zero")


def _centred(node: Operands, index: int, zero_at: int | None) -> relax.Expr:
    """Data less its zero point."""
    x, zero = node.floats(index), _zero(node, zero_at)
    return x if zero is None else node.step(relax.op.subtract(x, zero), f"centred{index}")


def _weights(node: Operands, index: int, zero_at: int, axis: int) -> np.ndarray:
    """Constant integers less their zero points, one or one for each index of ``axis``, as float32."""
    array = node.array(index, "weight")
    if array.dtype.kind not in "iu" or array.dtype.itemsize != 1:
        raise node.unsupported(f"its weight is {array.dtype}; integers of 8 bits are supported")
    zeros = node.array(zero_at, "zero point") if node.has(zero_at) else np.zeros(1, np.int8)
    spread = [1] * array.ndim
    if zeros.size > 1:
        spread[axis] = zeros.size
    return (array.astype(np.int32) - zeros.astype(np.int32).reshape(spread)).astype(np.float32)


def _reach(node: Operands, index: int, zero_at: int | None) -> float:
    """The largest magnitude of data less its zero point."""
    kind = node.file_dtype(index)
    if kind not in ("int8", "uint8"):
        raise node.unsupported(f"its data is {kind}; integers of 8 bits are supported")
    limits = _LIMITS[kind]
    if zero_at is None or not node.has(zero_at):
        zero = 0.0
    elif node.is_constant(zero_at):
        zero = float(node.array(zero_at, "zero point").reshape(-1)[0])
    else:
        return 255.0
    return max(abs(limits.min - zero), abs(limits.max - zero))


def _parts(sums: np.ndarray) -> list[slice]:
    """Ranges of channels whose sums stay exact; ``sums`` has the largest of each channel, for each output: [O, I]."""
    parts, start, total = [], 0, np.zeros(len(sums))
    for channel in range(sums.shape[1]):
        if channel > start and float((total + sums[:, channel]).max()) > _EXACT:
            parts.append(slice(start, channel))
            start, total = channel, np.zeros(len(sums))
        total = total + sums[:, channel]
    return [*parts, slice(start, sums.shape[1])]


def _convolved(
    node: Operands, data: tuple[int, int], weights: tuple[int, int], bias: int | None
) -> tuple[relax.Expr, list[relax.Expr]]:
    """The sums and their exact parts."""
    shape, weight = node.shape(data[0]), _weights(node, *weights, 0)
    groups = node.attributes.get("group", 1)
    if len(shape) != 4 or weight.ndim != 4 or shape[1] != weight.shape[1] * groups or len(weight) % groups:
        raise node.unsupported(f"weight {weight.shape} does not fit its input {shape} in {groups} groups")
    if tuple(node.attributes.get("kernel_shape", weight.shape[2:])) != weight.shape[2:]:
        raise node.unsupported(f"its attribute kernel_shape is not that of its weight {list(weight.shape)}")
    windows = Windows.of(node.attributes, shape[2:], weight.shape[2:])
    x = _centred(node, *data)
    largest = np.abs(weight).sum(axis=(2, 3)) * _reach(node, *data)
    ranges = _parts(largest) if groups == 1 else [slice(None)]
    sums = []
    for at, part in enumerate(ranges):
        chosen = x
        if len(ranges) > 1:
            chosen = node.step(relax.op.strided_slice(x, [1], [part.start], [part.stop]), f"channels{at}")
        made = relax.op.nn.conv2d(
            chosen,
            relax.const(np.ascontiguousarray(weight[:, part])),
            strides=windows.strides,
            padding=windows.padding,
            dilation=windows.dilations,
            groups=groups,
        )
        if at == 0 and bias is not None and node.has(bias):
            values = node.array(bias, "bias").astype(np.float32).reshape(1, -1, 1, 1)
            made = relax.op.add(node.step(made, "products"), relax.const(values))
        sums.append(node.step(made, f"sums{at}"))
    return _total(node, sums), sums


def _multiplied(
    node: Operands, data: tuple[int, int], weights: tuple[int, int], turned: bool = False
) -> tuple[relax.Expr, list[relax.Expr]]:
    """The sums and their exact parts; what both matrices compute while the network runs is not split."""
    x = _centred(node, *data)
    if not node.is_constant(weights[0]):
        return (product := node.step(relax.op.matmul(x, _centred(node, *weights)), "sums0")), [product]
    array = node.array(weights[0], "weight")
    weight = _weights(node, *weights, array.ndim - (2 if turned else 1))
    weight = np.ascontiguousarray(weight.T) if turned else weight
    largest = np.abs(weight) * _reach(node, *data)
    ranges = _parts(largest.T) if weight.ndim == 2 else [slice(None)]
    sums = []
    for at, part in enumerate(ranges):
        chosen = x
        if len(ranges) > 1:
            axis = len(node.shape(data[0])) - 1
            chosen = node.step(relax.op.strided_slice(x, [axis], [part.start], [part.stop]), f"channels{at}")
        rows = weight[part] if weight.ndim == 2 else weight
        sums.append(node.step(relax.op.matmul(chosen, relax.const(np.ascontiguousarray(rows))), f"sums{at}"))
    return _total(node, sums), sums


def _total(node: Operands, sums: Sequence[relax.Expr]) -> relax.Expr:
    total = sums[0]
    for at, each in enumerate(sums[1:], 1):
        total = node.step(relax.op.add(total, each), f"total{at}")
    return total


def _integers(node: Operands, total: relax.Expr, parts: Sequence[relax.Expr]) -> Whole | relax.Expr:
    """Sums as int32, which float32 holds where they were not split."""
    if len(parts) == 1:
        return Whole(total, "int32")
    result: relax.Expr | None = None
    for at, part in enumerate(parts):
        whole = node.step(relax.op.astype(part, "int32"), f"integers{at}")
        result = whole if result is None else node.step(relax.op.add(result, whole), f"integer_total{at}")
    assert result is not None
    return result


def _requantized(node: Operands, sums: relax.Expr, scale: np.ndarray, zero_at: int) -> Whole:
    scaled = node.step(relax.op.multiply(node.step(sums, "sums"), relax.const(np.float32(scale))), "scaled")
    return _rounded(node, scaled, zero_at)


def _rounded(node: Operands, scaled: relax.Expr, zero_at: int) -> Whole:
    kind = node.file_dtype(zero_at) if node.has(zero_at) else "uint8"
    if kind not in QUANTIZED:
        raise node.unsupported(f"quantises to {kind}; integers of 8 and 16 bits are supported")
    zero = _zero(node, zero_at)
    whole = node.step(relax.op.round(scaled), "rounded")
    whole = whole if zero is None else node.step(relax.op.add(whole, zero), "shifted")
    limits = _LIMITS[kind]
    low, high = (node.attributes.get(*end) for end in (("lowest", limits.min), ("highest", limits.max)))
    return Whole(relax.op.clip(whole, float(low), float(high)), kind)


def _reals(node: Operands, index: int, scale_at: int, zero_at: int) -> relax.Expr:
    x = _centred(node, index, zero_at)
    return node.step(
        relax.op.multiply(x, relax.const(np.float32(node.weight(scale_at, "scale").item()))), f"reals{index}"
    )


def _quantized(node: Operands, reals: relax.Expr, scale_at: int, zero_at: int) -> Whole:
    scale = relax.const(np.float32(node.weight(scale_at, "scale").item()))
    return _rounded(node, node.step(relax.op.divide(reals, scale), "shares"), zero_at)


#: Operators of ONNX, and of onnxruntime's own domain.
CONVERTERS: dict[str, Callable[[Operands], relax.Expr | Whole]] = {
    "ConvInteger": integer_convolution,
    "MatMulInteger": integer_matrix_product,
    f"{LIMITED}QGemm": dense,
    f"{LIMITED}QLinearConv": convolution,
    f"{LIMITED}QLinearMatMul": matrix_product,
    "QGemm": dense,
    "QLinearAdd": elementwise,
    "QLinearConcat": concatenation,
    "QLinearConv": convolution,
    "QLinearGlobalAveragePool": activation,
    "QLinearLeakyRelu": activation,
    "QLinearMatMul": matrix_product,
    "QLinearMul": elementwise,
    "QLinearSigmoid": activation,
    "QLinearSoftmax": activation,
}
