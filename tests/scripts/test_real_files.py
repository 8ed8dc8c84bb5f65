"""The sweep over real files: what it finds, and what it says of right, wrong and refused ones."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from benchmarks.real_files import found_in, judge, main

RNG = np.random.default_rng(2)


def write(path: Path, kind: str = "Relu") -> Path:
    """A convolution and an operator behind it."""
    weight = numpy_helper.from_array(RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(kind, ["c"], ["y"], name="last")]
    entry, result = (
        helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", (1, 3, 8, 8)), ("y", None))
    )
    graph = helper.make_graph(nodes, "net", [entry], [result], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_models_are_found_in_folders_and_wheels(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx")
    (tmp_path / "notes.txt").write_text("none")
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.write(tmp_path / "a.onnx", "p/models/b.onnx")
        wheel.writestr("p/__init__.py", "")
    names = [name for name, file in found_in(tmp_path, tmp_path / "scratch") if file.is_file()]
    assert names == [str(tmp_path / "a.onnx"), "p.whl:p/models/b.onnx"]


def test_files_are_judged(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    right = judge("a", write(tmp_path / "a.onnx"), {}, on_board=False)
    assert right.status == "right" and right.error is not None and right.error < 1e-5
    refused = judge("b", write(tmp_path / "b.onnx", "Unique"), {}, on_board=False)
    assert refused.status == "refused" and "Unique" in refused.text
    np.savez(tmp_path / "a.npz", x=np.ones((1, 3, 8, 8), np.float32), y=np.ones((1, 4, 6, 6), np.float32))
    assert judge("a", tmp_path / "a.onnx", {}, on_board=False).status == "differs"


def test_the_table_ends_with_a_count_and_wrong_files_with_status_1(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", "Unique")
    done = CliRunner().invoke(main, [str(tmp_path)])
    assert done.exit_code == 0 and "1 file: 0 right" in done.output and "1 refused" in done.output
    write(tmp_path / "b.onnx")
    np.savez(tmp_path / "b.npz", x=np.ones((1, 3, 8, 8), np.float32), y=np.ones((1, 4, 6, 6), np.float32))
    assert CliRunner().invoke(main, [str(tmp_path)]).exit_code == 1
