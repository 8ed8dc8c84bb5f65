"""ONNX operators that the passes look for, each as the Relax of the normal form described in ``onnx``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.common.building import per_channel, scalar
from bitkiln.pipeline.importers.onnx import arithmetic, indexing, qoperators, reductions, windows
from bitkiln.pipeline.importers.onnx.graph import ASSIGNMENT, MULTI_THRESHOLD
from bitkiln.pipeline.importers.onnx.masks import assign
from bitkiln.pipeline.importers.onnx.operands import Operands, width_of
from bitkiln.pipeline.importers.onnx.pads import cut, gather, pad
from bitkiln.pipeline.importers.onnx.recurrent import unrolled
from bitkiln.pipeline.importers.onnx.resizing import resize
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
    if tuple(node.attributes.get("kernel_shape", weight.shape[2:])) != weight.shape[2:]:
        raise node.unsupported(f"its attribute kernel_shape is not that of its weight {list(weight.shape)}")
    if len(shape) == 4:
        return _convolution_of_images(node, node.value(0), shape[2:], weight, node.attributes)
    image = node.step(relax.op.reshape(node.value(0), (*shape[:2], 1, shape[2])), "image")
    lines = _convolution_of_images(node, image, (1, shape[2]), weight[:, :, None], of_lines(node.attributes))
    lines = node.step(lines, "lines")
    return relax.op.reshape(lines, (shape[0], len(weight), width_of(lines)))


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
    return relax.op.add(node.step(result, "conv"), per_channel(node.weight(2, "bias"), 4))


def _batch_normalization(node: Operands) -> relax.Expr:
    """y = (x - mean) / sqrt(var + epsilon) * gamma + beta, in double precision until the two constants are made."""
    if node.attributes.get("training_mode", 0):
        raise node.unsupported("is in training mode; export the model for inference")
    names = ("scale", "bias", "mean", "variance")
    gamma, beta, mean, variance = (node.weight(i + 1, what).astype(np.float64) for i, what in enumerate(names))
    with np.errstate(invalid="ignore", divide="ignore"):
        multiplier = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    if not np.isfinite(multiplier).all():
        low = float((variance + node.attributes.get("epsilon", 1e-5)).min())
        raise node.unsupported(f"its variance plus epsilon is {low:.3g} in some channel, whose root nothing divides by")
    rank = len(node.shape())
    scaled = node.step(relax.op.multiply(node.value(0), per_channel(multiplier, rank)), "scaled")
    return relax.op.add(scaled, per_channel(beta - mean * multiplier, rank))


def _dropout(node: Operands) -> relax.Expr:
    """Where its mask is asked for: nothing is dropped."""
    return relax.Tuple([node.value(0), relax.const(np.ones(node.shape(), np.bool_))])


def _prelu(node: Operands) -> relax.Expr:
    x, rank = node.value(0), len(node.shape())
    slope = node.weight(1, "slope")
    spread = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    if spread.size == 1:
        return relax.op.nn.leakyrelu(x, float(spread.item()))
    if rank > 1 and spread.size == spread.shape[1]:
        return relax.op.nn.prelu(x, relax.const(spread.ravel()), axis=1)
    scaled = node.step(relax.op.multiply(x, relax.const(spread)), "scaled")
    return relax.op.where(node.step(relax.op.less(x, scalar(0)), "negative"), scaled, x)


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


def _hard_sigmoid(node: Operands) -> relax.Expr:
    """HardSigmoid, and HardSwish, which is x times one."""
    swish = node.node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else node.attributes.get("alpha", 0.2)
    scaled = node.step(relax.op.multiply(node.value(0), scalar(alpha)), "scaled")
    shifted = node.step(relax.op.add(scaled, scalar(node.attributes.get("beta", 0.5))), "shifted")
    gate = relax.op.clip(shifted, 0.0, 1.0)
    return relax.op.multiply(node.value(0), node.step(gate, "gate")) if swish else gate


def _local_response(node: Operands) -> relax.Expr:
    """LRN: x / (bias + alpha/size * sum of squares over ``size`` neighbouring channels) ** beta.

    The mean of squares is an average pooling over the channel axis of the image seen as [1, 1, C, H*W].
    """
    shape, size = node.shape(), node.attributes["size"]
    if size < 1:
        raise node.unsupported(f"its attribute size={size} is less than 1")
    squares = node.step(relax.op.multiply(node.value(0), node.value(0)), "squares")
    rows = node.step(relax.op.reshape(squares, (shape[0], 1, shape[1], math.prod(shape[2:]))), "rows")
    before, after = (size - 1) // 2, size // 2
    window = relax.op.nn.avg_pool2d(rows, (size, 1), padding=(before, 0, after, 0), count_include_pad=True)
    means = node.step(relax.op.reshape(node.step(window, "windows"), shape), "means")
    scaled = node.step(relax.op.multiply(means, scalar(node.attributes.get("alpha", 1e-4))), "scaled")
    base = node.step(relax.op.add(scaled, scalar(node.attributes.get("bias", 1.0))), "base")
    power = node.step(relax.op.power(base, scalar(-node.attributes.get("beta", 0.75))), "power")
    return relax.op.multiply(node.value(0), power)


#: ONNX operator -> its converter; all others go through TVM's frontend.
CONVERTERS: dict[str, Callable[[Operands], relax.Expr]] = {
    **qoperators.CONVERTERS,
    ASSIGNMENT: assign,
    **dict.fromkeys(reductions.REDUCTIONS, reductions.reduce),
    "ArgMax": reductions.extreme_index,
    "ArgMin": reductions.extreme_index,
    "AveragePool": windows.pooling,
    "BatchNormalization": _batch_normalization,
    "BitShift": arithmetic.bit_shift,
    "Cast": arithmetic.cast,
    "CastLike": arithmetic.cast,
    "Clip": arithmetic.clip,
    "Conv": _convolution,
    "ConvTranspose": windows.transposed_convolution,
    "CumSum": reductions.cumulative_sum,
    "DepthToSpace": indexing.depth_to_space,
    "DequantizeLinear": dequantize,
    "Div": arithmetic.divide,
    "Dropout": _dropout,
    "EyeLike": indexing.eye_like,
    "Flatten": _flatten,
    "Gather": gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "Gemm": _dense,
    "GreaterOrEqual": arithmetic.greater_or_equal,
    "GRU": unrolled,
    "GridSample": indexing.grid_sample,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_sigmoid,
    "Hardmax": reductions.hardmax,
    "IsInf": arithmetic.is_infinite,
    "LSTM": unrolled,
    "LRN": _local_response,
    "LayerNormalization": reductions.layer_normalization,
    "LogSoftmax": reductions.softmax,
    "LpNormalization": reductions.lp_normalization,
    "LpPool": windows.lp_pooling,
    "Max": arithmetic.variadic,
    "MaxPool": windows.pooling,
    "Mean": arithmetic.mean,
    "Min": arithmetic.variadic,
    "Mod": arithmetic.modulo,
    MULTI_THRESHOLD: multi_threshold,
    "OneHot": indexing.one_hot,
    "PRelu": _prelu,
    "Pad": pad,
    "Pow": arithmetic.power,
    "QuantizeLinear": quantize,
    "Reshape": _reshape,
    "Resize": resize,
    "RNN": unrolled,
    "RoiAlign": indexing.roi_align,
    "Round": arithmetic.round_half_even,
    "Scatter": indexing.scatter_elements,
    "ScatterElements": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    "Slice": cut,
    "Softmax": reductions.softmax,
    "SpaceToDepth": indexing.space_to_depth,
    "Split": _split,
    "Sum": arithmetic.variadic,
    "Swish": arithmetic.swish,
    "Trilu": indexing.triangle,
    "Upsample": resize,
    "Where": arithmetic.select,
}
