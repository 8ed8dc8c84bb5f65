"""The example for continuous integration: a good build passes, a slower layer fails it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci"


def small_network(folder: Path) -> Path:
    """One convolution, 16x16, 8 to 16 channels."""
    weights = np.random.default_rng(3).normal(size=(16, 8, 3, 3)).astype("float32")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, folder / "small.onnx")
    return folder / "small.onnx"


def check(folder: Path, baseline: dict) -> subprocess.CompletedProcess[str]:
    """Run the example in ``folder``."""
    (folder / "baseline.json").write_text(json.dumps(baseline))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [EXAMPLE / "check", "small.onnx", "baseline.json", "2"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_a_slower_layer_fails_the_build(tmp_path: Path) -> None:
    small_network(tmp_path)
    first = check(tmp_path, {"measured_by": "nothing yet", "ms": 0, "steps": []})
    assert first.returncode == 1 and "make a new baseline" in first.stdout, first.stderr
    profile = json.loads((tmp_path / "ci-profile.json").read_text())
    slower = [sys.executable, EXAMPLE / "slower.py", tmp_path / "baseline.json", tmp_path / "ci-profile.json"]

    (tmp_path / "baseline.json").write_text(json.dumps(profile))
    assert subprocess.run(slower, timeout=60).returncode == 0

    longest = max(profile["steps"], key=lambda step: step["ms"])
    longest["ms"] *= 0.9
    (tmp_path / "baseline.json").write_text(json.dumps(profile))
    done = subprocess.run(slower, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"slower: {longest['name']}" in done.stdout
