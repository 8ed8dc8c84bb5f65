"""What commands are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network with one convolution that leaves a choice, and the scores of 16 classes."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(16, inputs, 3, 3)).astype("f") for name, inputs in (("v", 3), ("w", 16))}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["f"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Conv", ["f", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, [1, 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"
