"""Recurrent layers, unrolled, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import UnsupportedLayer
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.verify.rivals import by_onnxruntime

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RNG = np.random.default_rng(5)


def normal(*shape):
    return (RNG.normal(size=shape) * 0.5).astype(np.float32)


def written(path, kind, shape=(5, 2, 3), directions=1, results=2, states=(), **attributes):
    hidden, gates = 4, GATES[kind]
    weights = {
        "W": normal(directions, gates * hidden, shape[2]),
        "R": normal(directions, gates * hidden, hidden),
        "B": normal(directions, 2 * gates * hidden),
    }
    inputs = ["x", "W", "R", "B", ""]
    for name in states:
        weights[name] = normal(directions, shape[1], hidden)
        inputs.append(name)
    names = [f"y{at}" for at in range(results)]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, names, hidden_size=hidden, **attributes)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)
    return path


CASES = [
    ("LSTM", {"results": 3}),
    ("LSTM", {"results": 3, "states": ("h", "c"), "direction": "reverse"}),
    ("LSTM", {"results": 3, "directions": 2, "direction": "bidirectional"}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1, "states": ("h",)}),
    ("GRU", {"directions": 2, "direction": "bidirectional"}),
    ("RNN", {"direction": "reverse"}),
    ("LSTM", {"results": 3, "shape": (1, 1, 3)}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_recurrent_layers(tmp_path, kind, options):
    path = written(tmp_path / "net.onnx", kind, **options)
    x = normal(*options.get("shape", (5, 2, 3)))
    model = load_model(path)
    got = reference.run(model.module, {model.module["main"].params[0].name: x})
    for ours, theirs in zip(got, by_onnxruntime(path, {"x": x}), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (400, 1, 3)}, "400 steps"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations"),
        ({"clip": 1.0}, "clip=1.0"),
        ({"input_forget": 1}, "input_forget=1"),
    ],
)
def test_what_is_not_unrolled(tmp_path, options, match):
    path = written(tmp_path / "net.onnx", "LSTM", **options)
    with pytest.raises(UnsupportedLayer, match=match):
        load_model(path)
