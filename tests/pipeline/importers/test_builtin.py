"""The built-in networks: the cards' layers, the same bytes each time, lively bits."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bitkiln.pipeline import reference
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.importers import BUILTIN_NAMES, builtin, load_model
from bitkiln.pipeline.importers.ell.writer import LayerRecord
from bitkiln.pipeline.inspect import layer_table
from bitkiln.pipeline.ir.graph import bindings

BIAS = LayerRecord("BiasLayer<float>", (1, 1, 3), {"bias": [0, 0, 0]})

#: What the card calls a layer, and the Relax operators it becomes here.
CARD_OPERATORS = {
    "Minus": ["add"],
    "Plus": ["add"],
    "Convolution(ReLU)": ["conv2d", "add", "relu"],
    "Convolution": ["conv2d", "add"],
    "BatchNormalization": ["multiply", "add", "multiply", "add"],
    "MaxPooling": ["max_pool2d"],
    "AveragePooling": ["avg_pool2d"],
    "BinaryConvolution": ["binarize", "bconv2d"],
    "PReLU": ["prelu"],
    "ElementTimes": ["multiply"],
    "Softmax": ["softmax"],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Both networks, from archives in a fresh cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return {name: load_model(name) for name in BUILTIN_NAMES}


def test_the_work_is_that_of_the_gallery_networks(models):
    rows = {name: layer_table(model) for name, model in models.items()}
    binary = sum(row.macs for row in rows["card-binary"] if row.binary)
    assert (binary, sum(row.macs for row in rows["card-binary"]) - binary) == (364_511_232, 141_377_536)
    assert sum(row.macs for row in rows["card-float"]) == 485_392_384
    assert sum(row.kind == "conv2d" for row in rows["card-float"]) == 8


def test_models_are_complete(models):
    for name, size in (("card-binary", 224), ("card-float", 256)):
        model = models[name]
        assert (model.name, model.inputs[0].shape) == (name, (1, size, size, 3))
        assert (model.preprocessing.channel_order, model.preprocessing.resize_to) == ("BGR", size)
        assert (len(model.labels), model.labels[7]) == (1000, "class 007")


def test_half_of_the_bits_are_set_and_the_answer_is_decided(models):
    rng = np.random.Generator(np.random.PCG64(5))
    answers = set()
    for image in builtin._photographs(3, 224, rng):
        values = reference.evaluate(models["card-binary"].module, {"input": image[None].astype(np.float32)})
        shares = [np.unpackbits(bits).mean() for name, bits in values.items() if name.endswith("_bits")]
        assert len(shares) == 5
        assert all(0.25 < share < 0.75 for share in shares)
        scores = np.sort(values["softmax_54"].ravel())[::-1]
        assert scores[0] - scores[1] > 1e-3
        answers.add(int(values["softmax_54"].argmax()))
    assert len(answers) > 1


def test_a_few_flipped_bits_leave_the_top_five_in_order(models):
    module = models["card-binary"].module
    first = next(name for name, _ in bindings(module["main"]) if name.endswith("_bits"))
    rng = np.random.Generator(np.random.PCG64(6))
    for image in builtin._photographs(4, 224, rng):
        values = reference.evaluate(module, {"input": image[None].astype(np.float32)}, [first, "softmax_54"])
        bits = values[first].copy()
        for index in rng.choice(8 * bits.size, 5, replace=False):
            bits.flat[index // 8] ^= 1 << (index % 8)
        flipped = reference.evaluate(module, {first: bits}, ["softmax_54"])
        assert np.array_equal(_top_five(flipped), _top_five(values))


def _top_five(values):
    return np.argsort(-values["softmax_54"].ravel(), kind="stable")[:5]


def test_archives_are_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "_CALIBRATION_IMAGES", 2)
    for name in "ab":
        builtin.write("card-binary", tmp_path / name / "card-binary.ell.zip")
    first, second = ((tmp_path / name / "card-binary.ell.zip").read_bytes() for name in "ab")
    assert first == second


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(builtin._Network, "__init__", lambda self, *_: setattr(self, "layers", [BIAS]))
    monkeypatch.setitem(builtin._NETWORKS, "card-float", (256, lambda network: None))
    with pytest.raises(SetupError, match="set XDG_CACHE_HOME"):
        load_model("card-float")


def test_layers_are_those_of_the_card(models, shared):
    card = next((shared / "cards").glob("000_*.txt")).read_text()
    layers = re.findall(r"([\w()]+) :\s+[\dx]+ +-> +(\d+)x(\d+)x(\d+) +input padding \d+ +output padding (\d+)", card)
    assert len(layers) == 36
    rows = iter(layer_table(models["card-binary"]))
    for name, *numbers in layers:
        height, width, channels, padding = map(int, numbers)
        parts = [next(rows) for _ in CARD_OPERATORS[name]]
        assert [row.kind for row in parts] == CARD_OPERATORS[name]
        if name != "Softmax":  # the card gives its size as 1x1x1
            assert parts[-1].shape == (1, height - 2 * padding, width - 2 * padding, channels)
    assert next(rows, None) is None
