"""What a network means, in plain numpy and apart from the product's own reference: every operator as its definition has it.

Elementwise operators round to float32 one after another, as the graph states them. Sums of convolutions, poolings and means
are made in float64 and rounded once, so that no order of summation shows; sums of bits are whole numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GenericConst
from tvm.relax import TupleGetItem

from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.schedules.workload import Binarize, Concat, Conv2d, Pool2d


def run(module: tvm.IRModule, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of ``main``."""
    values = dict(inputs)
    function = module["main"]
    with np.errstate(all="ignore"):
        for block in function.body.blocks:
            for binding in block.bindings:
                values[binding.var.name] = _evaluate(binding.value, values)
        result = _evaluate(function.body.body, values)
    return list(result) if isinstance(result, tuple) else [result]


def bits_of(array: np.ndarray, channels: int) -> np.ndarray:
    """Packed bits as +1.0 and -1.0; the spare bits must be clear."""
    plain = np.unpackbits(array, axis=-1, bitorder="little")
    assert not plain[..., channels:].any(), "a spare bit is set"
    return np.where(plain[..., :channels], 1.0, -1.0)


def packed(set_bits: np.ndarray) -> np.ndarray:
    """Booleans as packed bits."""
    return np.packbits(set_bits, axis=-1, bitorder="little")


def convolve(x, weight, strides, padding, dilation, groups, pad_value=0.0):
    """[N, H, W, C] and OHWI -> float64 [N, H', W', O]."""
    outs, kernel_y, kernel_x, per_group = weight.shape
    top, left, bottom, right = padding
    image = np.pad(
        x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=float(pad_value)
    )
    size = [
        (image.shape[1 + i] - (kernel - 1) * dilation[i] - 1) // strides[i] + 1
        for i, kernel in enumerate((kernel_y, kernel_x))
    ]
    result = np.zeros((len(x), *size, outs))
    share = outs // groups
    for y, x_, group in itertools.product(range(kernel_y), range(kernel_x), range(groups)):
        rows = slice(y * dilation[0], y * dilation[0] + (size[0] - 1) * strides[0] + 1, strides[0])
        columns = slice(x_ * dilation[1], x_ * dilation[1] + (size[1] - 1) * strides[1] + 1, strides[1])
        taps = image[:, rows, columns, group * per_group : (group + 1) * per_group]
        own = slice(group * share, (group + 1) * share)
        result[..., own] += np.einsum("nhwc,oc->nhwo", taps, weight[own, y, x_].astype(np.float64))
    return result


def pooled(x, kernel, strides, padding, kind, include=True):
    """Pooling of [N, H, W, C]; what lies outside never counts, but in the size of an average with ``include``."""
    top, left = padding[:2]
    size = [(x.shape[1 + i] + padding[i] + padding[i + 2] - kernel[i]) // strides[i] + 1 for i in (0, 1)]
    result = np.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    for row, column in itertools.product(*map(range, size)):
        first = row * strides[0] - top, column * strides[1] - left
        window = x[
            :,
            max(first[0], 0) : max(first[0] + kernel[0], 0),
            max(first[1], 0) : max(first[1] + kernel[1], 0),
        ]
        if kind == "max":
            result[:, row, column] = window.max(axis=(1, 2))
        else:
            count = kernel[0] * kernel[1] if include else window.shape[1] * window.shape[2]
            result[:, row, column] = window.sum(axis=(1, 2), dtype=np.float64) / count
    return result


def stepped(steps, x, operands):
    """float32 [..., H, W, C] after the steps of an epilogue."""
    remaining = iter(operands)
    for step in steps:
        v = next(remaining) if step.operand else None
        x = _STEPS[step.op](x, v, [np.float32(value) for value in step.values]).astype(np.float32)
    return x


def signs(x, sign_zero):
    """Which elements have a set bit: NaN never."""
    return (x > 0) | ((x == 0) & (sign_zero > 0))


def _unit(x):
    return np.minimum(np.maximum(x, np.float32(0)), np.float32(1))


def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.exp(-x))


_STEPS = {
    "mul": lambda x, v, _: x * v,
    "div": lambda x, v, _: x / v,
    "add": lambda x, v, _: x + v,
    "prelu": lambda x, v, _: np.where(x > 0, x, x * v),
    "max_scaled": lambda x, v, _: np.maximum(x, x * v),
    "relu": lambda x, *_: np.maximum(x, np.float32(0)),
    "clip": lambda x, _, bounds: np.minimum(np.maximum(x, bounds[0]), bounds[1]),
    "leaky": lambda x, _, slope: np.where(x > 0, x, x * slope[0]),
    "sigmoid": lambda x, *_: _sigmoid(x),
    "tanh": lambda x, *_: np.tanh(x),
    "silu": lambda x, *_: x * _sigmoid(x),
    "hardswish": lambda x, *_: x * _unit(x * np.float32(1 / 6) + np.float32(0.5)),
}


