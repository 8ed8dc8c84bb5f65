"""TensorFlow Lite's layers as Relax, in NHWC: convolutions OHWI, constants of full rank, padding explicit.

What its kernels define is kept: SAME averages do not count their padding, activations fused into an operator follow its bias,
comparisons and selections broadcast. Operators that only move data are in ``shapes``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.importers.common.building import scalar
from bitkiln.pipeline.importers.tflite.operands import Operands
from bitkiln.pipeline.importers.tflite.quantized import spread
from bitkiln.pipeline.importers.tflite.windows import check_windows, windows_of
from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.register import pair

_Converter = Callable[[Operands], relax.Expr]

#: ActivationFunctionType -> the operator it adds; 0 is none.
_ACTIVATIONS: dict[int, Callable[[relax.Expr], relax.Expr]] = {
    1: relax.op.nn.relu,
    2: lambda x: relax.op.clip(x, -1.0, 1.0),
    3: lambda x: relax.op.clip(x, 0.0, 6.0),
    4: relax.op.tanh,
}


def _activated(node: Operands, table: str, result: relax.Expr, name: str) -> relax.Expr:
    """``result``, called ``name`` where the activation of the options follows it."""
    number = node.option(table, "FusedActivationFunction", default=0)
    if number == 0:
        return result
    if number not in _ACTIVATIONS:
        raise node.unsupported(f"its fused activation {number} is not supported")
    return _ACTIVATIONS[number](node.step(result, name))


def _biased(node: Operands, position: int, result: relax.Expr, channels: int, name: str) -> tuple[relax.Expr, str]:
    """``result`` with a bias for each channel, if there is one and it does anything; and what to call it."""
    if not node.has(position):
        return result, name
    bias = node.weight(position, "bias")
    if bias.size != channels:
        raise node.error(f"its bias has {bias.size} values, it makes {channels} channels")
    if not bias.any():
        return result, name
    last = node.step(result, name)
    return relax.op.add(last, relax.const(bias.reshape([1] * (len(shape_of(last)) - 1) + [-1]))), "biased"


def _conv_2d(node: Operands) -> relax.Expr:
    shape, weight = node.image(), node.weight(1, "filter", 4)
    groups = shape[3] // weight.shape[3]
    if not groups or shape[3] % weight.shape[3] or len(weight) % groups:
        raise node.error(f"its filter {list(weight.shape)} does not fit its input {list(shape)}")
    return _convolved(node, "Conv2DOptions", weight, groups)


def _depthwise_conv_2d(node: Operands) -> relax.Expr:
    """Filters are [1, kh, kw, C * multiplier]; those of one channel stand together."""
    shape, weight = node.image(), node.weight(1, "filter", 4)
    if weight.shape[0] != 1 or weight.shape[3] % shape[3]:
        raise node.error(f"its filter {list(weight.shape)} does not fit its input {list(shape)}")
    return _convolved(node, "DepthwiseConv2DOptions", weight.transpose(3, 1, 2, 0), shape[3])


def _convolved(node: Operands, table: str, weight: np.ndarray, groups: int) -> relax.Expr:
    """``weight`` is OHWI."""
    windows = windows_of(node, table, pair(node.shape()[1:3]), pair(weight.shape[1:3]))
    result = relax.op.nn.conv2d(
        node.value(0),
        relax.const(np.ascontiguousarray(weight)),
        strides=windows.strides,
        padding=windows.padding,
        dilation=windows.dilations,
        groups=groups,
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_layout="NHWC",
    )
    return _activated(node, table, *_biased(node, 2, result, len(weight), "conv"))


def _transpose_conv(node: Operands) -> relax.Expr:
    """Operands are the size of the result, filters [O, kh, kw, I], the image and a bias. Relax knows it in NCHW only."""
    table, shape, weight = "TransposeConvOptions", node.image(2), node.weight(1, "filter", 4)
    size = node.numbers(0, "output shape")
    if len(size) != 4 or size[0] != shape[0] or size[3] != len(weight) or shape[3] != weight.shape[3]:
        raise node.error(f"its filter {list(weight.shape)} does not make {size} of {list(shape)}")
    windows = windows_of(node, table, pair(size[1:3]), pair(weight.shape[1:3]), dilated=False)
    (top, left, bottom, right), extra = windows.padding, [0, 0]
    for axis, padded in enumerate((top + bottom, left + right)):
        natural = (shape[axis + 1] - 1) * windows.strides[axis] + weight.shape[axis + 1] - padded
        extra[axis] = size[axis + 1] - natural
        if not 0 <= extra[axis] < windows.strides[axis]:
            raise node.error(f"its windows do not make {size} of {list(shape)}")
    image = node.step(relax.op.permute_dims(node.value(2), [0, 3, 1, 2]), "nchw")
    made = relax.op.nn.conv2d_transpose(
        image,
        relax.const(np.ascontiguousarray(weight.transpose(3, 0, 1, 2))),
        strides=windows.strides,
        padding=windows.padding,
        output_padding=tuple(extra),
    )
    result = relax.op.permute_dims(node.step(made, "transposed"), [0, 2, 3, 1])
    if not node.has(3) and node.operator.options_name != table:
        return result
    return _activated(node, table, *_biased(node, 3, result, len(weight), "conv"))


def transpose_conv_bias(node: Operands) -> relax.Expr:
    """MediaPipe's Convolution2DTransposeBias: an image, filters [O, kh, kw, I] and a bias.

    Its options are TensorFlow Lite's C struct TfLiteTransposeConvParams: padding (1 SAME, 2 VALID) and the two strides. With
    SAME padding what a window reaches beyond its stride is cut off, the smaller half before the image.
    """
    shape, weight = node.image(), node.weight(1, "filter", 4)
    if len(node.operator.custom_options) < 12:
        raise node.error("has no options")
    padding, stride_x, stride_y = struct.unpack_from("<3i", node.operator.custom_options)
    if padding not in (1, 2) or not 1 <= min(stride_y, stride_x) <= max(stride_y, stride_x) <= 1 << 12:
        raise node.error(f"its padding {padding} and strides {stride_y}, {stride_x} make no sense")
    if shape[3] != weight.shape[3]:
        raise node.error(f"its filter {list(weight.shape)} does not fit its input {list(shape)}")
    totals = [
        max(size - stride, 0) if padding == 1 else 0
        for size, stride in zip(weight.shape[1:3], (stride_y, stride_x), strict=True)
    ]
    before = [total // 2 for total in totals]
    image = node.step(relax.op.permute_dims(node.value(0), [0, 3, 1, 2]), "nchw")
    made = relax.op.nn.conv2d_transpose(
        image,
        relax.const(np.ascontiguousarray(weight.transpose(3, 0, 1, 2))),
        strides=(stride_y, stride_x),
        padding=(*before, *(total - half for total, half in zip(totals, before, strict=True))),
    )
    result = relax.op.permute_dims(node.step(made, "transposed"), [0, 2, 3, 1])
    return _biased(node, 2, result, len(weight), "conv")[0]


def _fully_connected(node: Operands) -> relax.Expr:
    """Every K elements of the input are a row; the result is a matrix, or keeps the leading dimensions if asked to."""
    table = "FullyConnectedOptions"
    if node.option(table, "WeightsFormat", default=0):
        raise node.unsupported("its weights are shuffled; convert the model without that")
    shape = node.shape()
    if not node.is_constant(1):
        raise node.unsupported("its weights are computed while the network runs")
    weight = node.weight(1, "weights", 2)
    outputs, inputs = weight.shape
    if prod(shape) % inputs:
        raise node.error(f"its weights {list(weight.shape)} do not fit its input {list(shape)}")
    keep = bool(node.option(table, "KeepNumDims", default=False)) and shape[-1:] == (inputs,)
    rows = prod(shape) // inputs
    x = node.value(0)
    if shape != (rows, inputs):
        x = node.step(relax.op.reshape(x, (rows, inputs)), "flat")
    product = relax.op.matmul(x, relax.const(np.ascontiguousarray(weight.T)))
    result, name = _biased(node, 2, product, outputs, "matmul")
    result = _activated(node, table, result, name)
    wanted = (*shape[:-1], outputs)
    return relax.op.reshape(node.step(result, "rows"), wanted) if keep and wanted != (rows, outputs) else result


def _batch_matmul(node: Operands) -> relax.Expr:
    sides = []
    for position, option, name in ((0, "AdjX", "left"), (1, "AdjY", "right")):
        side, rank = node.value(position), len(node.shape(position))
        if rank < 2:
            raise node.error("multiplies what is no matrix")
        if node.option("BatchMatMulOptions", option, default=False):
            axes = [*range(rank - 2), rank - 1, rank - 2]
            side = node.step(relax.op.permute_dims(side, axes), name)
        sides.append(side)
    return relax.op.matmul(*sides)


def _pooled(make: Callable[..., Call], *, average: bool) -> _Converter:
    def convert(node: Operands) -> relax.Expr:
        return _activated(node, "Pool2DOptions", _pooling(node, node.value(0), make, average), "pool")

    return convert


def _pooling(node: Operands, x: relax.Expr, make: Callable[..., Call], average: bool) -> relax.Expr:
    table = "Pool2DOptions"
    kernel = (int(node.option(table, "FilterHeight")), int(node.option(table, "FilterWidth")))
    windows = windows_of(node, table, node.image()[1:3], kernel, dilated=False)
    counted = {"count_include_pad": False} if average else {}
    return make(x, kernel, windows.strides, windows.padding, layout="NHWC", **counted)


def _l2_pool(node: Operands) -> relax.Expr:
    """The root of the mean of squares."""
    squares = node.step(relax.op.multiply(node.value(0), node.value(0)), "squares")
    means = node.step(_pooling(node, squares, relax.op.nn.avg_pool2d, True), "means")
    return _activated(node, "Pool2DOptions", relax.op.sqrt(means), "pool")


def _l2_normalization(node: Operands) -> relax.Expr:
    """x over the root of its channels' sum of squares, which counts as 1e-6 at least."""
    x = node.value(0)
    squares = node.step(relax.op.multiply(x, x), "squares")
    total = node.step(relax.op.sum(squares, axis=[-1], keepdims=True), "total")
    length = node.step(relax.op.sqrt(node.step(relax.op.maximum(total, scalar(1e-6)), "bounded")), "length")
    return _activated(node, "L2NormOptions", relax.op.divide(x, length), "normalised")


