"""Our own operators: what a workload computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitkiln.pipeline.ops import pack_bits, unpack_bits
from bitkiln.pipeline.ops.words import evaluate_words
from bitkiln.pipeline.reference import matrices
from bitkiln.pipeline.reference.resize import resize
from bitkiln.pipeline.reference.values import Operator, Value
from bitkiln.pipeline.reference.windows import convolve, pool, spread
from bitkiln.schedules import steps
from bitkiln.schedules.workload import (
    Attention,
    Binarize,
    Concat,
    Conv2d,
    ConvTranspose2d,
    DepthFirst,
    Lookup,
    Normalize,
    Pool2d,
    Product,
    QConv2d,
    Resize,
    Softmax,
    Workload,
    argument_specs,
)


def compute(workload: Workload, args: Sequence[np.ndarray]) -> Value:
    """One of our operators on its arguments, in the order of ``workload.shapes``; a tuple where there are signs beside."""
    if isinstance(workload, Conv2d | Pool2d | Binarize) and workload.signs:
        return _compute_with_signs(workload, args)
    return _compute_alone(workload, args)


def _compute_with_signs(workload: Conv2d | Pool2d | Binarize, args: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    counts = [sum(step.operand != "" for step in each.epilogue) for each in workload.signs]
    behind = isinstance(workload, Conv2d) and workload.shift
    own = args[len(args) - behind - sum(counts) : len(args) - behind]
    rest = [*args[: len(args) - behind - sum(counts)], *args[len(args) - behind :]]
    first = value = _compute_alone(replace(workload, signs=()), rest)
    if isinstance(workload, Binarize):
        value = args[0]
    bits = []
    for each, count in zip(workload.signs, counts, strict=True):
        bits.append(sign_bits(steps.compute(each.epilogue, value, own[:count]), each.sign_zero))
        own = own[count:]
    return first, *bits


def _compute_alone(workload: Workload, args: Sequence[np.ndarray]) -> np.ndarray:
    """As ``compute``, where there is one result."""
    if isinstance(workload, Binarize):
        return sign_bits(steps.compute(workload.epilogue, args[0], args[1:]), workload.sign_zero)
    if isinstance(workload, Pool2d):
        return _compute_pool(workload, args)
    if isinstance(workload, Concat):
        parts = len(workload.parts)
        return steps.compute(workload.epilogue, _side_by_side(workload, args[:parts]), args[parts:])
    if isinstance(workload, QConv2d):
        return _compute_whole(workload, args)
    if isinstance(workload, Lookup):
        return args[1][args[0].astype(np.int64) + 128]
    if isinstance(workload, ConvTranspose2d):
        work = workload
        value = spread(args[0], args[1], work.strides, work.padding, work.dilation, work.groups, work.output_padding)
        return steps.compute(workload.epilogue, value, args[2:])
    if isinstance(workload, DepthFirst):
        return _compute_layers(workload, args)
    if isinstance(workload, Product | Attention):
        return matrices.compute(workload, args)
    if isinstance(workload, Softmax):
        return matrices.log_softmax(args[0], -1) if workload.log else matrices.softmax(args[0], -1)
    if isinstance(workload, Normalize):
        return matrices.normalize(args[0], args[1], args[2], (-1,), workload.epsilon)
    if isinstance(workload, Resize):
        value = resize(args[0], workload.size, workload.method, workload.coordinates, workload.rounding)
        return steps.compute(workload.epilogue, value, args[1:])
    if workload.parts:
        return _compute_on_parts(workload, args)
    if workload.shift or workload.layout != "NHWC":
        return _compute_on_image(workload, args)
    value = accumulate(workload, args[0], args[1])
    if workload.threshold:
        size = value.shape if workload.threshold == "element" else value.shape[3:]
        return pack_bits(
            np.logical_xor.reduce([value >= each for each in args[-1].reshape(workload.thresholds, *size)])
        )
    value = steps.compute(workload.epilogue, value, args[2:])
    value = pool(value, workload.pool) if workload.pool else value
    return sign_bits(value, workload.sign_zero) if workload.out == "bits" else value


def _side_by_side(workload: Concat | Conv2d, images: Sequence[np.ndarray]) -> np.ndarray:
    if workload.begins:
        taken = zip(images, workload.begins, workload.parts, strict=True)
        images = [part[..., begin : begin + count] for part, begin, count in taken]
    return np.concatenate(images, axis=3)


def _compute_on_parts(workload: Conv2d, args: Sequence[np.ndarray]) -> np.ndarray:
    """A convolution of several images, of which all but the first are its last arguments."""
    end = len(args) - len(workload.parts) + 1
    image = _side_by_side(workload, [args[0], *args[end:]])
    return _compute_alone(replace(workload, parts=(), begins=(), widths=()), [image, *args[1:end]])


def _compute_layers(workload: DepthFirst, args: Sequence[np.ndarray]) -> np.ndarray:
    value, rest = args[0], list(args[1:])
    for layer in workload.layers:
        own = [rest.pop(0) for _ in argument_specs(layer)[1:]]
        value = _compute_alone(layer, [value, *own])
    return value


def _compute_on_image(workload: Conv2d, args: Sequence[np.ndarray]) -> np.ndarray:
    """A first layer that reads the image as it comes."""
    image = args[0] if workload.layout == "NHWC" else args[0].transpose(0, 2, 3, 1)
    if workload.shift:
        image, args = image + args[-1], args[:-1]
    return _compute_alone(replace(workload, shift=False, layout="NHWC"), [image, *args[1:]])


def _compute_pool(workload: Pool2d, args: Sequence[np.ndarray]) -> np.ndarray:
    if not workload.bits:
        value = steps.compute(workload.epilogue, pool(args[0], workload.pool), args[1:])
        return sign_bits(value, workload.sign_zero) if workload.out == "bits" else value
    result = pack_bits(pool(unpack_bits(args[0], workload.channels), workload.pool))
    return result ^ args[1] if workload.invert else result


def _compute_whole(workload: QConv2d, args: Sequence[np.ndarray]) -> np.ndarray:
    """Sums of whole numbers, which float64 holds, and what the factor makes of them."""
    data, weight, bias, factor = args
    work = workload
    whole = data.astype(np.float64) - work.zero
    sums = convolve(whole, weight.astype(np.float64), work.strides, work.padding, work.dilation, work.groups, 0)
    rounded = np.round((sums + bias).astype(np.float32) * factor.astype(np.float32)) + work.out_zero
    return np.clip(rounded, work.low, work.high).astype(np.int8)


def accumulate(workload: Conv2d, data: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sums of a convolution before its epilogue, float32 [1, H', W', O] (whole numbers for a binary one)."""
    if workload.binary:
        data = unpack_bits(data, workload.channels).astype(np.float32)
        weight = unpack_bits(weight, workload.channels // workload.groups).astype(np.float32)
    return convolve(
        data,
        weight,
        workload.strides,
        workload.padding,
        workload.dilation,
        workload.groups,
        workload.pad_value,
    )


def sign_bits(value: np.ndarray, sign_zero: int) -> np.ndarray:
    """The signs of float32 [..., C] as bits; ``sign_zero`` is that of zero, NaN counts as negative."""
    with np.errstate(invalid="ignore"):
        return pack_bits(value >= 0 if sign_zero > 0 else value > 0)


OPERATORS: dict[str, Operator] = {
    "bitkiln.hardswish": lambda _, x: steps.compute([steps.Step("hardswish")], x, []),
    "bitkiln.prelu": lambda _, x, slope: steps.compute([steps.Step("prelu", "tensor")], x, [slope]),
    "bitkiln.from_words": evaluate_words,
    "bitkiln.to_words": evaluate_words,
    "bitkiln.unpack": evaluate_words,
}