def _evaluate(expr, values):
    if isinstance(expr, relax.Var):
        return values[expr.name]
    if isinstance(expr, GenericConst):
        return expr.value.numpy()
    if isinstance(expr, relax.Tuple):
        return tuple(_evaluate(field, values) for field in expr.fields)
    if isinstance(expr, TupleGetItem):
        return _evaluate(expr.tuple_value, values)[expr.index]
    if isinstance(expr, relax.ShapeExpr):
        return tuple(int(size) for size in expr.values)
    if not isinstance(expr, Call):
        return expr.value
    args = [_evaluate(arg, values) for arg in expr.args]
    if has_workload(expr):
        return workload(workload_of(expr), args)
    result = _OPERATORS[expr.op.name.removeprefix("relax.")](expr.attrs, *args)
    if isinstance(result, np.ndarray) and result.dtype == np.float64:
        return result.astype(np.float32)
    return result


def workload(work, args):
    """One operator of ours by its workload."""
    if isinstance(work, Binarize | Conv2d | Pool2d) and work.signs:
        return with_signs(work, args)
    if isinstance(work, Binarize):
        return packed(signs(stepped(work.epilogue, args[0], args[1:]), work.sign_zero))
    if isinstance(work, Concat):
        parts, operands = args[: len(work.parts)], args[len(work.parts) :]
        if work.begins:
            taken = zip(parts, work.begins, work.parts, strict=True)
            parts = [part[..., begin : begin + count] for part, begin, count in taken]
        if work.bits:
            return packed(np.concatenate([bits_of(*part) for part in zip(parts, work.parts, strict=True)], 3) > 0)
        return stepped(work.epilogue, np.concatenate(parts, 3), operands)
    window = work.pool
    if isinstance(work, Pool2d):
        if work.bits:
            largest = pooled(bits_of(args[0], work.channels), window.kernel, window.strides, window.padding, "max")
            return packed(largest > 0) ^ (args[1] if work.invert else np.uint8(0))
        mean = pooled(args[0], window.kernel, window.strides, window.padding, window.kind, window.count_include_pad)
        y = stepped(work.epilogue, mean, args[1:])
        return packed(signs(y, work.sign_zero)) if work.out == "bits" else y
    data, weight, *operands = args
    if work.binary:
        data, weight = bits_of(data, work.channels), bits_of(weight, work.channels // work.groups)
    data = data if work.layout == "NHWC" else data.transpose(0, 2, 3, 1)
    if work.shift:
        data = data + operands.pop()
    sums = convolve(data, weight, work.strides, work.padding, work.dilation, work.groups, work.pad_value)
    if work.threshold:
        several = operands[-1].reshape(work.thresholds, -1, *sums.shape[1 + 2 * (work.threshold == "channel") :])
        reached = sum((sums >= one.reshape(one.shape[1:])).astype(int) for one in several)
        return packed(reached % 2 == 1)
    y = stepped(work.epilogue, sums.astype(np.float32), operands)
    if window:
        y = pooled(y, window.kernel, window.strides, window.padding, window.kind, window.count_include_pad)
    return packed(signs(y, work.sign_zero)) if work.out == "bits" else y


def with_signs(work, args):
    """A workload's result and the bits beside it, which are of its floats; those of a ``Binarize`` are what it reads."""
    counts = [len([step for step in each.epilogue if step.operand]) for each in work.signs]
    last = len(args) - getattr(work, "shift", False)
    first = last - sum(counts)
    floats = workload(replace(work, signs=()), [*args[:first], *args[last:]])
    results = [floats]
    floats = args[0] if isinstance(work, Binarize) else floats
    for each, count in zip(work.signs, counts, strict=True):
        results.append(packed(signs(stepped(each.epilogue, floats, args[first : first + count]), each.sign_zero)))
        first += count
    return tuple(results)


def _moved(x, source, target):
    return x.transpose([source.index(letter) for letter in target])


def _conv2d(attrs, x, weight):
    layout = str(attrs.data_layout)
    y = convolve(
        _moved(x, layout, "NHWC"),
        _moved(weight, str(attrs.kernel_layout), "OHWI"),
        *[[int(v) for v in attrs[key]] for key in ("strides", "padding", "dilation")],
        int(attrs.groups),
    )
    return _moved(y, "NHWC", str(attrs.out_layout) or layout)


def _pool2d(kind):
    def pool(attrs, x):
        layout = str(attrs.layout)
        kernel, strides, padding = ([int(v) for v in attrs[key]] for key in ("pool_size", "strides", "padding"))
        y = pooled(_moved(x, layout, "NHWC"), kernel, strides, padding, kind, bool(attrs.count_include_pad))
        return _moved(y, "NHWC", layout)

    return pool


def _batch_norm(attrs, x, gamma, beta, mean, variance):
    """Centre, scale, shift; the scale gamma / sqrt(variance + epsilon) is rounded once."""
    shape = [-1 if axis == int(attrs.axis) % x.ndim else 1 for axis in range(x.ndim)]
    scale = 1 / np.sqrt(variance.astype(np.float64) + float(attrs.epsilon))
    scale = (scale * gamma if attrs.scale else scale).astype(np.float32)
    y = (x - mean.reshape(shape)) * scale.reshape(shape)
    return (y + beta.reshape(shape) if attrs.center else y), mean, variance


def _along(function):
    def reduce(attrs, x):
        axes = tuple(int(axis) for axis in attrs.axis)
        return function(x.astype(np.float64), axis=axes, keepdims=bool(attrs.keepdims))

    return reduce


def _prelu(attrs, x, slope):
    shape = [-1 if axis == int(attrs.axis) % x.ndim else 1 for axis in range(x.ndim)]
    return np.where(x > 0, x, x * slope.reshape(shape))


def _split(attrs, x):
    where = attrs.indices_or_sections
    sections = int(where) if not hasattr(where, "__len__") else [int(index) for index in where]
    return tuple(np.split(x, sections, int(attrs.axis)))


def _plain(function):
    return lambda _attrs, *args: np.asarray(function(*args))


_OPERATORS = {
    **{
        name: _plain(getattr(np, name))
        for name in [
            "add",
            "subtract",
            "multiply",
            "divide",
            "maximum",
            "minimum",
            "less",
            "less_equal",
            "greater",
            "greater_equal",
            "equal",
            "not_equal",
            "logical_and",
            "logical_or",
            "logical_not",
            "negative",
            "sign",
            "tanh",
            "floor",
            "ceil",
            "sqrt",
            "square",
            "isnan",
        ]
    },
    "abs": _plain(np.abs),
    "exp": _plain(np.exp),
    "sigmoid": _plain(_sigmoid),
    "clip": _plain(lambda x, low, high: np.minimum(np.maximum(x, np.float32(low)), np.float32(high))),
    "where": _plain(np.where),
    "astype": lambda attrs, x: x.astype(str(attrs.dtype)),
    "reshape": _plain(np.reshape),
    "broadcast_to": _plain(np.broadcast_to),
    "permute_dims": lambda attrs, x: x.transpose([int(axis) for axis in attrs.axes] if attrs.axes else None),
    "expand_dims": lambda attrs, x: np.expand_dims(x, tuple(int(axis) for axis in attrs.axis)),
    "squeeze": lambda attrs, x: np.squeeze(x, tuple(int(axis) for axis in attrs.axis) if attrs.axis else None),
    "flatten": lambda _, x: x.reshape(-1),
    "concat": lambda attrs, parts: np.concatenate(parts, int(attrs.axis)),
    "split": _split,
    "matmul": _plain(lambda x, y: np.matmul(x.astype(np.float64), y.astype(np.float64))),
    "mean": _along(np.mean),
    "sum": _along(np.sum),
    "max": _along(np.max),
    "min": _along(np.min),
    "nn.relu": _plain(lambda x: np.maximum(x, np.float32(0))),
    "nn.relu6": _plain(lambda x: np.minimum(np.maximum(x, np.float32(0)), np.float32(6))),
    "nn.silu": _plain(lambda x: x * _sigmoid(x)),
    "nn.leakyrelu": lambda attrs, x: np.where(x > 0, x, x * np.float32(attrs.alpha)),
    "nn.prelu": _prelu,
    "bitkiln.prelu": _plain(lambda x, slope: np.where(x > 0, x, x * slope)),
    "bitkiln.hardswish": _plain(lambda x: _STEPS["hardswish"](x, None, [])),
    "nn.conv2d": _conv2d,
    "nn.max_pool2d": _pool2d("max"),
    "nn.avg_pool2d": _pool2d("avg"),
    "nn.batch_norm": _batch_norm,
    "nn.batch_flatten": lambda _, x: x.reshape(len(x), -1),
    "nn.pad": lambda attrs, x: np.pad(
        x, np.reshape([int(v) for v in attrs.pad_width], (-1, 2)), constant_values=float(attrs.pad_value)
    ),
    "nn.adaptive_avg_pool2d": lambda attrs, x: x.astype(np.float64).mean(
        axis=(str(attrs.layout).index("H"), str(attrs.layout).index("W")), keepdims=True
    ),
}


def reach_of(work) -> int:
    """The greatest magnitude a sum of a binary convolution can have."""
    return math.prod(work.kernel) * work.channels // work.groups