def _arithmetic(operator: Callable[..., Call], table: str) -> _Converter:
    def convert(node: Operands) -> relax.Expr:
        return _activated(node, table, operator(*_broadcast(node)), "result")

    return convert


def _broadcast(node: Operands, positions: tuple[int, ...] = (0, 1)) -> list[relax.Expr]:
    """Operands that broadcast; constants of a lower rank get the full one, as the passes expect them."""
    values = [node.value(position) for position in positions]
    rank = max(len(shape_of(value)) for value in values)
    for at, position in enumerate(positions):
        shape = shape_of(values[at])
        if node.is_constant(position) and 0 < len(shape) < rank:
            array = node.array(position, "operand")
            values[at] = relax.const(array.reshape((1,) * (rank - array.ndim) + array.shape))
    return values


def _plain(operator: Callable[..., Call], arity: int = 1) -> _Converter:
    def convert(node: Operands) -> relax.Expr:
        return operator(node.value(0)) if arity == 1 else operator(*_broadcast(node, tuple(range(arity))))

    return convert


def _select(node: Operands) -> relax.Expr:
    """The older operator: a vector as condition chooses whole rows."""
    condition, first, second = (node.value(position) for position in range(3))
    rank = len(shape_of(first))
    if len(shape_of(condition)) == 1 and rank > 1:
        condition = node.step(relax.op.reshape(condition, (-1, *[1] * (rank - 1))), "rows")
    return relax.op.where(condition, first, second)


