"""Networks of ONNX's quantised operators, as onnxruntime's quantiser writes them, against onnxruntime without its optimiser."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln import targets
from bitkiln.pipeline import reference
from bitkiln.pipeline.boards.emulated import on_emulator
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.verify.rivals import by_onnxruntime
from tests.pipeline.conftest import NoRecords

quantization = pytest.importorskip("onnxruntime.quantization")
RNG = np.random.default_rng(11)
node = helper.make_node


def write(path, nodes, weights, shape, kind=TensorProto.FLOAT, domain=""):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ours(path, x):
    model = load_model(path)
    return model, reference.run(model.module, {model.module["main"].params[0].name: x})[0]


@pytest.fixture
def floats(tmp_path):
    """A network in floats: convolutions, a residual, a pooling, an activation, a dense layer."""
    weights = {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "w2": normal(8, 8, 3, 3) / 5,
        "v": normal(8, 5),
        "c": normal(5),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        node("Sigmoid", ["c2"], ["s"]),
        node("Add", ["r1", "s"], ["a"]),
        node("Concat", ["a", "r1"], ["k"], axis=1),
        node("Conv", ["k", "w3"], ["c3"]),
        node("GlobalAveragePool", ["c3"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["y"]),
    ]
    return write(tmp_path / "floats.onnx", nodes, weights | {"w3": normal(8, 16, 1, 1)}, [1, 3, 12, 12])


class Samples(quantization.CalibrationDataReader):
    """A few inputs to calibrate with."""

    def __init__(self):
        self.left = [{"x": normal(1, 3, 12, 12)} for _ in range(4)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_networks_of_onnxruntimes_quantiser(tmp_path, floats, form, per_channel):
    path = tmp_path / "quantised.onnx"
    quantization.quantize_static(
        floats,
        path,
        Samples(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    x = normal(1, 3, 12, 12)
    _, got = ours(path, x)
    (want,) = by_onnxruntime(path, {"x": x})
    unit = np.abs(want).max() / 127
    assert np.abs(got - want).max() <= unit * 1.01
    assert got.argmax() == want.argmax()


def test_networks_quantised_as_they_run(tmp_path, floats):
    path = tmp_path / "quantised.onnx"
    quantization.quantize_dynamic(floats, path, weight_type=quantization.QuantType.QUInt8)
    x = normal(1, 3, 12, 12)
    _, got = ours(path, x)
    (want,) = by_onnxruntime(path, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def quantised(nodes):
    """``nodes`` behind a quantiser of x."""
    return [node("QuantizeLinear", ["x", "s", "z"], ["q"]), *nodes]


BASE = {"s": np.float32(0.05), "z": np.uint8(120)}


@pytest.mark.parametrize("channels", [16, 1100])
def test_sums_of_convolutions_are_exact(tmp_path, channels):
    """1,100 products of up to 135 * 255 pass 2**24: they are split."""
    weights = BASE | {"w": RNG.integers(120, 256, (4, channels, 1, 1)).astype(np.uint8), "wz": np.uint8(0)}
    nodes = quantised([node("ConvInteger", ["q", "w", "z", "wz"], ["i"]), node("Identity", ["i"], ["y"])])
    path = write(tmp_path / "net.onnx", nodes, weights, [1, channels, 4, 4], TensorProto.INT32)
    x = np.full((1, channels, 4, 4), 100, np.float32)
    model, got = ours(path, x)
    (want,) = by_onnxruntime(path, {"x": x})
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype == np.int32
    assert (str(model.module).count("R.nn.conv2d(") > 1) == (channels > 1000)


@pytest.mark.parametrize("channels", [32, 1100])
def test_sums_of_matrix_products_are_exact(tmp_path, channels):
    weights = BASE | {"w": RNG.integers(120, 256, (channels, 6)).astype(np.uint8), "wz": np.uint8(3)}
    nodes = quantised([node("MatMulInteger", ["q", "w", "z", "wz"], ["y"])])
    path = write(tmp_path / "net.onnx", nodes, weights, [2, channels], TensorProto.INT32)
    x = np.full((2, channels), 100, np.float32)
    _, got = ours(path, x)
    np.testing.assert_array_equal(got, by_onnxruntime(path, {"x": x})[0])


def test_on_the_board(tmp_path):
    weights = BASE | {
        "w": RNG.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8),
        "ws": RNG.uniform(0.001, 0.01, 16).astype(np.float32),
        "wz": np.zeros(16, np.int8),
        "o": np.float32(0.3),
        "b": RNG.integers(-999, 999, 16).astype(np.int32),
    }
    operands = ["q", "s", "z", "w", "ws", "wz", "o", "z", "b"]
    nodes = quantised([node("QLinearConv", operands, ["y"], pads=[1] * 4)])
    path = write(tmp_path / "net.onnx", nodes, weights, [1, 8, 12, 12], TensorProto.UINT8)
    x = normal(1, 8, 12, 12) * 3
    model, expected = ours(path, x)
    np.testing.assert_array_equal(expected, by_onnxruntime(path, {"x": x})[0])
    board = targets.load("rasp3b")
    bundle = compile_model(model, board, NoRecords(), tmp_path / "bundle")
    try:
        (got,) = on_emulator(bundle, board, {model.module["main"].params[0].name: x}).outputs.values()
    except SetupError as problem:
        pytest.skip(str(problem))
    np.testing.assert_array_equal(got, expected)


def test_layers_between_quantisers_are_of_8_bits(tmp_path, floats):
    """Files of the form QDQ: layers are of whole numbers, and what lies between moves bytes or is a table."""
    path = tmp_path / "quantised.onnx"
    quantization.quantize_static(
        floats,
        path,
        Samples(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    lowered = lower(load_model(path), targets.load("rasp3b"))
    left = [op_name(value) for _, value in bindings(lowered.phases["quantized"]["main"])]
    assert left.count("bitkiln.qconv2d") == 4
    assert not {"nn.conv2d", "matmul", "mean", "sigmoid", "nn.relu"} & set(left)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_limits_of_an_activation_before_the_quantiser(tmp_path, activation):
    weights = BASE | {
        "w": RNG.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8),
        "ws": RNG.uniform(0.001, 0.01, 16).astype(np.float32),
        "wz": np.zeros(16, np.int8),
        "o": np.float32(0.3),
        "b": RNG.integers(-999, 999, 16).astype(np.int32),
        "low": np.float32(-3.1),
        "high": np.float32(4.2),
    }
    weights["bs"] = weights["s"] * weights["ws"]
    bounds = ["low", "high"] if activation == "Clip" else []
    nodes = quantised(
        [
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
            node("DequantizeLinear", ["b", "bs"], ["db"], axis=0),
            node("Conv", ["d", "dw", "db"], ["c"], pads=[1] * 4),
            node(activation, ["c", *bounds], ["a"]),
            node("QuantizeLinear", ["a", "o", "z"], ["y"]),
        ]
    )
    path = write(tmp_path / "net.onnx", nodes, weights, [1, 8, 12, 12], TensorProto.UINT8)
    x = normal(1, 8, 12, 12) * 3
    model, got = ours(path, x)
    assert "matmul" not in str(model.module) and str(model.module).count("R.round(") == 2
    (want,) = by_onnxruntime(path, {"x": x})
    assert len(np.unique(want)) > 9
    # The other one computes in floats, and may round a number between two integers otherwise.
    differing = np.abs(got.astype(int) - want.astype(int))
    assert differing.max() <= 1 and np.count_nonzero(differing) <= 2
