"""The operators of Larq Compute Engine against their definition in numpy, and files made by its own converter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flatbuffers import flexbuffers

from benchmarks.tflite_file import TfliteFile
from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import WORKLOAD_ATTR, workload_of
from bitkiln.pipeline.passes.pipeline import lower
from tests.pipeline.importers.test_tflite_layers import (
    ACTIVATIONS,
    NONE,
    RELU,
    RELU6,
    RELU_N1_TO_1,
    SAME,
    VALID,
    normal,
    run,
    same_pads,
)

RNG = np.random.default_rng(16)
FLOATS = ["bconv_maxpool_bn_bconv", "bconv_relu_bn_res", "bconv_same_one_bn", "bconv_same_zero_bn", "bconv_valid_s2"]
BITS = ["bconv_chain_bitpacked", "bconv_sign_after_pool"]
NETWORKS = ["cifar10_resnet18_w1a1", "small_net", "imagenet_resnet18_w1a1"]


def words(signs):
    """Signs [..., C] as int32 words: a set bit is -1, least significant first, tail bits clear."""
    bits = np.packbits(signs < 0, axis=-1, bitorder="little")
    whole = np.zeros((*bits.shape[:-1], -(-signs.shape[-1] // 32) * 4), np.uint8)
    whole[..., : bits.shape[-1]] = bits
    return whole.view(np.int32)


def signs(*shape):
    return RNG.choice(np.float32([-1, 1]), shape)


def options(**fields):
    """A map of a flexbuffer: numbers, texts, or lists of numbers."""
    build = flexbuffers.Builder()
    with build.Map():
        for name, value in fields.items():
            if isinstance(value, str):
                build.String(name, value)
            elif isinstance(value, list):
                build.TypedVectorFromElements(name, value)
            else:
                build.Int(name, value)
    return bytes(build.Finish())


def geometry(channels, strides=(1, 1), dilation=(1, 1), padding=VALID, pad=0, activation=NONE):
    return {
        "channels_in": channels,
        "dilation_height_factor": dilation[0],
        "dilation_width_factor": dilation[1],
        "fused_activation_function": activation,
        "pad_values": pad,
        "padding": padding,
        "stride_height": strides[0],
        "stride_width": strides[1],
    }


def bconv(file, source, weight, shape, *, multiplier=None, bias=None, threshold=None, options_=None, **fields):
    """Add an LceBconv2d of +-1 weights OHWI."""
    operands = [-1 if array is None else file.constant(array) for array in (multiplier, bias, threshold)]
    dtype = "int32" if threshold is not None else "float32"
    shape = (*shape[:3], -(-shape[3] // 32)) if threshold is not None else shape
    inputs = [source, file.constant(words(weight)), *operands]
    return file.custom("LceBconv2d", inputs, shape, dtype, options(**(options_ or geometry(**fields))))


def convolved(x, weight, strides, dilation, padding, pad, groups=1):
    """The dot products of the +-1 of x, padded with +1 or a true zero, and the weights."""
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[1:3], dilation, strict=True)]
    pads = same_pads(x.shape[1:3], reach, strides) if padding == SAME else [0] * 4
    values = np.where(x < 0, np.float32(-1), np.float32(1))
    return reference.convolve(values, weight, strides, pads, dilation, groups, pad)


#: rows, columns, channels, filters, kernel, strides, dilation, padding, pad
LAYERS = [
    (6, 7, 32, 8, (3, 3), (1, 1), (1, 1), SAME, 1),
    (6, 7, 32, 8, (3, 3), (1, 1), (1, 1), SAME, 0),
    (9, 8, 64, 33, (3, 3), (2, 2), (1, 1), SAME, 1),
    (9, 8, 40, 5, (3, 2), (2, 1), (1, 1), SAME, 0),
    (7, 7, 1, 4, (3, 3), (1, 1), (1, 1), VALID, 0),
    (8, 8, 130, 9, (1, 1), (2, 2), (1, 1), VALID, 1),
    (11, 10, 31, 64, (3, 3), (1, 1), (2, 3), SAME, 1),
    (11, 10, 33, 7, (2, 2), (1, 1), (3, 1), SAME, 0),
    (5, 5, 96, 130, (5, 5), (1, 1), (1, 1), VALID, 0),
]


@pytest.mark.parametrize("activation", [NONE, RELU, RELU_N1_TO_1, RELU6])
@pytest.mark.parametrize(
    ("rows", "columns", "channels", "filters", "kernel", "strides", "dilation", "padding", "pad"), LAYERS
)
def test_float_results(tmp_path, rows, columns, channels, filters, kernel, strides, dilation, padding, pad, activation):
    """The activation works on the dot product; multiplier and bias follow."""
    x, weight = normal(1, rows, columns, channels), signs(filters, *kernel, channels)
    x[0, 0, 0, 0] = 0.0
    x[0, 1, 1, 0] = -0.0
    multiplier, bias = normal(filters), normal(filters)
    sums = convolved(x, weight, strides, dilation, padding, pad)
    file = TfliteFile()
    source = file.tensor(x.shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    result = bconv(
        file,
        bits,
        weight,
        sums.shape,
        multiplier=multiplier,
        bias=bias,
        channels=channels,
        strides=strides,
        dilation=dilation,
        padding=padding,
        pad=pad,
        activation=activation,
    )
    (got,) = run(tmp_path, file, source, result, x)
    np.testing.assert_allclose(got, ACTIVATIONS[activation](sums) * multiplier + bias, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "channels", "filters", "kernel", "strides", "dilation", "padding", "pad"), LAYERS
)
def test_bit_packed_results(tmp_path, rows, columns, channels, filters, kernel, strides, dilation, padding, pad):
    """A bit is set where more bits differ than the threshold says; thresholds reach from never to always."""
    x, weight = normal(1, rows, columns, channels), signs(filters, *kernel, channels)
    reach = int(np.prod(weight.shape[1:]))
    threshold = RNG.integers(-1, reach + 2, filters).astype(np.int32)
    threshold[:4] = np.int32([-(2**31), 2**31 - 1, reach // 2, -1])
    different = (reach - convolved(x, weight, strides, dilation, padding, pad)) / 2
    expected = np.where(different > threshold, np.float32(-1), np.float32(1))
    file = TfliteFile()
    source = file.tensor(x.shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    fields = {"channels": channels, "strides": strides, "dilation": dilation, "padding": padding, "pad": pad}
    made = bconv(file, bits, weight, expected.shape, threshold=threshold, **fields)
    floats = file.custom("LceDequantize", [made], expected.shape)
    packed, unpacked = run(tmp_path, file, source, [made, floats], x)
    assert packed.dtype == np.int32
    np.testing.assert_array_equal(packed, words(expected))
    np.testing.assert_array_equal(unpacked, expected)


@pytest.mark.parametrize(("channels", "groups", "filters"), [(64, 2, 6), (128, 2, 4), (96, 3, 9)])
@pytest.mark.parametrize("packed", [False, True])
def test_groups(tmp_path, channels, groups, filters, packed):
    x, weight = normal(1, 6, 6, channels), signs(filters, 3, 3, channels // groups)
    sums = convolved(x, weight, (1, 1), (1, 1), SAME, 1, groups)
    reach = 9 * channels // groups
    threshold = np.full(filters, reach // 2, np.int32)
    file = TfliteFile()
    source = file.tensor(x.shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    operands = {"threshold": threshold} if packed else {"multiplier": normal(filters), "bias": normal(filters)}
    result = bconv(file, bits, weight, sums.shape, **operands, channels=channels, padding=SAME, pad=1)
    (got,) = run(tmp_path, file, source, result, x)
    if packed:
        np.testing.assert_array_equal(got, words(np.where((reach - sums) / 2 > threshold, -1, 1)))
    else:
        np.testing.assert_allclose(got, sums * operands["multiplier"] + operands["bias"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 7, 31, 32, 33, 64, 130])
def test_bits_go_in_and_out(tmp_path, channels):
    """Words enter and leave a network as they are, whatever the bits behind the last channel were."""
    values = signs(1, 6, 5, channels)
    x = words(values)
    dirty = x.copy()
    if channels % 32:
        dirty[..., -1] |= np.int32(-1 << channels % 32)
    pooled = values.reshape(1, 3, 2, 5, channels).max(axis=2)
    file = TfliteFile()
    source = file.tensor(x.shape, "int32")
    fields = {"filter_height": 2, "filter_width": 1, "padding": VALID, "stride_height": 2, "stride_width": 1}
    pool = file.custom("LceBMaxPool2d", [source], words(pooled).shape, "int32", options(**fields))
    floats = file.custom("LceDequantize", [pool], pooled.shape)
    again = file.custom("LceQuantize", [floats], words(pooled).shape, "int32")
    packed, unpacked, repacked = run(tmp_path, file, source, [pool, floats, again], dirty)
    np.testing.assert_array_equal(packed, words(pooled))
    np.testing.assert_array_equal(unpacked, pooled)
    np.testing.assert_array_equal(repacked, words(pooled))


@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize(("kernel", "strides"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (1, 2))])
def test_pooling_of_bits(tmp_path, padding, kernel, strides):
    x = normal(1, 7, 9, 40)
    pads = same_pads((7, 9), kernel, strides) if padding == SAME else [0] * 4
    around = np.pad(x, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, kernel, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    expected = words(windows.max(axis=(4, 5)))
    file = TfliteFile()
    source = file.tensor(x.shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    fields = {"filter_height": kernel[0], "filter_width": kernel[1], "padding": padding}
    fields |= {"stride_height": strides[0], "stride_width": strides[1]}
    result = file.custom("LceBMaxPool2d", [bits], expected.shape, "int32", options(**fields))
    np.testing.assert_array_equal(run(tmp_path, file, source, result, x)[0], expected)


@pytest.mark.parametrize("shape", [(1, 40), (1, 5, 33), (1, 3, 4, 64)])
def test_signs_of_any_rank(tmp_path, shape):
    """Also those of a comparison, and words that operators of float networks move."""
    x = normal(*shape)
    x.flat[0] = 0.0
    file = TfliteFile()
    source = file.tensor(shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    floats = file.custom("LceDequantize", [bits], shape)
    compared = file.operator("GREATER", [source, file.constant(np.float32(0.5))], shape, dtype="bool")
    above = file.custom("LceQuantize", [compared], words(x).shape, "int32")
    joined = file.operator("CONCATENATION", [bits, above], (2, *words(x).shape[1:]), "ConcatenationOptions", "int32")
    results = run(tmp_path, file, source, [bits, floats, joined], x)
    np.testing.assert_array_equal(results[0], words(x))
    np.testing.assert_array_equal(results[1], np.where(x < 0, -1, 1))
    np.testing.assert_array_equal(results[2], np.concatenate([words(x), words(np.where(x > 0.5, 1, -1))]))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("packed_filter", [False, True])
def test_files_of_the_first_releases(tmp_path, text, packed_filter):
    """The operator makes bits of float inputs and filters itself; options are texts and lists, bits signs of floats."""
    x, weight, multiplier, bias = normal(1, 6, 7, 20), normal(5, 3, 3, 20), normal(5), normal(5)
    sums = convolved(x, np.where(weight < 0, np.float32(-1), np.float32(1)), (2, 1), (1, 1), SAME, 1)
    expected = np.maximum(sums, 0) * multiplier + bias
    texts = {
        "activation": "RELU",
        "channels_in": 20,
        "dilations": [1, 1, 1, 1],
        "filter_format": "OHWI",
        "pad_values": 1,
        "padding": "SAME",
        "strides": [1, 2, 1, 1],
    }
    numbers = geometry(20, (2, 1), (1, 1), SAME, 1, RELU)
    fields = options(**(texts if text else numbers))
    file = TfliteFile()
    source = file.tensor(x.shape)
    filters = file.constant(words(weight) if packed_filter else weight)
    inputs = [source, filters, file.constant(multiplier), file.constant(bias)]
    floats = file.custom("LceBconv2d", inputs, expected.shape, "float32", fields)
    bits = file.custom("LceBconv2d", inputs, words(expected).shape, "int32", fields)
    sign = file.custom("LceBsign", [source], x.shape)
    results = run(tmp_path, file, source, [floats, bits, sign], x)
    np.testing.assert_allclose(results[0], expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(results[1], words(results[0]))
    np.testing.assert_array_equal(results[2], np.where(x < 0, -1, 1))


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_paddings_of_early_releases(tmp_path, padding):
    """They numbered SAME 1 and VALID 2."""
    x, weight = normal(1, 7, 7, 32), signs(4, 3, 3, 32)
    sums = convolved(x, weight, (2, 2), (1, 1), padding, 1)
    fields = {"filter_height": 2, "filter_width": 2, "padding": padding + 1, "stride_height": 2, "stride_width": 2}
    values = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf) if padding == SAME else x[:, :6, :6]
    pooled = words(values.reshape(1, len(values[0]) // 2, 2, -1, 2, 32).max(axis=(2, 4)))
    file = TfliteFile()
    source = file.tensor(x.shape)
    bits = file.custom("LceQuantize", [source], words(x).shape, "int32")
    conv = bconv(
        file,
        bits,
        weight,
        sums.shape,
        multiplier=np.ones(4, np.float32),
        bias=np.zeros(4, np.float32),
        channels=32,
        strides=(2, 2),
        padding=padding + 1,
        pad=1,
    )
    pool = file.custom("LceBMaxPool2d", [bits], pooled.shape, "int32", options(**fields))
    results = run(tmp_path, file, source, [conv, pool], x)
    np.testing.assert_array_equal(results[0], sums)
    np.testing.assert_array_equal(results[1], pooled)


def small(file, **changed):
    """A binary convolution of 32 channels with float result, some of it changed."""
    source = file.tensor((1, 6, 6, 32))
    bits = file.custom("LceQuantize", [source], (1, 6, 6, 1), "int32")
    arguments = {"weight": signs(4, 3, 3, 32), "shape": (1, 4, 4, 4), "multiplier": normal(4), "bias": normal(4)}
    options_ = geometry(32) | changed.pop("fields", {})
    return source, bconv(file, bits, options_=options_, **(arguments | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fields": {"channels_in": 40}}, "reads 40 channels of a tensor of 32"),
        ({"fields": {"stride_width": 0}}, "its option stride_width is 0"),
        ({"fields": {"padding": 3}}, "its option padding is 3"),
        ({"fields": {"padding": "EXPLICIT"}}, "padding 'EXPLICIT' is not known"),
        ({"fields": {"pad_values": 2, "padding": SAME}}, "its option pad_values is 2"),
        ({"fields": {"dilation_height_factor": 1 << 20}}, "absurd"),
        ({"fields": {"dilation_height_factor": 3}}, "does not fit an image of 6x6"),
        ({"weight": signs(4, 3, 3, 64)}, "does not fit its input of 32 channels"),
        ({"multiplier": normal(3)}, r"its multiplier is \[3\]"),
        ({"multiplier": None}, "has no operand 2"),
        ({"bias": np.float32([1, np.inf, 0, 0])}, "non-finite weight"),
        ({"threshold": np.zeros(3, np.int32)}, r"its thresholds are int32 \[3\]"),
    ],
)
def test_nonsense_is_refused(tmp_path, changed, message):
    file = TfliteFile()
    source, result = small(file, **changed)
    with pytest.raises(ModelError, match=message) as refusal:
        run(tmp_path, file, source, result, None)
    assert "operator 1 (LceBconv2d)" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_that_are_cut_off_are_refused(tmp_path):
    whole = options(**geometry(32))
    for length in range(len(whole)):
        file = TfliteFile()
        source = file.tensor((1, 6, 6, 32))
        bits = file.custom("LceQuantize", [source], (1, 6, 6, 1), "int32")
        inputs = [bits, *map(file.constant, (words(signs(4, 3, 3, 32)), normal(4), normal(4)))]
        result = file.custom("LceBconv2d", inputs, (1, 4, 4, 4), "float32", whole[:length])
        with pytest.raises(ModelError, match="option"):
            run(tmp_path, file, source, result, None)


def test_eight_bit_results_are_refused_by_name(tmp_path):
    file = TfliteFile()
    source = file.tensor((1, 6, 6, 32))
    bits = file.custom("LceQuantize", [source], (1, 6, 6, 1), "int32")
    inputs = [bits, *map(file.constant, (words(signs(4, 3, 3, 32)), normal(4), normal(4)))]
    result = file.custom("LceBconv2d", inputs, (1, 4, 4, 4), "int8", options(**geometry(32)))
    with pytest.raises(ModelError, match=r"tensor 5 'tensor_5' is int8; quantised networks are not supported"):
        run(tmp_path, file, source, result, None)


def test_conventions_become_attributes(tmp_path):
    """Padding that pads nothing is stated as none, so that equal layers are one task."""
    file = TfliteFile()
    source, result = small(file, fields={"pad_values": 1})
    path = tmp_path / "network.tflite"
    path.write_bytes(file.write(source, result))
    operators = dict(bindings(load_model(path).module["main"])).values()
    assert [op_name(value) for value in operators] == ["bitkiln.binarize", "bitkiln.bconv2d", "multiply", "add"]
    binarize, convolution = (workload_of(value) for value in list(operators)[:2])
    assert (binarize.sign_zero, convolution.pad_value, convolution.padding) == (1, 0, (0, 0, 0, 0))


def conv_2d(file, source, weight, shape):
    """Add a float convolution, VALID, with bias."""
    window = {"Padding": VALID, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    inputs = [source, file.constant(weight), file.constant(normal(len(weight)))]
    return file.operator("CONV_2D", inputs, shape, "Conv2DOptions", **window)


def larq_sign(file, source):
    """Sign(Sign(x) + 0.1), padded with +1, against scaled weights."""
    first = file.operator("SIGN", [source], (1, 6, 6, 16))
    moved = file.operator("ADD", [first, file.constant(np.float32(0.1))], (1, 6, 6, 16), "AddOptions")
    sign = file.operator("SIGN", [moved], (1, 6, 6, 16))
    border = file.constant(np.int32([[0, 0], [1, 1], [1, 1], [0, 0]]))
    padded = file.operator("PADV2", [sign, border, file.constant(np.float32(1))], (1, 8, 8, 16))
    weight = signs(8, 3, 3, 16) * (np.abs(normal(8, 1, 1, 1)) + np.float32(0.1))
    return conv_2d(file, padded, weight, (1, 6, 6, 8)), ["binary, padding +1"]


def chosen_sign(file, source):
    """x >= 0 ? 1 : -1."""
    at_least = file.operator("GREATER_EQUAL", [source, file.constant(np.float32(0))], (1, 6, 6, 16), dtype="bool")
    pair = [file.constant(np.float32(value)) for value in (1, -1)]
    sign = file.operator("SELECT_V2", [at_least, *pair], (1, 6, 6, 16))
    return conv_2d(file, sign, signs(8, 3, 3, 16), (1, 4, 4, 8)), ["binary, no padding"]


def dequantised(file, source):
    """Layers that the converter left as float ones, behind bits of the input and of a binary convolution."""
    bits = file.custom("LceQuantize", [source], (1, 6, 6, 1), "int32")
    image = file.custom("LceDequantize", [bits], (1, 6, 6, 16))
    threshold = np.full(8, 70, np.int32)
    made = bconv(file, bits, signs(8, 3, 3, 16), (1, 4, 4, 8), threshold=threshold, channels=16)
    floats = file.custom("LceDequantize", [made], (1, 4, 4, 8))
    flat = file.operator("RESHAPE", [floats, file.constant(np.int32([1, 128]))], (1, 128))
    inputs = [flat, file.constant(signs(10, 128)), file.constant(normal(10))]
    dense = file.operator("FULLY_CONNECTED", inputs, (1, 10), "FullyConnectedOptions")
    conv = conv_2d(file, image, signs(8, 3, 3, 16), (1, 4, 4, 8))
    return [conv, dense], ["binary, no padding"] * 3


def computed_weights(file, source):
    """Weights that the converter leaves to be computed where they are large: mean(|w|) * sign(w), transposed."""
    clipped = file.operator("RELU_N1_TO_1", [file.constant(normal(3, 3, 16, 8))], (3, 3, 16, 8))
    size = file.operator("ABS", [clipped], (3, 3, 16, 8))
    axes = file.constant(np.int32([0, 1, 2]))
    mean = file.operator("MEAN", [size, axes], (1, 1, 1, 8), "ReducerOptions", KeepDims=True)
    bits = file.custom("LceQuantize", [clipped], (3, 3, 16, 1), "int32")
    sign = file.custom("LceDequantize", [bits], (3, 3, 16, 8))
    scaled = file.operator("MUL", [mean, sign], (3, 3, 16, 8), "MulOptions")
    weight = file.operator("TRANSPOSE", [scaled, file.constant(np.int32([3, 0, 1, 2]))], (8, 3, 3, 16))
    image = file.custom("LceDequantize", [file.custom("LceQuantize", [source], (1, 6, 6, 1), "int32")], (1, 6, 6, 16))
    inputs = [image, weight, file.constant(np.zeros(8, np.float32))]
    window = {"Padding": VALID, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    return file.operator("CONV_2D", inputs, (1, 4, 4, 8), "Conv2DOptions", **window), ["binary, no padding"]


def _has_workload(function):
    return bool(function.attrs) and WORKLOAD_ATTR in function.attrs


@pytest.mark.parametrize("draw", [larq_sign, chosen_sign, dequantised, computed_weights])
def test_signs_that_the_converter_left_in_floats(tmp_path, draw):
    file = TfliteFile()
    source = file.tensor((1, 6, 6, 16))
    result, expected = draw(file, source)
    path = tmp_path / "network.tflite"
    path.write_bytes(file.write(source, result))
    model = load_model(path)
    lowered = lower(model, targets.load("rasp3b"))
    found = [f"{'binary' if v.binary else 'float'}, {v.reason.split(', ')[1]}" for v in lowered.verdicts]
    assert found == expected
    workloads = [json.loads(str(f.attrs[WORKLOAD_ATTR])) for f in lowered.module.functions.values() if _has_workload(f)]
    assert [work["tag"] for work in workloads].count("binarize") == 1
    x = normal(1, 6, 6, 16)
    entry = model.module["main"].params[0].name
    for got, want in zip(
        reference.run(lowered.module, {entry: x}), reference.run(model.module, {entry: x}), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [*FLOATS, *BITS, *NETWORKS])
def test_files_of_its_own_converter(shared, name):
    """Against the outputs of its own interpreter: numbers of bits exactly, floats to 1e-4, decisions everywhere."""
    folder = shared / "models" / "lce"
    model, golden = load_model(folder / f"{name}.tflite"), np.load(folder / f"{name}.npz")
    entry = model.module["main"].params[0].name
    for x, y in zip(golden["x"], golden["y"], strict=True):
        (got,) = reference.run(model.module, {entry: x[None]})
        assert got[0].argmax() == y.argmax()
        if name in BITS:
            np.testing.assert_array_equal(got[0], y)
        else:
            np.testing.assert_allclose(got[0], y, atol=1e-4 * np.abs(y).max())