def _add_n(node: Operands) -> relax.Expr:
    """The sum of any number of tensors, two at a time."""
    result = node.value(0)
    for position in range(1, len(node)):
        last = node.step(result, str(position - 1)) if position > 1 else result
        result = relax.op.add(last, node.value(position))
    return result


def _square_of_difference(node: Operands) -> relax.Expr:
    difference = node.step(relax.op.subtract(*_broadcast(node)), "difference")
    return relax.op.multiply(difference, difference)


def _prelu(node: Operands) -> relax.Expr:
    if not node.is_constant(1):
        raise node.unsupported("its slopes are computed while the network runs")
    shape, slope = node.shape(), node.weight(1, "slope")
    if np.broadcast_shapes(shape, slope.shape) != shape:
        raise node.error(f"its slopes {list(slope.shape)} do not fit its input {list(shape)}")
    return ops.prelu(node.value(0), relax.const(slope))


def _leaky_relu(node: Operands) -> relax.Expr:
    slope = float(node.option("LeakyReluOptions", "Alpha"))
    if not np.isfinite(slope):
        raise node.error(f"its slope is {slope}")
    return relax.op.nn.leakyrelu(node.value(0), slope)


def _elu(node: Operands) -> relax.Expr:
    """x where positive, else e**x - 1."""
    x = node.value(0)
    below = node.step(relax.op.minimum(x, scalar(0)), "below")
    curve = node.step(relax.op.subtract(node.step(relax.op.exp(below), "exp"), scalar(1)), "curve")
    return relax.op.where(node.step(relax.op.greater(x, scalar(0)), "positive"), x, curve)


