"""Inputs to verify on: random, or from the user's files, with another engine's outputs beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.model import Preprocessing
from bitkiln.pipeline.verify.samples import make_inputs, read_samples

X = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype("float32")
Y = np.arange(30, dtype="float32").reshape(3, 10)


@pytest.fixture
def read(board, model, tmp_path):
    """Read samples from arrays saved as files: an array as .npy, a mapping as .npz."""

    def save(name, values):
        if values is None:
            return None
        path = tmp_path / f"{name}.{'npz' if isinstance(values, dict) else 'npy'}"
        np.savez(path, **values) if isinstance(values, dict) else np.save(path, values)
        return path

    return lambda x, y=None: read_samples(board().bundle, model, None, save("in", x), save("out", y))


def test_random_inputs_look_like_preprocessed_pixels(model):
    how = Preprocessing(8, 8, mean=(100.0, 110.0, 120.0), scale=(0.5, 1.0, 2.0))
    pixels = make_inputs(replace(model, preprocessing=how))["x"]
    assert pixels.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(pixels / np.float32([0.5, 1, 2]) + np.float32([100, 110, 120]) >= 0, True)
    np.testing.assert_array_equal(make_inputs(model)["x"], make_inputs(model)["x"])


def test_only_the_first_input_is_an_image(tmp_path):
    """A second tensor of four axes may have other channels."""
    entries = [helper.make_tensor_value_info(name, 1, (1, count, 8, 8)) for name, count in (("x", 3), ("side", 2))]
    result = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([helper.make_node("Concat", ["x", "side"], ["y"], axis=1)], "two", entries, [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    inputs = make_inputs(load_model(tmp_path / "m.onnx"))
    assert inputs["x"].max() > 200 and inputs["side"].min() < 0


def test_without_a_file_the_input_is_random(board, model):
    (sample,) = read_samples(board().bundle, model)
    assert "seed 53" in sample.source and sample.expected == ()


@pytest.mark.parametrize("x", [X[:1], X[0], {"x": X[:1], "other": Y}, {"anything": X[:1]}])
def test_one_input_of_a_file(read, x):
    (sample,) = read(x)
    np.testing.assert_array_equal(sample.inputs["x"], X[:1])


@pytest.mark.parametrize("y", [Y, {"y": Y, "other": X}, {"anything": Y}])
def test_a_batch_with_its_expected_outputs(read, y):
    samples = read(X, y)
    assert len(samples) == 3 and "input 2" in samples[2].source
    for at, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.inputs["x"][0], X[at])
        np.testing.assert_array_equal(sample.expected[0], Y[at : at + 1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :4], None, "has shape 3x4x8x3, the model's 1x8x8x3"),
        (X.astype("float64"), None, "is float64, the model's float32"),
        ({"a": X, "b": X}, None, "no tensor 'x'"),
        (X, Y[:2], "2 outputs y for 3 inputs"),
        (X, Y[:, :9], "has shape 3x9, the model's 1x10"),
        (X, {"a": Y, "b": Y}, "no tensor 'y'; it has a, b"),
        (None, Y, "give the --input"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(read, x, y, message):
    with pytest.raises(InputError, match=message):
        read(x, y)
