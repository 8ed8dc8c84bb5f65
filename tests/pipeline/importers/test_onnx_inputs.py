"""Inputs of ONNX networks that are no floats, and those that the user fixes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitkiln import targets
from bitkiln.pipeline import reference, run
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import ModelError, SetupError, UnsupportedLayer
from bitkiln.pipeline.importers import ImportOptions, load_model
from bitkiln.pipeline.verify.rivals import by_onnxruntime
from tests.pipeline.conftest import NoRecords
from tests.pipeline.importers.test_onnx import node

RNG = np.random.default_rng(5)

IDS = np.int64([[1, 49, -1, -50, 0, 3]])
PIXELS = RNG.integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)

#: Nodes from x to y, weights, and x.
CASES = {
    "ids": ([node("Gather", ["e", "x"], ["g"]), node("ReduceMax", ["g"], axes=[1])], {"e": (50, 8)}, IDS),
    "pixels": ([node("Cast", ["x"], ["f"], to=1), node("Conv", ["f", "w"])], {"w": (4, 3, 3, 3)}, PIXELS),
    "mask": ([node("Where", ["x", "a", "b"])], {"a": (6,), "b": (6,)}, RNG.integers(0, 2, (1, 6)).astype(bool)),
    "integers": (
        [node("Clip", ["x", "low"], ["c"]), node("Cast", ["c"], to=1)],
        {"low": np.int32(-2)},
        np.int32([[-9, 3]]),
    ),
}


def write(folder, nodes, weights, x, opset=13):
    arrays = {
        name: RNG.normal(size=value).astype(np.float32) if isinstance(value, tuple) else value
        for name, value in weights.items()
    }
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_integers(tmp_path, name):
    pytest.importorskip("onnxruntime")
    nodes, weights, x = CASES[name]
    path = write(tmp_path, nodes, weights, x)
    model = load_model(path)
    assert model.inputs[0].dtype == str(x.dtype)
    (want,) = by_onnxruntime(path, {"x": x})
    (got,) = reference.run(model.module, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def test_indices_from_outside_take_the_nearest(tmp_path):
    """What lies outside of a table must not be read: on the board as in the reference."""
    path = write(tmp_path, [node("Gather", ["e", "x"])], {"e": (5, 2)}, IDS)
    model, board = load_model(path), targets.load("rasp3b")
    bundle = compile_model(model, board, NoRecords(), tmp_path / "bundle")
    x = np.int64([[4, 5, 1 << 40, -5, -6, -(1 << 40)]])
    (want,) = reference.run(model.module, {"x": x})
    np.testing.assert_array_equal(want[0, [0, 0, 3, 3]], want[0, [1, 2, 4, 5]])
    try:
        (got,) = run.on_emulator(bundle, board, {"x": x}).outputs.values()
    except SetupError as missing:
        pytest.skip(str(missing))
    np.testing.assert_array_equal(got, want)


def test_pixels_as_integers_are_prepared_as_they_are(tmp_path):
    path = write(tmp_path, *CASES["pixels"])
    how = load_model(path).preprocessing
    assert (how.channel_order, how.mean, how.scale) == ("RGB", (0, 0, 0), (1, 1, 1))
    with pytest.raises(ModelError, match="as uint8"):
        load_model(path, ImportOptions(normalize="imagenet"))


def test_an_input_may_be_fixed(tmp_path):
    """A rate that chooses a branch, as in voice detectors."""
    pytest.importorskip("onnxruntime")
    branches = {
        name: helper.make_graph(
            [node(kind, ["x"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
        for name, kind in (("then", "Neg"), ("else", "Exp"))
    }
    nodes = [
        node("Equal", ["rate", "fast"], ["c"]),
        node("If", ["c"], then_branch=branches["then"], else_branch=branches["else"]),
    ]
    x = RNG.normal(size=(1, 4)).astype(np.float32)
    path = write(tmp_path, nodes, {"fast": np.int64(16000)}, x)
    proto = onnx.load(path)
    proto.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    onnx.save(proto, path)
    with pytest.raises(UnsupportedLayer, match="--value"):
        load_model(path)
    for rate, want in ((16000, -x), (8000, np.exp(x))):
        model = load_model(path, ImportOptions(values={"rate": rate}))
        assert [spec.name for spec in model.inputs] == ["x"]
        np.testing.assert_allclose(reference.run(model.module, {"x": x})[0], want, rtol=1e-6)
        np.testing.assert_allclose(by_onnxruntime(path, {"x": x}, model.fixed)[0], want, rtol=1e-6)
    for values, message in (
        ({"speed": 1.0}, "the model's inputs are x, rate"),
        ({"rate": 0.5}, "rate=0.5 is no int64"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(path, ImportOptions(values=values))


@pytest.mark.parametrize("opset", [7, 8])
def test_old_opsets(tmp_path, opset):
    """Attributes that later opsets no longer have."""
    pytest.importorskip("onnxruntime")
    x = RNG.normal(size=(1, 3, 6, 6)).astype(np.float32)
    statistics = {name: np.abs(RNG.normal(size=3)).astype(np.float32) + 0.5 for name in ("g", "b", "m", "v")}
    nodes = [
        node("BatchNormalization", ["x", *statistics], ["n"], **({"spatial": 1} if opset == 7 else {})),
        node("Upsample", ["n"], ["u"], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
        node("AveragePool", ["u"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
        node("Flatten", ["p"], ["f"]),
        node("Softmax", ["f"]),
    ]
    path = write(tmp_path, nodes, statistics, x, opset)
    (want,) = by_onnxruntime(path, {"x": x})
    (got,) = reference.run(load_model(path).module, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_a_batch_that_the_file_fixes_inside_is_named(tmp_path):
    nodes = [node("Reshape", ["x", "rows"], ["f"]), node("MatMul", ["f", "w"])]
    path = write(tmp_path, nodes, {"rows": np.int64([4, -1]), "w": (12, 5)}, np.zeros((4, 3, 2, 2), np.float32))
    assert load_model(path).outputs[0].shape == (4, 5)
    with pytest.raises(ModelError, match="the file is made for x=4,3,2,2"):
        load_model(path, ImportOptions(shapes={"x": (1, 3, 2, 2)}))