def _gelu(node: Operands) -> relax.Expr:
    approximate = node.option("GeluOptions", "Approximate", default=False)
    return (relax.op.nn.gelu_tanh if approximate else relax.op.nn.gelu)(node.value(0))


def _softmax(node: Operands) -> relax.Expr:
    beta, x = float(node.option("SoftmaxOptions", "Beta")), node.value(0)
    if not np.isfinite(beta):
        raise node.error(f"its factor beta is {beta}")
    if beta != 1:
        x = node.step(relax.op.multiply(x, scalar(beta)), "scaled")
    return relax.op.nn.softmax(x, axis=-1)


def _log_softmax(node: Operands) -> relax.Expr:
    return relax.op.nn.log_softmax(node.value(0), axis=-1)


def _reduced(operator: Callable[..., Call]) -> _Converter:
    def convert(node: Operands) -> relax.Expr:
        rank = len(node.shape())
        axes = node.numbers(1, "axes")
        if any(not -rank <= axis < rank for axis in axes):
            raise node.error(f"reduces the axes {axes} of {rank}")
        keep = bool(node.option("ReducerOptions", "KeepDims", default=False))
        return operator(node.value(0), sorted({axis % rank for axis in axes}), keep) if axes else node.value(0)

    return convert


def _extreme_index(operator: Callable[..., Call], table: str) -> _Converter:
    """ArgMax and ArgMin."""

    def convert(node: Operands) -> relax.Expr:
        rank, axis = len(node.shape()), node.numbers(1, "axis")
        if len(axis) != 1 or not -rank <= axis[0] < rank:
            raise node.error(f"looks along the axes {axis} of {rank}")
        index = operator(node.value(0), axis[0] % rank)
        return relax.op.astype(node.step(index, "index"), node.result().dtype)

    return convert


def _cast(node: Operands) -> relax.Expr:
    return relax.op.astype(node.value(0), node.result().dtype)


def _dequantize(node: Operands) -> relax.Expr:
    """Weights stored in less than float32; they are constant."""
    if not node.is_constant(0):
        raise node.unsupported(
            f"{node.tensor(0).label} is {node.tensor(0).dtype}; int8 and uint8 with a scale are supported"
        )
    array, how = node.array(0, "input"), node.tensor(0).quantization
    if array.dtype == np.float16:
        values = array.astype(np.float32)
    elif array.dtype.kind in "iu" and how is not None:
        values = spread(node, how, array)[1]
    else:
        raise node.error(f"its input is {array.dtype} without a scale")
    if not np.isfinite(values).all():
        raise node.error(f"non-finite weight in {node.tensor(0).label}")
    return relax.const(values.astype(np.float32))


