"""Whole float networks of well-known shapes, small, with random weights, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln.pipeline import reference
from bitkiln.pipeline.importers import load_model

RNG = np.random.default_rng(0)


class Sketch:
    """A network being drawn: every method adds a layer and returns the name of its result."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def random(self, *shape, low=-0.5, high=0.5):
        return self.constant(RNG.uniform(low, high, shape).astype(np.float32))

    def conv(self, x, out, channels, kernel, stride=1, groups=1):
        weight = RNG.normal(size=(out, channels // groups, kernel, kernel)) / np.sqrt(channels // groups * kernel**2)
        inputs = (x, self.constant(weight.astype(np.float32)), self.random(out))
        return self.add("Conv", *inputs, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups)

    def normalised(self, x, out, channels, kernel, stride=1, groups=1):
        params = [self.random(out, low=low, high=1.5) for low in (0.5, -0.5, -0.5, 0.5)]
        return self.add("BatchNormalization", self.conv(x, out, channels, kernel, stride, groups), *params)

    def save(self, path, shape, opset):
        self.nodes[-1].output[0] = "y"
        entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "network", [entry], [result], self.weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)


def squeezenet(net):
    """Fire modules, pooling with ceil_mode, a convolutional classifier."""
    x = net.add("Relu", net.conv("x", 32, 3, 3, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    channels = 32
    for squeeze, expand in ((8, 32), (16, 64)):
        inner = net.add("Relu", net.conv(x, squeeze, channels, 1))
        sides = [net.add("Relu", net.conv(inner, expand, squeeze, kernel)) for kernel in (1, 3)]
        x = net.add("Concat", *sides, axis=1)
        channels = 2 * expand
    x = net.add("Relu", net.conv(net.add("Dropout", x), 50, channels, 1))
    net.add("Softmax", net.add("Flatten", net.add("GlobalAveragePool", x)))


def mobilenet(net):
    """Inverted residuals with depthwise convolutions, ReLU6, squeeze and excitation."""
    low, high = net.constant(np.float32(0)), net.constant(np.float32(6))
    x = net.add("Clip", net.normalised("x", 16, 3, 3, 2), low, high)
    channels = 16
    for out, stride in ((24, 2), (24, 1)):
        wide = 4 * channels
        inner = net.add("Clip", net.normalised(x, wide, channels, 1), low, high)
        inner = net.add("Clip", net.normalised(inner, wide, wide, 3, stride, groups=wide), low, high)
        gate = net.add("Relu", net.conv(net.add("GlobalAveragePool", inner), 8, wide, 1))
        gate = net.add("HardSigmoid", net.conv(gate, wide, 8, 1))
        y = net.normalised(net.add("Mul", inner, gate), out, wide, 1)
        x = net.add("Add", x, y) if out == channels else y
        channels = out
    x = net.add("ReduceMean", net.add("HardSwish", x), axes=[2, 3], keepdims=0)
    net.add("Gemm", x, net.random(10, channels), net.random(10), transB=1)


def resnet(net):
    """Residual blocks, one with a strided shortcut."""
    x = net.add("Relu", net.normalised("x", 16, 3, 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for out, channels, stride in ((16, 16, 1), (32, 16, 2)):
        y = net.add("Relu", net.normalised(x, out, channels, 3, stride))
        y = net.normalised(y, out, out, 3)
        shortcut = x if out == channels else net.normalised(x, out, channels, 1, stride)
        x = net.add("Relu", net.add("Add", y, shortcut))
    net.add("Gemm", net.add("Flatten", net.add("GlobalAveragePool", x)), net.random(10, 32), net.random(10), transB=1)


def upsampling(net):
    """A coarse path, enlarged and added to a fine one."""
    coarse = net.add("LeakyRelu", net.conv("x", 8, 3, 3, 2))
    scales = net.constant(np.float32([1, 1, 2, 2]))
    floor = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    coarse = net.add("Resize", coarse, "", scales, mode="nearest", **floor)
    net.add("Sigmoid", net.conv(net.add("Add", coarse, net.conv("x", 8, 3, 1)), 2, 8, 3))


@pytest.mark.parametrize(
    ("draw", "shape", "opset"),
    [
        (squeezenet, [1, 3, 64, 64], 13),
        (mobilenet, [1, 3, 64, 64], 14),
        (resnet, ["batch", 3, 64, 64], 13),
        (upsampling, [1, 3, 32, 32], 13),
    ],
)
def test_networks(tmp_path, draw, shape, opset):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime says what a network's output should be")
    net, path = Sketch(), tmp_path / "network.onnx"
    draw(net)
    net.save(path, shape, opset)
    model = load_model(path)
    x = RNG.normal(size=model.inputs[0].shape).astype(np.float32)
    expected = runtime.InferenceSession(str(path)).run(None, {"x": x})[0]
    result = reference.run(model.module, {"x": x})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v1"])
def test_published_topologies(tmp_path, name):
    """The onnx package's own network files; compared before their softmax, which hides differences."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime says what a network's output should be")
    source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not source.exists():
        pytest.skip("this release of the onnx package has no network files")
    proto, path = with_random_weights(onnx.load(source)), tmp_path / "network.onnx"
    logits = next(node.input[0] for node in proto.graph.node if node.op_type == "Softmax")
    proto.graph.output[0].name = logits
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    model = load_model(path)
    x = RNG.normal(size=model.inputs[0].shape).astype(np.float32)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    expected = runtime.InferenceSession(str(path), settings).run(None, {model.inputs[0].name: x})[0]
    result = reference.run(model.module, {model.module["main"].params[0].name: x})[0]
    assert expected.std() > 1e-3
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def with_random_weights(proto):
    """The package's files fill every weight with one value by ConstantOfShape: random ones instead."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    positive = {name for node in proto.graph.node if node.op_type == "BatchNormalization" for name in node.input[1:]}
    for fill in [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]:
        shape, name = shapes[fill.input[0]], fill.output[0]
        weight = RNG.normal(size=shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
        weight = np.abs(weight) + 0.5 if name in positive else weight
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
        proto.graph.node.remove(fill)
    return proto
