"""Other engines are asked as the file says, and verify says so where they cannot be."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln.pipeline import reference
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.verify.rivals import Unchecked, by_onnxruntime


def write(folder: Path, nodes, weights, shape, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_quantisers_are_joined_as_onnxruntimes_optimiser_joins_them(tmp_path):
    """One kernel of 8 bits, with exact sums; operator by operator, a sum that lies between two units may be the other one."""
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(3)
    weights = {
        "s": np.float32(0.05),
        "z": np.uint8(128),
        "w": rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
        "ws": np.float32(0.03),
        "wz": np.int8(0),
        "o": np.float32(0.31),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"]),
        helper.make_node("Conv", ["d", "v"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "o", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "o", "z"], ["y"]),
    ]
    path = write(tmp_path, nodes, weights, [1, 8, 16, 16])
    x = rng.normal(size=(1, 8, 16, 16)).astype(np.float32) * 3
    model = load_model(path)
    (got,) = reference.run(model.module, {model.module["main"].params[0].name: x})
    (joined,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    np.testing.assert_array_equal(got, joined)
    (apart,) = by_onnxruntime(path, {"x": x})
    assert np.abs(got - apart).max() < 1.01 * weights["o"] and np.mean(got != apart) < 0.01


def test_inputs_of_half_precision(tmp_path):
    pytest.importorskip("onnxruntime")
    path = write(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {}, [1, 3], TensorProto.FLOAT16)
    (theirs,) = by_onnxruntime(path, {"x": np.float32([[-1, 0, 2]])})
    assert theirs.tolist() == [[0, 0, 2]]


def test_files_it_cannot_run(tmp_path):
    pytest.importorskip("onnxruntime")
    path = write(tmp_path, [helper.make_node("Nonsense", ["x"], ["y"])], {}, [1, 3])
    with pytest.raises(Unchecked, match="onnxruntime cannot run the file"):
        by_onnxruntime(path, {"x": np.zeros((1, 3), np.float32)})
    assert by_onnxruntime(tmp_path / "model.tflite", {}) is None


def test_without_onnxruntime(tmp_path, monkeypatch):
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unchecked, match="onnxruntime is not installed"):
        by_onnxruntime(tmp_path / "model.onnx", {})
