"""Quantised TensorFlow Lite files against LiteRT's reference kernels: no result further than one unit."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tflite_file import TfliteFile
from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import SetupError, UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.passes.pipeline import lower
from tests.pipeline.conftest import NoRecords

SAME, VALID = 0, 1
NONE, RELU, RELU6 = 0, 1, 3
TYPES = {"int8": (-128, 127), "uint8": (0, 255)}


@pytest.fixture(scope="module")
def litert():
    return pytest.importorskip(
        "ai_edge_litert.interpreter", reason="needs ai-edge-litert, whose kernels are the measure"
    )


class Net:
    """A quantised network under construction, and its file's bytes."""

    def __init__(self, dtype, shape, seed=0):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.file = dtype, TfliteFile()
        self.low, self.high = TYPES[dtype]
        self.zero = 3 if dtype == "int8" else 131
        self.source = self.tensor(shape, 0.05)
        self.shape = shape

    def how(self, scale, zero=None):
        return {"scale": scale, "zero": self.zero if zero is None else zero}

    def tensor(self, shape, scale, zero=None):
        return self.file.tensor(shape, self.dtype, **self.how(scale, zero))

    def weights(self, shape, axis, per_channel=True):
        """Weights and their scales: one a channel for int8, one with a zero point for uint8."""
        if self.dtype == "uint8":
            values = self.rng.integers(0, 256, shape).astype(np.uint8)
            return self.file.constant(values, scale=0.01, zero=120), np.full(shape[axis], 0.01)
        scales = self.rng.uniform(0.002, 0.02, shape[axis] if per_channel else 1)
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.file.constant(values, scale=tuple(scales), axis=axis), np.broadcast_to(scales, shape[axis])

    def bias(self, scales, scale):
        values = self.rng.integers(-3000, 3000, len(scales)).astype(np.int32)
        return self.file.constant(values, scale=tuple(scales * scale))

    def add(self, name, inputs, shape, table="", scale=0.05, zero=None, **options):
        return self.file.operator(name, inputs, shape, table, self.dtype, self.how(scale, zero), **options)

    def inputs(self):
        return self.rng.integers(self.low, self.high + 1, self.shape).astype(self.dtype)


def theirs(litert, content, x, kind="BUILTIN_REF"):
    """LiteRT's outputs by its reference kernels, or by the fast ones that it takes unless asked."""
    kind = litert.OpResolverType[kind]
    engine = litert.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    engine.allocate_tensors()
    engine.set_tensor(engine.get_input_details()[0]["index"], x)
    engine.invoke()
    return [engine.get_tensor(each["index"]) for each in engine.get_output_details()]


def check(litert, folder, net, results, units=1):
    """Imported and by the reference, the network gives what LiteRT gives, within ``units``."""
    content = net.file.write(net.source, results)
    path = folder / "network.tflite"
    path.write_bytes(content)
    model = load_model(path)
    x = net.inputs()
    got = reference.run(model.module, {model.module["main"].params[0].name: x})
    for ours, want in zip(got, theirs(litert, content, x), strict=True):
        assert (ours.dtype, ours.shape) == (want.dtype, want.shape)
        assert np.abs(ours.astype(int) - want.astype(int)).max() <= units
        assert np.ptp(want.astype(int)) > 3, "the test's numbers are all the same"
    return model


