"""Quantisers of QONNX, Brevitas, FINN and ONNX itself, against their definitions in numpy and onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.ir.graph import bindings, op_name
from tests.pipeline.importers.test_onnx_dialects import Sketch, check, normal, signs

QONNX = "qonnx.custom_op.general"

#: Halves and numbers beyond every range, so that rounding and clipping are met.
X = np.linspace(-9.75, 9.75, 79, dtype=np.float32).reshape(1, 79)

ROUNDINGS = {
    "ROUND": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.sign(v) * np.ceil(np.abs(v)),
    "DOWN": np.trunc,
    "HALF_UP": lambda v: np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)),
    "HALF_DOWN": lambda v: np.sign(v) * np.ceil(np.abs(v) - np.float32(0.5)),
}


def quantised(x, scale, zero, bits, signed=1, narrow=0, mode="ROUND"):
    """As QONNX defines it."""
    low, high = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    whole = x / np.float32(scale) + np.float32(zero)
    whole = np.where(whole >= 0, 1, -1) if signed and bits == 1 else ROUNDINGS[mode](np.clip(whole, low, high))
    return ((whole - np.float32(zero)) * np.float32(scale)).astype(np.float32)


def run(path, x):
    model = load_model(path)
    return reference.run(model.module, {"x": x})[0]


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("kind", ["Quant", "IntQuant"])
@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "zero"),
    [(8, 1, 0, 0), (3, 1, 1, 0), (2, 0, 0, 0), (2, 0, 1, 0), (4, 0, 0, 3), (1, 1, 0, 0), (1, 0, 0, 0)],
)
def test_quantisers_of_any_width(write_onnx, kind, opset, bits, signed, narrow, zero):
    net = Sketch()
    net(kind, "x", 0.75, float(zero), float(bits), domain=QONNX, signed=signed, narrow=narrow)
    np.testing.assert_array_equal(
        run(net.write(write_onnx, [1, 79], opset), X), quantised(X, 0.75, zero, bits, signed, narrow)
    )


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_roundings(write_onnx, mode):
    net = Sketch()
    net("Quant", "x", 0.5, 0.0, 5.0, domain="onnx.brevitas", signed=1, narrow=0, rounding_mode=mode)
    np.testing.assert_array_equal(run(net.write(write_onnx, [1, 79]), X), quantised(X, 0.5, 0, 5, mode=mode))


def test_truncations(write_onnx):
    net = Sketch()
    net("Trunc", "x", 0.25, 0.0, 6.0, 4.0, domain=QONNX, rounding_mode="FLOOR")
    expected = np.floor(np.round(X / 0.25) / 4) * np.float32(0.25)
    np.testing.assert_array_equal(run(net.write(write_onnx, [1, 79]), X), expected)
    net = Sketch()
    net("Trunc", "x", 0.25, 0.0, 6.0, 1.0, 0.0, 4.0, domain=QONNX, signed=1, narrow=0, rounding_mode="ROUND")
    expected = np.round(np.clip(np.round(X / 0.25) / 4, -8, 7))
    np.testing.assert_array_equal(run(net.write(write_onnx, [1, 79]), X), expected)


@pytest.mark.parametrize("domain", [QONNX, "onnx.brevitas"])
@pytest.mark.parametrize("opset", [9, 13, 20])
def test_brevitas_network(write_onnx, domain, opset):
    """An 8-bit input, bipolar weights with a scale for each channel, bipolar activations, convolutions and a dense layer."""
    net = Sketch()
    x = net("Quant", "x", 0.01, 0.0, 8.0, domain=domain, signed=1, narrow=0)
    weights = [0.1 * normal(16, 3, 3, 3), normal(32, 16, 3, 3), normal(10, 32 * 16)]
    scales = [np.abs(normal(len(weight), *([1] * (weight.ndim - 1)))) for weight in weights]

    def weight(index):
        return net("BipolarQuant", weights[index], scales[index], domain=domain)

    x = net("BipolarQuant", net("Conv", x, weight(0), pads=[1] * 4), 1.0, domain=domain)
    x = net(
        "BipolarQuant", net.normalised(net("Conv", x, weight(1), strides=[2, 2], pads=[1] * 4), 32), 0.5, domain=domain
    )
    x = net("Reshape", x, np.int64([1, -1]))
    net("MatMul", x, net("Transpose", weight(2), perm=[1, 0]))
    path = net.write(write_onnx, [1, 3, 8, 8], opset)
    batch_norm = next(node for node in net.nodes if node.op_type == "BatchNormalization")
    gamma, beta, mean, variance = (net.weights[name].reshape(1, -1, 1, 1) for name in batch_norm.input[1:])

    def expected(x):
        w = [np.where(weight >= 0, scale, -scale) for weight, scale in zip(weights, scales, strict=True)]
        value = convolved(quantised(x, 0.01, 0, 8), w[0], 1)
        value = convolved(np.where(value >= 0, np.float32(1), np.float32(-1)), w[1], 2)
        value = (value - mean) / np.sqrt(variance + np.float32(1e-5)) * gamma + beta
        return np.where(value >= 0, 0.5, -0.5).reshape(1, -1) @ w[2].T

    check(path, [False, True, True], expected)


def convolved(x, weight, stride):
    """A 3x3 convolution of NCHW with one row and column of zeros around."""
    y = reference.convolve(x.transpose(0, 2, 3, 1), weight.transpose(0, 2, 3, 1), (stride,) * 2, (1,) * 4, (1, 1), 1)
    return y.transpose(0, 3, 1, 2)


def test_one_bit_without_a_sign_is_zero_or_one(write_onnx):
    """round(clip(x / s, 0, 1)) * s, as Brevitas writes a ReLU of one bit."""
    net = Sketch()
    x = net("Quant", "x", 0.5, 0.0, 1.0, domain=QONNX, signed=0, narrow=0)
    w = signs(4, 8, 3, 3)
    net("Conv", x, w, pads=[1] * 4)

    def expected(x):
        return convolved(quantised(x, 0.5, 0, 1, signed=0), w, 1)

    (verdict,) = check(net.write(write_onnx, [1, 8, 6, 6]), [True], expected)
    assert verdict.facts.levels == (0, 0.5)


@pytest.mark.parametrize("thresholds", [np.float32([[0.25]]), normal(8, 1)])
def test_one_threshold_is_a_sign(write_onnx, thresholds):
    net = Sketch()
    x = net("MultiThreshold", "x", thresholds, domain=QONNX, out_scale=2.0, out_bias=-1.0, out_dtype="BIPOLAR")
    w = signs(4, 8, 3, 3)
    net("Conv", x, w, pads=[1] * 4)

    def expected(x):
        return convolved(np.where(x >= thresholds.reshape(1, -1, 1, 1), np.float32(1), np.float32(-1)), w, 1)

    check(net.write(write_onnx, [1, 8, 6, 6]), [True], expected)


def test_quantize_and_dequantize(write_onnx):
    """QCDQ: four bits are eight that are clipped; weights with a scale for each channel."""
    net = Sketch()

    def through(x, scale, zero, low, high, **axis):
        whole = net("QuantizeLinear", x, scale, zero, **axis)
        whole = net("Clip", whole, zero.dtype.type(low), zero.dtype.type(high))
        return net("DequantizeLinear", whole, scale, zero, **axis)

    x = through("x", np.float32(0.3), np.uint8(3), 0, 15)
    scale, zero = np.abs(normal(8)) / 5, np.zeros(8, np.int8)
    x = net("Conv", x, through(net.constant(normal(8, 4, 3, 3)), scale, zero, -7, 7, axis=0))
    through(net("Relu", x), np.abs(normal(8)) / 2, np.zeros(8, np.uint8), 0, 255, axis=1)
    check(net.write(write_onnx, [1, 4, 6, 6]), [False])


REFUSED = {
    "a width that is computed": ("Quant", ("x", 1.0, 0.0, "x"), {}, "its bit width is not a constant number"),
    "half a bit": ("Quant", ("x", 1.0, 0.0, 0.5), {}, "its bit width is 0.5; 1 to 24 are supported"),
    "a rounding of its own": ("Quant", ("x", 1.0, 0.0, 4.0), {"rounding_mode": "DICE"}, "rounds by 'DICE'"),
    "many thresholds": ("MultiThreshold", ("x", normal(1, 3)), {}, "has 3 thresholds.*before FINN's streamlining"),
    "thresholds of other channels": ("MultiThreshold", ("x", normal(5, 1)), {}, "for 4 channels"),
    "an operator of FINN": ("XnorPopcountMatMul", ("x", "x"), {}, "BipolarQuant, Quant, IntQuant and Trunc are"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_by_name(write_onnx, name):
    kind, operands, attributes, reason = REFUSED[name]
    net = Sketch()
    net(kind, *operands, domain=QONNX, **attributes)
    path = net.write(write_onnx, [1, 4])
    with pytest.raises(UnsupportedLayer, match=reason) as caught:
        load_model(path)
    assert f"node 'the_{kind.lower()}_0' ({kind})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scale_of_one_leaves_no_product(write_onnx):
    net = Sketch()
    net("BipolarQuant", "x", 1.0, domain=QONNX)
    model = load_model(net.write(write_onnx, [1, 4]))
    assert [op_name(value) for _, value in bindings(model.module["main"])] == ["greater_equal", "where"]
