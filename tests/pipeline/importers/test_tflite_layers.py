"""Each float operator of TensorFlow Lite against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tflite_file import TfliteFile
from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.reference import convolve

RNG = np.random.default_rng(29)

SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
ACTIVATIONS = {
    NONE: lambda x: x,
    RELU: lambda x: np.maximum(x, 0),
    RELU_N1_TO_1: lambda x: np.clip(x, -1, 1),
    RELU6: lambda x: np.clip(x, 0, 6),
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int32)


def run(tmp_path, file, source, result, x, **options):
    """The outputs of the network in ``file`` for ``x``."""
    path = tmp_path / "network.tflite"
    path.write_bytes(file.write(source, result))
    model = load_model(path, **options)
    return reference.run(model.module, {model.module["main"].params[0].name: x})


def check(tmp_path, x, draw, expected, tolerance=1e-5):
    """``draw(file, source)`` adds operators; the network gives ``expected`` for ``x``."""
    file = TfliteFile()
    source = file.tensor(x.shape)
    result = draw(file, source)
    results = [result] if isinstance(result, int) else result
    expected = [expected] if isinstance(result, int) else expected
    for got, want in zip(run(tmp_path, file, source, results, x), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(np.abs(want).max(), 1))


def same_pads(size, reach, strides):
    """TensorFlow's rule: top, left, bottom, right."""
    totals = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(size, reach, strides, strict=True)]
    return [totals[0] // 2, totals[1] // 2, -(-totals[0] // 2), -(-totals[1] // 2)]


CONVOLUTIONS = [
    # size, channels, filters, kernel, strides, dilation, groups, padding, activation
    ((8, 9), 3, 5, (3, 3), (1, 1), (1, 1), 1, SAME, NONE),
    ((8, 9), 3, 5, (3, 2), (2, 2), (1, 1), 1, SAME, RELU),
    ((9, 7), 4, 6, (3, 3), (2, 1), (1, 1), 2, VALID, RELU6),
    ((11, 10), 4, 4, (3, 3), (1, 1), (2, 3), 1, SAME, RELU_N1_TO_1),
    ((6, 6), 8, 1, (1, 1), (2, 2), (1, 1), 1, SAME, NONE),
    ((7, 7), 3, 4, (7, 7), (1, 1), (1, 1), 1, VALID, NONE),
]


@pytest.mark.parametrize(
    ("size", "channels", "filters", "kernel", "strides", "dilation", "groups", "padding", "activation"), CONVOLUTIONS
)
def test_convolutions(tmp_path, size, channels, filters, kernel, strides, dilation, groups, padding, activation):
    x, weight, bias = normal(1, *size, channels), normal(filters, *kernel, channels // groups), normal(filters)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = same_pads(size, reach, strides) if padding == SAME else [0] * 4
    sums = convolve(x, weight, strides, pads, dilation, groups) + bias

    def draw(file, source):
        return file.operator(
            "CONV_2D",
            [source, file.constant(weight), file.constant(bias)],
            sums.shape,
            "Conv2DOptions",
            Padding=padding,
            StrideH=strides[0],
            StrideW=strides[1],
            DilationHFactor=dilation[0],
            DilationWFactor=dilation[1],
            FusedActivationFunction=activation,
        )

    check(tmp_path, x, draw, ACTIVATIONS[activation](sums))


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions(tmp_path, multiplier, padding, stride):
    """Output channel c*multiplier + m is input channel c through its m-th filter."""
    x, weight = normal(1, 7, 8, 4), normal(1, 3, 3, 4 * multiplier)
    pads = same_pads((7, 8), (3, 3), (stride, stride)) if padding == SAME else [0] * 4
    parts = [
        convolve(x[..., c : c + 1], weight[0, :, :, o][None, :, :, None], (stride, stride), pads, (1, 1), 1)
        for o in range(4 * multiplier)
        for c in [o // multiplier]
    ]
    sums = np.concatenate(parts, axis=3)

    def draw(file, source):
        return file.operator(
            "DEPTHWISE_CONV_2D",
            [source, file.constant(weight), file.constant(np.zeros(4 * multiplier, np.float32))],
            sums.shape,
            "DepthwiseConv2DOptions",
            Padding=padding,
            StrideH=stride,
            StrideW=stride,
            DilationHFactor=1,
            DilationWFactor=1,
            DepthMultiplier=multiplier,
            FusedActivationFunction=RELU,
        )

    check(tmp_path, x, draw, np.maximum(sums, 0))


@pytest.mark.parametrize(("size", "padding", "kernel"), [((8, 10), SAME, 3), ((9, 11), VALID, 3), ((7, 9), SAME, 2)])
def test_transposed_convolutions(tmp_path, size, padding, kernel):
    """The transpose of the convolution that makes x of an image of ``size``."""
    x, weight = normal(1, 4, 5, 3), normal(2, kernel, kernel, 3)
    pads = same_pads(size, (kernel, kernel), (2, 2)) if padding == SAME else [0] * 4
    expected = np.zeros((size[0] + pads[0] + pads[2] + 2, size[1] + pads[1] + pads[3] + 2, 2), np.float32)
    for row in range(4):
        for column in range(5):
            window = expected[2 * row : 2 * row + kernel, 2 * column : 2 * column + kernel]
            window += np.einsum("i,oyxi->yxo", x[0, row, column], weight)
    expected = expected[None, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]

    def draw(file, source):
        return file.operator(
            "TRANSPOSE_CONV",
            [file.constant(ints(1, *size, 2)), file.constant(weight), source],
            expected.shape,
            "TransposeConvOptions",
            Padding=padding,
            StrideH=2,
            StrideW=2,
        )

    check(tmp_path, x, draw, expected)


def pooled(x, kernel, strides, padding, function):
    """Windows of the image alone: what lies outside is in none."""
    pads = same_pads(x.shape[1:3], kernel, strides) if padding == SAME else [0] * 4
    size = [
        -(-n // s) if padding == SAME else (n - k) // s + 1
        for n, k, s in zip(x.shape[1:3], kernel, strides, strict=True)
    ]
    y = np.empty((1, *size, x.shape[3]), np.float32)
    for row in range(size[0]):
        for column in range(size[1]):
            top, left = row * strides[0] - pads[0], column * strides[1] - pads[1]
            window = x[0, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]]
            y[0, row, column] = function(window, axis=(0, 1))
    return y


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        ("MAX_POOL_2D", np.max),
        ("AVERAGE_POOL_2D", np.mean),
        ("L2_POOL_2D", lambda window, axis: np.sqrt((window**2).mean(axis=axis))),
    ],
)
@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(("kernel", "strides"), [((2, 2), (2, 2)), ((3, 2), (2, 1)), ((3, 3), (1, 3))])
def test_poolings(tmp_path, operator, function, padding, kernel, strides):
    x = normal(1, 7, 8, 3)
    expected = pooled(x, kernel, strides, padding, function)

    def draw(file, source):
        return file.operator(
            operator,
            [source],
            expected.shape,
            "Pool2DOptions",
            Padding=padding,
            StrideH=strides[0],
            StrideW=strides[1],
            FilterHeight=kernel[0],
            FilterWidth=kernel[1],
            FusedActivationFunction=RELU6,
        )

    check(tmp_path, x, draw, np.clip(expected, 0, 6))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("shape", [(1, 12), (1, 2, 3, 4), (1, 3, 12)])
def test_dense_layers(tmp_path, keep, shape):
    x, weight, bias = normal(*shape), normal(5, 12), normal(5)
    rows = x.reshape(-1, 12) @ weight.T + bias
    kept = keep and shape[-1] == 12
    expected = np.maximum(rows.reshape(*shape[:-1], 5) if kept else rows, 0)

    def draw(file, source):
        inputs = [source, file.constant(weight), file.constant(bias)]
        options = {"KeepNumDims": keep, "FusedActivationFunction": RELU}
        return file.operator("FULLY_CONNECTED", inputs, expected.shape, "FullyConnectedOptions", **options)

    check(tmp_path, x, draw, expected)


@pytest.mark.parametrize(("left", "right"), [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_matrices(tmp_path, left, right):
    x, other = normal(1, 4, 4), normal(1, 4, 4)
    turned = [value.swapaxes(1, 2) if turn else value for value, turn in ((x, left), (other, right))]

    def draw(file, source):
        inputs = [source, file.constant(other)]
        return file.operator("BATCH_MATMUL", inputs, (1, 4, 4), "BatchMatMulOptions", AdjX=left, AdjY=right)

    check(tmp_path, x, draw, turned[0] @ turned[1])


@pytest.mark.parametrize(
    ("operator", "table", "function"),
    [
        ("ADD", "AddOptions", np.add),
        ("SUB", "SubOptions", np.subtract),
        ("MUL", "MulOptions", np.multiply),
        ("DIV", "DivOptions", np.divide),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (), (5, 6), (1, 4, 5, 6), (1, 1, 1, 6)])
@pytest.mark.parametrize("turned", [False, True])
def test_arithmetic_broadcasts(tmp_path, operator, table, function, shape, turned):
    x, other = np.abs(normal(1, 4, 5, 6)) + 0.5, np.abs(normal(*shape)).astype(np.float32) + np.float32(0.5)
    pair = (other, x) if turned else (x, other)

    def draw(file, source):
        inputs = [source, file.constant(np.asarray(other))]
        inputs = inputs[::-1] if turned else inputs
        return file.operator(operator, inputs, x.shape, table, FusedActivationFunction=RELU_N1_TO_1)

    check(tmp_path, x, draw, np.clip(function(*pair), -1, 1))


def erf(x):
    from math import erf

    return np.vectorize(erf)(x)


UNARY = {
    "ABS": np.abs,
    "CEIL": np.ceil,
    "COS": np.cos,
    "ELU": lambda x: np.where(x > 0, x, np.expm1(x)),
    "EXP": np.exp,
    "FLOOR": np.floor,
    "GELU": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "HARD_SWISH": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "LOGISTIC": lambda x: 1 / (1 + np.exp(-x)),
    "NEG": np.negative,
    "RELU": ACTIVATIONS[RELU],
    "RELU6": ACTIVATIONS[RELU6],
    "RELU_N1_TO_1": ACTIVATIONS[RELU_N1_TO_1],
    "RELU_0_TO_1": lambda x: np.clip(x, 0, 1),
    "ROUND": np.round,
    "SIGN": np.sign,
    "SIN": np.sin,
    "SQUARE": np.square,
    "TANH": np.tanh,
}


@pytest.mark.parametrize("operator", UNARY)
def test_elementwise(tmp_path, operator):
    x = (3 * normal(1, 3, 4, 5)).astype(np.float32)
    x[0, 0, 0, :4] = 0.0, -0.0, 0.5, -2.5
    table = "GeluOptions" if operator == "GELU" else ""
    check(tmp_path, x, lambda file, source: file.operator(operator, [source], x.shape, table), UNARY[operator](x))


@pytest.mark.parametrize(("operator", "function"), [("SQRT", np.sqrt), ("RSQRT", lambda x: x**-0.5), ("LOG", np.log)])
def test_elementwise_of_positive_numbers(tmp_path, operator, function):
    x = np.abs(normal(1, 3, 4, 5)) + np.float32(0.1)
    check(tmp_path, x, lambda file, source: file.operator(operator, [source], x.shape), function(x))


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        ("MAXIMUM", np.maximum),
        ("MINIMUM", np.minimum),
        ("POW", lambda x, y: np.abs(x) ** y),
        ("SQUARED_DIFFERENCE", lambda x, y: (x - y) ** 2),
    ],
)
@pytest.mark.parametrize("shape", [(), (5,), (1, 3, 4, 5)])
def test_of_two_tensors(tmp_path, operator, function, shape):
    x, other = normal(1, 3, 4, 5), np.asarray(normal(*shape), np.float32)
    x = np.abs(x) if operator == "POW" else x
    check(
        tmp_path,
        x,
        lambda file, source: file.operator(operator, [source, file.constant(other)], x.shape),
        function(x, other),
    )


def test_sums_of_many(tmp_path):
    x, others = normal(1, 3, 4, 5), [normal(1, 3, 4, 5) for _ in range(3)]

    def draw(file, source):
        return file.operator("ADD_N", [source, *map(file.constant, others)], x.shape, "AddNOptions")

    check(tmp_path, x, draw, x + sum(others))


@pytest.mark.parametrize("operator", ["MAXIMUM", "ADD"])
def test_infinity_is_a_bound_and_no_weight(tmp_path, operator):
    x, level = normal(1, 3), np.float32([-np.inf, 0, -np.inf])

    def draw(file, source):
        return file.operator(operator, [source, file.constant(level)], x.shape)

    if operator == "MAXIMUM":
        check(tmp_path, x, draw, np.maximum(x, level))
        return
    with pytest.raises(ModelError, match="non-finite weight in tensor 1"):
        check(tmp_path, x, draw, x)


def test_slopes(tmp_path):
    x, channel, element = normal(1, 3, 4, 5), normal(1, 1, 5), normal(3, 4, 5)

    def draw(file, source):
        first = file.operator("PRELU", [source, file.constant(channel)], x.shape)
        second = file.operator("LEAKY_RELU", [first], x.shape, "LeakyReluOptions", Alpha=0.3)
        return file.operator("PRELU", [second, file.constant(element)], x.shape)

    y = np.where(x > 0, x, x * channel)
    y = np.where(y > 0, y, y * np.float32(0.3))
    check(tmp_path, x, draw, np.where(y > 0, y, y * element))


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_softmax(tmp_path, beta):
    x = normal(1, 3, 7)
    powers = np.exp(beta * x)

    def draw(file, source):
        return file.operator("SOFTMAX", [source], x.shape, "SoftmaxOptions", Beta=beta)

    check(tmp_path, x, draw, powers / powers.sum(axis=-1, keepdims=True))


def test_logarithm_of_softmax(tmp_path):
    x = normal(1, 9)
    check(
        tmp_path,
        x,
        lambda file, source: file.operator("LOG_SOFTMAX", [source], x.shape, "LogSoftmaxOptions"),
        x - np.log(np.exp(x).sum()),
    )


@pytest.mark.parametrize(
    ("operator", "function"),
    [
        ("MEAN", np.mean),
        ("SUM", np.sum),
        ("REDUCE_MAX", np.max),
        ("REDUCE_MIN", np.min),
        ("REDUCE_PROD", np.prod),
    ],
)
@pytest.mark.parametrize(("axes", "keep"), [((1, 2), False), ((1, 2), True), ((-1,), False), ((3, 1, -3), True)])
def test_reductions(tmp_path, operator, function, axes, keep):
    x = normal(1, 3, 4, 5)
    expected = function(x, axis=tuple({axis % 4 for axis in axes}), keepdims=keep)

    def draw(file, source):
        inputs = [source, file.constant(ints(*axes))]
        return file.operator(operator, inputs, expected.shape, "ReducerOptions", KeepDims=keep)

    check(tmp_path, x, draw, expected)


def test_where_the_greatest_is(tmp_path):
    x = normal(1, 3, 4, 5)

    def draw(file, source):
        options = {"dtype": "int32", "OutputType": 2}
        inputs = [source, file.constant(ints(-1))]
        high = file.operator("ARG_MAX", inputs, (1, 3, 4), "ArgMaxOptions", **options)
        return [high, file.operator("ARG_MIN", inputs, (1, 3, 4), "ArgMinOptions", **options)]

    check(tmp_path, x, draw, [x.argmax(axis=3), x.argmin(axis=3)])


def test_normalisations(tmp_path):
    x = normal(1, 3, 4, 9)
    x[0, 0] *= np.float32(1e-4)  # Shorter than what a length counts as at least.
    squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    near = sum(squares[..., at : at + 9] for at in range(5))

    def draw(file, source):
        length = file.operator("L2_NORMALIZATION", [source], x.shape, "L2NormOptions")
        options = {"Radius": 2, "Bias": 1.5, "Alpha": 0.3, "Beta": 0.6}
        table = "LocalResponseNormalizationOptions"
        return [length, file.operator("LOCAL_RESPONSE_NORMALIZATION", [source], x.shape, table, **options)]

    length = x / np.sqrt(np.maximum((x**2).sum(axis=-1, keepdims=True), 1e-6))
    check(tmp_path, x, draw, [length, x / (1.5 + 0.3 * near) ** 0.6])


def test_comparisons_and_choices(tmp_path):
    x = normal(1, 3, 4, 5)
    x[0, 0, 0, 0] = 0

    def draw(file, source):
        zero, one, minus = (file.constant(np.float32(value)) for value in (0, 1, -1))
        level = file.constant(np.full(x.shape, 0.25, np.float32))
        at_least = file.operator("GREATER_EQUAL", [source, zero], x.shape, dtype="bool")
        below = file.operator("LESS", [source, level], x.shape, dtype="bool")
        both = file.operator("LOGICAL_AND", [at_least, below], x.shape, dtype="bool")
        neither = file.operator("LOGICAL_NOT", [both], x.shape, dtype="bool")
        chosen = file.operator("SELECT_V2", [neither, one, minus], x.shape)
        number = file.operator("CAST", [both], x.shape, "CastOptions")
        return [file.operator("SELECT", [at_least, source, level], x.shape), chosen, number]

    both = (x >= 0) & (x < 0.25)
    expected = [np.where(x >= 0, x, np.float32(0.25)), np.where(both, -1.0, 1.0), both.astype(np.float32)]
    check(tmp_path, x, draw, expected)


RESIZES = [((6, 8), "half"), ((7, 5), "half"), ((6, 8), "corners"), ((7, 9), "corners"), ((6, 8), ""), ((5, 3), "")]


@pytest.mark.parametrize(("size", "rule"), RESIZES)
def test_linear_resizing(tmp_path, size, rule):
    """Each axis is interpolated between the two rows that the rule puts a new row between."""
    x = expected = normal(1, 3, 4, 2)
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        i = np.arange(new)
        at = {"half": (i + 0.5) * old / new - 0.5, "corners": i * (old - 1) / (new - 1), "": i * old / new}[rule]
        low, high = (np.clip(f(at), 0, old - 1).astype(int) for f in (np.floor, np.ceil))
        share = np.expand_dims((at - np.floor(at)), tuple(k for k in range(4) if k != axis))
        expected = expected.take(low, axis=axis) * (1 - share) + expected.take(high, axis=axis) * share
    options = {"AlignCorners": rule == "corners", "HalfPixelCenters": rule == "half"}

    def draw(file, source):
        inputs = [source, file.constant(ints(*size))]
        return file.operator("RESIZE_BILINEAR", inputs, expected.shape, "ResizeBilinearOptions", **options)

    check(tmp_path, x, draw, expected)


@pytest.mark.parametrize(("size", "rule"), RESIZES)
def test_resizing_to_the_nearest(tmp_path, size, rule):
    x = expected = normal(1, 3, 4, 2)
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        i = np.arange(new)
        at = {"half": (i + 0.5) * old / new, "corners": i * (old - 1) / (new - 1) + 0.5, "": i * old / new}[rule]
        expected = expected.take(np.clip(np.floor(at + 1e-9), 0, old - 1).astype(int), axis=axis)
    options = {"AlignCorners": rule == "corners", "HalfPixelCenters": rule == "half"}

    def draw(file, source):
        inputs = [source, file.constant(ints(*size))]
        table = "ResizeNearestNeighborOptions"
        return file.operator("RESIZE_NEAREST_NEIGHBOR", inputs, expected.shape, table, **options)

    check(tmp_path, x, draw, expected)


def test_weights_in_fewer_bits(tmp_path):
    """Float16 weights, and integers with a scale, through DEQUANTIZE."""
    x, weight = normal(1, 2, 2, 3), normal(4, 1, 1, 3).astype(np.float16)
    whole = RNG.integers(-100, 100, 4).astype(np.int8)
    expected = x @ weight.astype(np.float32).reshape(4, 3).T + whole * np.float32(0.125)

    def draw(file, source):
        half = file.operator("DEQUANTIZE", [file.constant(weight)], weight.shape)
        bias = file.operator("DEQUANTIZE", [file.constant(whole, scale=0.125)], (4,))
        options = {"Padding": VALID, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
        return file.operator("CONV_2D", [source, half, bias], expected.shape, "Conv2DOptions", **options)

    check(tmp_path, x, draw, expected)
