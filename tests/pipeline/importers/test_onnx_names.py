"""Operations are called as the file calls their nodes, everywhere a user sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bitkiln import targets
from bitkiln.pipeline.compile.origins import layers_of
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import lower


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Two convolutions with biases, one of a node with a name as PyTorch's and one without."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name)
        for name, shape in (("w", (4, 3, 3, 3)), ("b", (4,)), ("v", (4, 4, 1, 1)), ("c", (4,)))
    ]
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", "b"], ["/stem/stem.0/Conv_output_0"], name="/stem/stem.0/Conv", pads=[1] * 4
        ),
        helper.make_node("Relu", ["/stem/stem.0/Conv_output_0"], ["50"], name="/stem/Relu"),
        helper.make_node("Conv", ["50", "v", "c"], ["y"]),
    ]
    tensors = [helper.make_tensor_value_info(name, 1, [1, c, 8, 8]) for name, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    return load_model(tmp_path / "m.onnx")


def test_rows_are_called_as_nodes(model: Model) -> None:
    rows = inspect_model(model, []).rows
    named = [row.name for row in rows if row.binary is not None]
    assert named == ["/stem/stem.0/Conv", "y"]
    assert [row.name for row in rows][:3] == ["/stem/stem.0/Conv", "/stem/stem.0/Conv (add)", "/stem/Relu"]
    assert rows[2].inputs == ("/stem/stem.0/Conv (add)",) and rows[0].inputs == ("x",)
    assert len({row.name for row in rows}) == len(rows)


def test_steps_name_the_same_layers(model: Model) -> None:
    lowered = lower(model, targets.load("rasp3b"))
    found = layers_of(lowered, [name for name, _ in bindings(lowered.module["main"])])
    assert [main for main, _ in found.values() if main] == ["/stem/stem.0/Conv", "y"]
    assert any("/stem/Relu" in layers for _, layers in found.values())
