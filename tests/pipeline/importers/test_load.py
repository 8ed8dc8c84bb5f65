"""Choosing the importer, labels and stated preprocessing."""

from __future__ import annotations

import pytest

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers import ImportOptions, load_model

LAYERS = [("ScalingLayer<float>", (1, 1, 3), {"scales": [1, 1, 1]})]


@pytest.fixture
def path(ell):
    return ell.write("C", (1, 1, 3), LAYERS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("card-binry", "did you mean 'card-binary'"),
        ("missing.ell", "No such file"),
        ("missing.bin", r"no such file, and no built-in network .*\.onnx, .*\.ell\.zip, .*card-binary, card-float"),
    ],
)
def test_unknown_models(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_unknown_formats(tmp_path):
    other = tmp_path / "model.h5"
    other.write_text("x")
    with pytest.raises(ModelError, match="no known model format"):
        load_model(other)


def test_labels_beside_the_model(path):
    assert load_model(path).labels == ()
    (path.parent / "categories.txt").write_text("only\ntwo\n")
    assert load_model(path).labels == ()
    (path.parent / "net.txt").write_bytes(b"\xff\xfe")
    (path.parent / "categories.txt").write_text("cat\ndog\nbird, of prey\n")
    assert load_model(path).labels == ("cat", "dog", "bird, of prey")


def test_given_labels(path, tmp_path):
    labels = tmp_path / "names"
    labels.write_text("a\nb\nc")
    assert load_model(path, ImportOptions(labels=labels)).labels == ("a", "b", "c")
    labels.write_text("a\nb")
    with pytest.raises(ModelError, match=r"2 labels.* 3 "):
        load_model(path, ImportOptions(labels=labels))
    labels.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match="UTF-8"):
        load_model(path, ImportOptions(labels=labels))
    with pytest.raises(ModelError, match="No such file"):
        load_model(path, ImportOptions(labels=tmp_path / "missing"))


def test_stated_preprocessing(path):
    options = ImportOptions(mean=(10, 20, 30), scale=(0.5,), channel_order="RGB", resize="short-side", resize_to=4)
    stated = load_model(path, options).preprocessing
    assert (stated.mean, stated.scale, stated.channel_order) == ((10.0, 20.0, 30.0), (0.5,) * 3, "RGB")
    assert (stated.resize, stated.resize_to, stated.height) == ("short-side", 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (1, 2)}, "--mean has 2 values"),
        ({"channel_order": "GBR"}, "channel order 'GBR'"),
        ({"resize": "squash"}, "resize 'squash'"),
        ({"resize": "short-side", "resize_to": -1}, "short side of -1"),
    ],
)
def test_preprocessing_that_makes_no_sense(path, options, message):
    with pytest.raises(ModelError, match=message):
        load_model(path, ImportOptions(**options))


def test_preprocessing_of_what_is_no_image(ell):
    path = ell.write("C", (1, 1, 2), [("ScalingLayer<float>", (1, 1, 2), {"scales": [1, 1]})])
    with pytest.raises(ModelError, match="is no image; leave --channel-order out"):
        load_model(path, ImportOptions(channel_order="RGB"))


def test_shapes_of_fixed_inputs(path):
    assert load_model(path, ImportOptions(shapes={"input": (1, 1, 1, 3)}))
    with pytest.raises(ModelError, match="leave --shape out"):
        load_model(path, ImportOptions(shapes={"input": (1, 2, 2, 3)}))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("m.keras", "TFLiteConverter.from_keras_model"),
        ("m.h5", "TFLiteConverter.from_keras_model"),
        ("m.pt", "torch.onnx.export"),
        ("m.pth", "torch.onnx.export"),
        ("m.pb", "tf2onnx.convert"),
    ],
)
def test_files_of_frameworks_are_refused_with_what_to_type(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=command) as caught:
        load_model(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folders_of_tensorflow(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"TFLiteConverter\.from_saved_model"):
        load_model(tmp_path)


def test_labels_are_named_with_where_they_are(tmp_path, write_onnx):
    from onnx import helper

    path = write_onnx([helper.make_node("Relu", ["x"], ["y"])], {}, [1, 2])
    assert load_model(path).origins["labels"] == ""
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    assert "labels.txt, beside the model" in load_model(path).origins["labels"]