def conv(net, source, shape, filters, kernel, scale=1.0, padding=SAME, stride=1, activation=NONE, data_scale=0.05):
    weight, scales = net.weights((filters, *kernel, shape[-1]), 0)
    bias = net.bias(scales, data_scale)
    size = [
        -(-n // stride) if padding == SAME else (n - k) // stride + 1 for n, k in zip(shape[1:3], kernel, strict=True)
    ]
    options = {"StrideH": stride, "StrideW": stride, "DilationHFactor": 1, "DilationWFactor": 1}
    options |= {"Padding": padding, "FusedActivationFunction": activation}
    made = net.add("CONV_2D", [source, weight, bias], (1, *size, filters), "Conv2DOptions", scale, **options)
    return made, (1, *size, filters)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", [NONE, RELU, RELU6])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 3), 1, SAME), ((3, 2), 2, VALID), ((1, 1), 1, SAME)])
def test_convolutions(litert, tmp_path, dtype, activation, kernel, stride, padding):
    net = Net(dtype, (1, 9, 8, 5))
    scale = 0.03 if activation == RELU6 else 0.8
    made, _ = conv(net, net.source, net.shape, 6, kernel, scale, padding, stride, activation)
    check(litert, tmp_path, net, [made])


@pytest.mark.parametrize("dtype", TYPES)
def test_depthwise_convolutions(litert, tmp_path, dtype):
    net = Net(dtype, (1, 8, 7, 4))
    weight, scales = net.weights((1, 3, 3, 8), 3)
    options = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": SAME}
    options |= {"DepthMultiplier": 2, "FusedActivationFunction": RELU}
    inputs = [net.source, weight, net.bias(scales, 0.05)]
    made = net.add("DEPTHWISE_CONV_2D", inputs, (1, 8, 7, 8), "DepthwiseConv2DOptions", 0.3, **options)
    check(litert, tmp_path, net, [made])


@pytest.mark.parametrize("dtype", TYPES)
def test_dense_layers(litert, tmp_path, dtype):
    net = Net(dtype, (1, 300))
    weight, scales = net.weights((10, 300), 0, per_channel=False)
    bias = net.file.constant(net.rng.integers(-3000, 3000, 10).astype(np.int32), scale=float(scales[0] * 0.05))
    made = net.add("FULLY_CONNECTED", [net.source, weight, bias], (1, 10), "FullyConnectedOptions", 1.5)
    check(litert, tmp_path, net, [made])


def test_sums_beyond_floats_are_split(litert, tmp_path):
    """1,200 products of up to 255 * 127: their sum has 26 bits."""
    net = Net("int8", (1, 4, 4, 1200))
    values = np.full((3, 1, 1, 1200), 127, np.int8)
    values[1, :, :, ::2] = 126
    weight = net.file.constant(values, scale=(0.01, 0.01, 0.01))
    options = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": SAME}
    bias = net.bias(np.full(3, 0.01), 0.05)
    made = net.add("CONV_2D", [net.source, weight, bias], (1, 4, 4, 3), "Conv2DOptions", 0.4, **options)
    model = check(litert, tmp_path, net, [made])
    assert str(model.module).count("R.nn.conv2d(") > 1


def test_layers_of_8_bits_give_the_bytes_of_litert_s_fast_kernels(litert, tmp_path):
    """Those round factors and halves as ours do; its reference kernels, by integers, are a unit off now and then."""
    net = Net("int8", (1, 14, 13, 16))
    first, _ = conv(net, net.source, net.shape, 24, (3, 3), 0.9, activation=RELU)
    weight, scales = net.weights((1, 5, 5, 24), 3)
    options = {"StrideH": 2, "StrideW": 2, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": SAME}
    options |= {"DepthMultiplier": 1, "FusedActivationFunction": NONE}
    inputs = [first, weight, net.bias(scales, 0.9)]
    second = net.add("DEPTHWISE_CONV_2D", inputs, (1, 7, 7, 24), "DepthwiseConv2DOptions", 6.0, **options)
    gate = net.add("LOGISTIC", [second], (1, 7, 7, 24), "", 1 / 256, -128)
    product = net.add("MUL", [second, gate], (1, 7, 7, 24), "MulOptions", 3.1, -90, FusedActivationFunction=NONE)
    third, _ = conv(net, product, (1, 7, 7, 24), 40, (1, 1), 40.0, data_scale=3.1)
    mean = net.add("MEAN", [third, net.file.constant(np.int32([1, 2]))], (1, 40), "ReducerOptions", 11.0)
    dense, scales = net.weights((12, 40), 0, per_channel=False)
    bias = net.file.constant(net.rng.integers(-300, 300, 12).astype(np.int32), scale=float(scales[0] * 11))
    scores = net.add("FULLY_CONNECTED", [mean, dense, bias], (1, 12), "FullyConnectedOptions", 4.0)
    content = net.file.write(net.source, [first, second, product, third, scores])
    (tmp_path / "net.tflite").write_bytes(content)
    model, x = load_model(tmp_path / "net.tflite"), net.inputs()
    got = reference.run(model.module, {model.module["main"].params[0].name: x})
    for ours, want in zip(got, theirs(litert, content, x, "AUTO"), strict=True):
        assert np.ptp(want.astype(int)) > 20
        np.testing.assert_array_equal(ours, want)


POOL = {"Padding": SAME, "FilterHeight": 2, "FilterWidth": 3, "StrideH": 1, "StrideW": 1}
ONE_OPERAND = {
    "AVERAGE_POOL_2D": ("Pool2DOptions", POOL, {}),
    "MAX_POOL_2D": ("Pool2DOptions", POOL, {}),
    "RELU": ("", {}, {}),
    "RELU6": ("", {}, {"scale": 0.025}),
    "LEAKY_RELU": ("LeakyReluOptions", {"Alpha": 0.2}, {"scale": 0.04}),
    "LOGISTIC": ("", {}, {"scale": 1 / 256}),
    "TANH": ("", {}, {"scale": 1 / 128}),
    "HARD_SWISH": ("HardSwishOptions", {}, {"scale": 0.04}),
    "SOFTMAX": ("SoftmaxOptions", {"Beta": 1.0}, {"scale": 1 / 256}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ONE_OPERAND)
def test_operators_of_one_operand(litert, tmp_path, name, dtype):
    if dtype == "uint8" and name in ("RELU", "RELU6"):
        pytest.skip("LiteRT has no kernel of it for uint8")
    table, options, how = ONE_OPERAND[name]
    net = Net(dtype, (1, 6, 5, 4))
    zeros = (
        {"LOGISTIC": -128, "SOFTMAX": -128, "TANH": 0}
        if dtype == "int8"
        else {"LOGISTIC": 0, "SOFTMAX": 0, "TANH": 128}
    )
    made = net.add(name, [net.source], net.shape, table, how.get("scale", 0.05), zeros.get(name), **options)
    check(litert, tmp_path, net, [made])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["ADD", "SUB", "MUL"])
@pytest.mark.parametrize("constant", [False, True])
def test_arithmetic(litert, tmp_path, name, dtype, constant):
    net = Net(dtype, (1, 6, 5, 4))
    table = f"{name.capitalize()}Options"
    if constant:
        other = net.file.constant(net.rng.integers(net.low, net.high + 1, (1, 6, 5, 4)).astype(dtype), **net.how(0.02))
    else:
        pool = {"Padding": SAME, "FilterHeight": 2, "FilterWidth": 2, "StrideH": 1, "StrideW": 1}
        other = net.add("MAX_POOL_2D", [net.source], net.shape, "Pool2DOptions", 0.05, **pool)
    activation = NONE if name == "SUB" else RELU
    made = net.add(name, [net.source, other], net.shape, table, 0.11, FusedActivationFunction=activation)
    check(litert, tmp_path, net, [made])


@pytest.mark.parametrize("dtype", TYPES)
def test_moves(litert, tmp_path, dtype):
    net = Net(dtype, (1, 4, 4, 6))
    ints = lambda *values: net.file.constant(np.array(values, np.int32))  # noqa: E731
    padded = net.add("PAD", [net.source, net.file.constant(np.int32([[0, 0], [1, 0], [0, 2], [0, 0]]))], (1, 5, 6, 6))
    turned = net.add("TRANSPOSE", [net.source, ints(0, 2, 1, 3)], (1, 4, 4, 6))
    cut = net.add("STRIDED_SLICE", [net.source, ints(0, 1, 0, 0), ints(1, 3, 4, 6), ints(1, 1, 2, 1)], (1, 2, 2, 6))
    joined = net.add("CONCATENATION", [net.source, turned], (1, 4, 4, 12), "ConcatenationOptions", Axis=3)
    flat = net.add("RESHAPE", [net.source, ints(1, 96)], (1, 96))
    larger = net.add(
        "RESIZE_BILINEAR", [net.source, ints(8, 8)], (1, 8, 8, 6), HalfPixelCenters=True, table="ResizeBilinearOptions"
    )
    mean = net.add("MEAN", [net.source, ints(1, 2)], (1, 6), "ReducerOptions", 0.02)
    check(litert, tmp_path, net, [padded, turned, cut, joined, flat, larger, mean])


def test_quantise_and_dequantise(litert, tmp_path):
    file = TfliteFile()
    source = file.tensor((1, 40))
    whole = file.operator("QUANTIZE", [source], (1, 40), "", "int8", {"scale": 0.1, "zero": -7})
    again = file.operator("QUANTIZE", [whole], (1, 40), "", "uint8", {"scale": 0.07, "zero": 100})
    floats = file.operator("DEQUANTIZE", [again], (1, 40))
    content = file.write(source, [floats, whole])
    (tmp_path / "net.tflite").write_bytes(content)
    model = load_model(tmp_path / "net.tflite")
    x = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32) * 8
    got = reference.run(model.module, {model.module["main"].params[0].name: x})
    want = theirs(litert, content, x)
    np.testing.assert_allclose(got[0], want[0], atol=0.07 * 1.01)
    assert np.abs(got[1].astype(int) - want[1]).max() <= 1


def network(dtype):
    """Convolutions, a residual, a pooling and a classifier, as converters write them."""
    net = Net(dtype, (1, 16, 16, 8))
    first, shape = conv(net, net.source, net.shape, 16, (3, 3), 0.5, activation=RELU)
    second, shape = conv(net, first, shape, 16, (3, 3), 4.0, data_scale=0.5)
    both = net.add("ADD", [first, second], shape, "AddOptions", 4.0, FusedActivationFunction=NONE)
    pooled = net.add("MEAN", [both, net.file.constant(np.int32([1, 2]))], (1, 16), "ReducerOptions", 1.0)
    weight, scales = net.weights((5, 16), 0, per_channel=False)
    bias = net.file.constant(net.rng.integers(-300, 300, 5).astype(np.int32), scale=float(scales[0]))
    scores = net.add("FULLY_CONNECTED", [pooled, weight, bias], (1, 5), "FullyConnectedOptions", 0.5)
    return net, scores


@pytest.mark.parametrize("dtype", TYPES)
def test_networks_on_the_board(litert, tmp_path, dtype):
    net, scores = network(dtype)
    content = net.file.write(net.source, scores)
    (tmp_path / "net.tflite").write_bytes(content)
    model, board = load_model(tmp_path / "net.tflite"), targets.load("rasp3b")
    lowered = lower(model, board)
    attributes = [function.attrs for _, function in lowered.module.functions.items() if function.attrs]
    keys = [str(each["bitkiln.workload"]) for each in attributes if "bitkiln.workload" in each]
    assert sum('"tag": "qconv2d"' in key for key in keys) == 3
    bundle = compile_model(model, board, NoRecords(), tmp_path / "bundle")
    x = net.inputs()
    try:
        (got,) = on_emulator(bundle, board, {model.module["main"].params[0].name: x}).outputs.values()
    except SetupError as problem:
        pytest.skip(str(problem))
    expected = reference.run(model.module, {model.module["main"].params[0].name: x})[0]
    np.testing.assert_array_equal(got, expected)
    (want,) = theirs(litert, content, x)
    assert got.dtype == want.dtype
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 2  # a unit at each of the last layers
    assert got.argmax() == want.argmax()


def test_scales_that_activations_cannot_have(tmp_path):
    file = TfliteFile()
    source = file.tensor((1, 2), "int8", scale=(0.1, 0.2), axis=1)
    made = file.operator("RELU", [source], (1, 2), "", "int8", {"scale": 0.1})
    (tmp_path / "net.tflite").write_bytes(file.write(source, made))
    with pytest.raises(UnsupportedLayer, match="has a scale for each channel"):
        load_model(tmp_path / "net.tflite")
