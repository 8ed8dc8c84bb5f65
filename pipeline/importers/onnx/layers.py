"""ONNX operators that the passes look for, each as the Relax of the normal form described in ``onnx``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.graph import ASSIGNMENT, MULTI_THRESHOLD
from bitkiln.pipeline.importers.onnx.masks import assign
from bitkiln.pipeline.importers.onnx.operands import Operands, static_shape
from bitkiln.pipeline.importers.onnx.pads import cut, gather, gather_nd, pad
from bitkiln.pipeline.importers.onnx.thresholds import dequantize, multi_threshold, quantize
from bitkiln.pipeline.ir.windows import Windows, of_lines


def _convolution(node: Operands) -> relax.Expr:
    """Of images, and of rows as images of one line."""
    shape = node.shape()
    weight = node.weight(1, "weight")
    if len(shape) not in (3, 4):
        return node.by_frontend()
    groups = node.attributes.get("group", 1)
    if weight.ndim != len(shape) or shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise node.unsupported(f"weight {weight.shape} does not fit its input {shape} in {groups} groups")
    if len(shape) == 4:
        return _convolution_of_images(node, node.value(0), shape[2:], weight, node.attributes)
    image = node.step(relax.op.reshape(node.value(0), (*shape[:2], 1, shape[2])), "image")
    lines = _convolution_of_images(node, image, (1, shape[2]), weight[:, :, None], of_lines(node.attributes))
    lines = node.step(lines, "lines")
    return relax.op.reshape(lines, (shape[0], len(weight), static_shape(lines)[3]))


def _convolution_of_images(
    node: Operands, x: relax.Expr, size: tuple[int, int], weight: np.ndarray, attributes: Mapping[str, Any]
) -> relax.Expr:
    windows = Windows.of(attributes, size, weight.shape[2:])
    result = relax.op.nn.conv2d(
        x,
        relax.const(weight),
        strides=windows.strides,
        padding=windows.padding,
        dilation=windows.dilations,
        groups=attributes.get("group", 1),
    )
    if not node.has(2):
        return result
    return relax.op.add(node.step(result, "conv"), _per_channel(node.weight(2, "bias"), 4))


def _batch_normalization(node: Operands) -> relax.Expr:
    """y = (x - mean) / sqrt(var + epsilon) * gamma + beta, in double precision until the two constants are made."""
    if node.attributes.get("training_mode", 0):
        raise node.unsupported("is in training mode; export the model for inference")
    names = ("scale", "bias", "mean", "variance")
    gamma, beta, mean, variance = (node.weight(i + 1, what).astype(np.float64) for i, what in enumerate(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        multiplier = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    if not np.isfinite(multiplier).all():
        raise node.unsupported("its variance is negative")
    rank = len(node.shape())
    scaled = node.step(relax.op.multiply(node.value(0), _per_channel(multiplier, rank)), "scaled")
    return relax.op.add(scaled, _per_channel(beta - mean * multiplier, rank))


def _per_channel(values: np.ndarray, rank: int) -> relax.Expr:
    """float32 [1, C, 1, ...] of the given rank."""
    shape = [1] * rank
    shape[min(1, rank - 1)] = values.size
    return relax.const(values.astype(np.float32).reshape(shape))


def _scalar(value: float) -> relax.Expr:
    return relax.const(value, "float32")


def _clip(node: Operands) -> relax.Expr:
    limits = np.finfo(np.float32)
    bounds = []
    for index, name, default in ((1, "min", limits.min), (2, "max", limits.max)):
        given = node.array(index, name).item() if node.has(index) else node.attributes.get(name, default)
        bounds.append(float(np.clip(given, limits.min, limits.max)))
    return relax.op.clip(node.value(0), *bounds)


def _prelu(node: Operands) -> relax.Expr:
    x, rank = node.value(0), len(node.shape())
    slope = node.weight(1, "slope")
    spread = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    if spread.size == 1:
        return relax.op.nn.leakyrelu(x, float(spread.item()))
    if rank > 1 and spread.size == spread.shape[1]:
        return relax.op.nn.prelu(x, relax.const(spread.ravel()), axis=1)
    scaled = node.step(relax.op.multiply(x, relax.const(spread)), "scaled")
    return relax.op.where(node.step(relax.op.less(x, _scalar(0)), "negative"), scaled, x)


def _pooling(node: Operands) -> relax.Expr:
    shape = node.shape()
    if len(shape) != 4:
        return node.by_frontend()
    if len([name for name in node.node.output if name]) > 1:
        raise node.unsupported("its indices are not supported")
    largest = node.node.op_type == "MaxPool"
    windows = Windows.of(node.attributes, shape[2:], tuple(node.attributes["kernel_shape"]))
    counted = bool(node.attributes.get("count_include_pad", 0))
    x, padding = node.value(0), windows.padding
    if any(windows.overruns) and counted and not largest:
        # What a window reads behind the padding does not count: that padding is the pooling's, the file's one before it.
        bottom, right = windows.overruns
        top, left, *_ = padding
        x = node.step(relax.op.nn.pad(x, _around(top, left, padding[2] - bottom, padding[3] - right)), "padded")
        padding, counted = (0, 0, bottom, right), False
    operator = relax.op.nn.max_pool2d if largest else relax.op.nn.avg_pool2d
    return operator(
        x,
        windows.kernel,
        windows.strides,
        padding,
        windows.dilations,
        count_include_pad=counted and not largest,
    )


def _around(top: int, left: int, bottom: int, right: int) -> list[int]:
    """Padding of an NCHW image as nn.pad wants it."""
    return [0, 0, 0, 0, top, bottom, left, right]


def _dense(node: Operands) -> relax.Expr:
    """Gemm with a constant right side; alpha, beta and the transposition go into the constants."""
    if not node.is_constant(1) or (node.has(2) and not node.is_constant(2)):
        return node.by_frontend()
    weight = node.weight(1, "weight")
    weight = (weight.T if node.attributes.get("transB", 0) else weight) * np.float32(node.attributes.get("alpha", 1))
    x = node.value(0)
    if node.attributes.get("transA", 0):
        x = node.step(relax.op.permute_dims(x), "transposed")
    product = relax.op.matmul(x, relax.const(np.ascontiguousarray(weight)))
    if not node.has(2):
        return product
    bias = node.weight(2, "bias") * np.float32(node.attributes.get("beta", 1))
    return relax.op.add(node.step(product, "matmul"), relax.const(bias.reshape((1,) * (2 - bias.ndim) + bias.shape)))


def _flatten(node: Operands) -> relax.Expr:
    shape, axis = node.shape(), node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return relax.op.reshape(node.value(0), (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))))


def _reshape(node: Operands) -> relax.Expr:
    """The target is constant after folding; 0 keeps an extent, -1 takes what is left."""
    shape = node.shape()
    target = [int(size) for size in node.array(1, "shape")]
    if not node.attributes.get("allowzero", 0):
        target = [shape[index] if size == 0 else size for index, size in enumerate(target)]
    if -1 in target:
        rest = int(np.prod([size for size in target if size != -1]))
        target[target.index(-1)] = int(np.prod(shape)) // max(rest, 1)
    if np.prod(target) != np.prod(shape):
        raise node.unsupported(f"makes {target} of {list(shape)}")
    return node.value(0) if tuple(target) == shape else relax.op.reshape(node.value(0), target)


def _where(node: Operands) -> relax.Expr:
    return relax.op.where(node.value(0), node.value(1), node.value(2))


def _greater_or_equal(node: Operands) -> relax.Expr:
    return relax.op.greater_equal(node.value(0), node.value(1))


def _round(node: Operands) -> relax.Expr:
    """Halves to even."""
    return relax.op.round(node.value(0))


def _split(node: Operands) -> relax.Expr:
    """One slice for each output, so that every step makes one tensor. Sizes are given, or equal but for the last."""
    shape, count = node.shape(), len(node.node.output)
    axis = node.attributes.get("axis", 0) % len(shape)
    if node.has(1):
        sizes = [int(size) for size in node.array(1, "split")]
    else:
        equal = -(-shape[axis] // count)
        sizes = node.attributes.get("split", [equal] * (count - 1) + [shape[axis] - equal * (count - 1)])
    if len(sizes) != count or sum(sizes) != shape[axis] or min(sizes) < 1:
        raise node.unsupported(f"splits {shape[axis]} into {count} parts of {list(sizes)}")
    ends = np.cumsum(sizes).tolist()
    pieces = [
        relax.op.strided_slice(node.value(0), [axis], [end - size], [end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    return pieces[0] if count == 1 else relax.Tuple(pieces)


def _softmax(node: Operands) -> relax.Expr:
    """Before opset 13 all axes from ``axis`` on are one."""
    shape = node.shape()
    axis = node.attributes.get("axis", -1 if node.opset >= 13 else 1)
    axis = axis + len(shape) if axis < 0 else axis
    if node.opset >= 13 or math.prod(shape[axis:]) == shape[axis]:
        return relax.op.nn.softmax(node.value(0), axis)
    flat = node.step(relax.op.reshape(node.value(0), (math.prod(shape[:axis]), math.prod(shape[axis:]))), "flat")
    return relax.op.reshape(node.step(relax.op.nn.softmax(flat, 1), "all"), shape)


def _hard_sigmoid(node: Operands) -> relax.Expr:
    """HardSigmoid, and HardSwish, which is x times one."""
    swish = node.node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else node.attributes.get("alpha", 0.2)
    scaled = node.step(relax.op.multiply(node.value(0), _scalar(alpha)), "scaled")
    shifted = node.step(relax.op.add(scaled, _scalar(node.attributes.get("beta", 0.5))), "shifted")
    gate = relax.op.clip(shifted, 0.0, 1.0)
    return relax.op.multiply(node.value(0), node.step(gate, "gate")) if swish else gate


def _variadic(node: Operands) -> relax.Expr:
    """Sum, Max or Min of any number of tensors, two at a time."""
    operator = {"Sum": relax.op.add, "Max": relax.op.maximum, "Min": relax.op.minimum}[node.node.op_type]
    result = node.value(0)
    for index in range(1, len(node)):
        result = operator(result, node.value(index))
        if index < len(node) - 1:
            result = node.step(result, str(index))
    return result


def _local_response(node: Operands) -> relax.Expr:
    """LRN: x / (bias + alpha/size * sum of squares over ``size`` neighbouring channels) ** beta.

    The mean of squares is an average pooling over the channel axis of the image seen as [1, 1, C, H*W].
    """
    shape, size = node.shape(), node.attributes["size"]
    squares = node.step(relax.op.multiply(node.value(0), node.value(0)), "squares")
    rows = node.step(relax.op.reshape(squares, (1, 1, shape[1], math.prod(shape[2:]))), "rows")
    before, after = (size - 1) // 2, size // 2
    window = relax.op.nn.avg_pool2d(rows, (size, 1), padding=(before, 0, after, 0), count_include_pad=True)
    means = node.step(relax.op.reshape(node.step(window, "windows"), shape), "means")
    scaled = node.step(relax.op.multiply(means, _scalar(node.attributes.get("alpha", 1e-4))), "scaled")
    base = node.step(relax.op.add(scaled, _scalar(node.attributes.get("bias", 1.0))), "base")
    power = node.step(relax.op.power(base, _scalar(-node.attributes.get("beta", 0.75))), "power")
    return relax.op.multiply(node.value(0), power)


def _resize(node: Operands) -> relax.Expr:
    """Resize of any opset, and Upsample, for images; sizes or scales are constant."""
    shape = node.shape()
    old = node.opset < 11
    scales, sizes = (1, None) if old else (2, 3)
    if sizes is not None and node.has(sizes):
        target = [int(size) for size in node.array(sizes, "sizes")]
    elif "scales" in node.attributes:
        target = [int(size * scale) for size, scale in zip(shape, node.attributes["scales"], strict=True)]
    else:
        target = [int(size * scale) for size, scale in zip(shape, node.array(scales, "scales"), strict=True)]
    attributes = node.attributes
    text = {name: attributes.get(name, default).decode() for name, default in _RESIZE_DEFAULTS.items()}
    if len(shape) != 4 or tuple(target[:2]) != shape[:2] or text["mode"] not in _RESIZE_METHODS:
        raise node.unsupported(f"resizes {list(shape)} to {target} by {text['mode']}")
    if attributes.get("axes") or attributes.get("antialias") or text["keep_aspect_ratio_policy"] != "stretch":
        raise node.unsupported("axes, antialias and keep_aspect_ratio_policy are not supported")
    return relax.op.image.resize2d(
        node.value(0),
        tuple(target[2:]),
        layout="NCHW",
        method=_RESIZE_METHODS[text["mode"]],
        coordinate_transformation_mode="asymmetric" if old else text["coordinate_transformation_mode"],
        rounding_method="floor" if old else text["nearest_mode"],
        cubic_alpha=attributes.get("cubic_coeff_a", -0.75),
        cubic_exclude=attributes.get("exclude_outside", 0),
        extrapolation_value=attributes.get("extrapolation_value", 0.0),
    )


_RESIZE_METHODS = {"nearest": "nearest_neighbor", "linear": "linear", "cubic": "cubic"}
_RESIZE_DEFAULTS = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"half_pixel",
    "nearest_mode": b"round_prefer_floor",
    "keep_aspect_ratio_policy": b"stretch",
}


#: ONNX operator -> its converter; all others go through TVM's frontend.
CONVERTERS: dict[str, Callable[[Operands], relax.Expr]] = {
    ASSIGNMENT: assign,
    "AveragePool": _pooling,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Conv": _convolution,
    "DequantizeLinear": dequantize,
    "Flatten": _flatten,
    "Gather": gather,
    "GatherND": gather_nd,
    "Gemm": _dense,
    "GreaterOrEqual": _greater_or_equal,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_sigmoid,
    "LRN": _local_response,
    "Max": _variadic,
    "MaxPool": _pooling,
    "Min": _variadic,
    MULTI_THRESHOLD: multi_threshold,
    "PRelu": _prelu,
    "Pad": pad,
    "QuantizeLinear": quantize,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _round,
    "Slice": cut,
    "Softmax": _softmax,
    "Split": _split,
    "Sum": _variadic,
    "Upsample": _resize,
    "Where": _where,
}