def _resize_bilinear(node: Operands) -> relax.Expr:
    table = "ResizeBilinearOptions"
    size = _resized(node)
    corners, half = (bool(node.option(table, name, default=False)) for name in ("AlignCorners", "HalfPixelCenters"))
    if corners and half:
        raise node.unsupported("both align_corners and half_pixel_centers")
    return relax.op.image.resize2d(
        node.value(0),
        size,
        layout="NHWC",
        method="linear",
        coordinate_transformation_mode="align_corners" if corners else "half_pixel" if half else "asymmetric",
    )


def _resize_nearest(node: Operands) -> relax.Expr:
    """Rows and columns are picked by numbers found here, in float32 as TensorFlow Lite's kernel finds them."""
    table, size = "ResizeNearestNeighborOptions", _resized(node)
    corners, half = (bool(node.option(table, name, default=False)) for name in ("AlignCorners", "HalfPixelCenters"))
    result = node.value(0)
    for axis, (old, new) in enumerate(zip(node.image()[1:3], size, strict=True), start=1):
        if old == new and not half:
            continue
        ends = corners and new > 1
        scale = np.float32(old - 1) / np.float32(new - 1) if ends else np.float32(old) / np.float32(new)
        at = (np.arange(new, dtype=np.float32) + np.float32(0.5 if half else 0)) * scale
        # Halves are rounded away from zero; the numbers are not negative.
        rows = np.floor(at + np.float32(0.5)) if corners else np.floor(at)
        indices = relax.const(np.clip(rows, 0, old - 1).astype(np.int32))
        picked = relax.op.take(result, indices, axis=axis)
        result = node.step(picked, "rows") if axis == 1 else picked
    return result


def _resized(node: Operands) -> tuple[int, int]:
    """Rows and columns of the resized image."""
    size = node.numbers(1, "size")
    if len(size) != 2 or min(size) < 1 or max(size) > 1 << 15:
        raise node.error(f"resizes {list(node.image())} to {size}")
    return size[0], size[1]


def _local_response(node: Operands) -> relax.Expr:
    """x / (bias + alpha * sum of squares over the channels up to ``radius`` away) ** beta.

    The sum is an average pooling over the channels of the image seen as [1, H*W, C, 1].
    """
    table, shape = "LocalResponseNormalizationOptions", node.image()
    radius = int(node.option(table, "Radius"))
    bias, alpha, beta = (float(node.option(table, name)) for name in ("Bias", "Alpha", "Beta"))
    if not np.isfinite([bias, alpha, beta]).all():
        raise node.error("its numbers are not finite")
    size = 2 * radius + 1
    check_windows(node, (1, shape[3]), (1, size), (1, 1), (1, 1), same=True)
    squares = node.step(relax.op.multiply(node.value(0), node.value(0)), "squares")
    rows = node.step(relax.op.reshape(squares, (1, prod(shape[:3]), shape[3], 1)), "rows")
    window = relax.op.nn.avg_pool2d(
        rows, (1, size), padding=(0, radius, 0, radius), count_include_pad=True, layout="NHWC"
    )
    means = node.step(relax.op.reshape(node.step(window, "windows"), shape), "means")
    scaled = node.step(relax.op.multiply(means, scalar(alpha * size)), "scaled")
    base = node.step(relax.op.add(scaled, scalar(bias)), "base")
    power = node.step(relax.op.power(base, scalar(-beta)), "power")
    return relax.op.multiply(node.value(0), power)


#: Builtin operator -> its converter.
CONVERTERS: dict[str, _Converter] = {
    "ABS": _plain(relax.op.abs),
    "ADD": _arithmetic(relax.op.add, "AddOptions"),
    "ADD_N": _add_n,
    "ARG_MAX": _extreme_index(relax.op.argmax, "ArgMaxOptions"),
    "ARG_MIN": _extreme_index(relax.op.argmin, "ArgMinOptions"),
    "AVERAGE_POOL_2D": _pooled(relax.op.nn.avg_pool2d, average=True),
    "BATCH_MATMUL": _batch_matmul,
    "CAST": _cast,
    "CEIL": _plain(relax.op.ceil),
    "CONV_2D": _conv_2d,
    "COS": _plain(relax.op.cos),
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEQUANTIZE": _dequantize,
    "DIV": _arithmetic(relax.op.divide, "DivOptions"),
    "ELU": _elu,
    "EQUAL": _plain(relax.op.equal, 2),
    "EXP": _plain(relax.op.exp),
    "FLOOR": _plain(relax.op.floor),
    "FLOOR_DIV": _plain(relax.op.floor_divide, 2),
    "FLOOR_MOD": _plain(relax.op.floor_mod, 2),
    "FULLY_CONNECTED": _fully_connected,
    "GELU": _gelu,
    "GREATER": _plain(relax.op.greater, 2),
    "GREATER_EQUAL": _plain(relax.op.greater_equal, 2),
    "HARD_SWISH": _plain(ops.hardswish),
    "L2_NORMALIZATION": _l2_normalization,
    "L2_POOL_2D": _l2_pool,
    "LEAKY_RELU": _leaky_relu,
    "LESS": _plain(relax.op.less, 2),
    "LESS_EQUAL": _plain(relax.op.less_equal, 2),
    "LOCAL_RESPONSE_NORMALIZATION": _local_response,
    "LOG": _plain(relax.op.log),
    "LOGICAL_AND": _plain(relax.op.logical_and, 2),
    "LOGICAL_NOT": _plain(relax.op.logical_not),
    "LOGICAL_OR": _plain(relax.op.logical_or, 2),
    "LOGISTIC": _plain(relax.op.sigmoid),
    "LOG_SOFTMAX": _log_softmax,
    "MAXIMUM": _plain(relax.op.maximum, 2),
    "MAX_POOL_2D": _pooled(relax.op.nn.max_pool2d, average=False),
    "MEAN": _reduced(relax.op.mean),
    "MINIMUM": _plain(relax.op.minimum, 2),
    "MUL": _arithmetic(relax.op.multiply, "MulOptions"),
    "NEG": _plain(relax.op.negative),
    "NOT_EQUAL": _plain(relax.op.not_equal, 2),
    "POW": _plain(relax.op.power, 2),
    "PRELU": _prelu,
    "REDUCE_MAX": _reduced(relax.op.max),
    "REDUCE_MIN": _reduced(relax.op.min),
    "REDUCE_PROD": _reduced(relax.op.prod),
    "RELU": _plain(_ACTIVATIONS[1]),
    "RELU6": _plain(_ACTIVATIONS[3]),
    "RELU_N1_TO_1": _plain(_ACTIVATIONS[2]),
    "RELU_0_TO_1": _plain(lambda x: relax.op.clip(x, 0.0, 1.0)),
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "ROUND": _plain(relax.op.round),
    "RSQRT": _plain(relax.op.rsqrt),
    "SELECT": _select,
    "SELECT_V2": _plain(relax.op.where, 3),
    "SIGN": _plain(relax.op.sign),
    "SIN": _plain(relax.op.sin),
    "SOFTMAX": _softmax,
    "SQRT": _plain(relax.op.sqrt),
    "SQUARE": _plain(relax.op.square),
    "SQUARED_DIFFERENCE": _square_of_difference,
    "SUB": _arithmetic(relax.op.subtract, "SubOptions"),
    "SUM": _reduced(relax.op.sum),
    "TANH": _plain(relax.op.tanh),
    "TRANSPOSE_CONV": _transpose_conv,
}

#: Custom operator -> its converter.
CUSTOM: dict[str, _Converter] = {
    "Convolution2DTransposeBias": transpose_conv_bias,
}
