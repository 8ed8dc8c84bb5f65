"""What people state for their pixels becomes what they mean, or is asked for; and compile says how photos are prepared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.options import ImportOptions
from bitkiln.pipeline.importers.common.preprocessing import plain_image, preparation, with_options
from bitkiln.pipeline.model import Model, TensorSpec

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def network(*shape, layout="NCHW", **fields):
    spec = TensorSpec("x", shape, layout=layout)
    made = Model("net", None, (spec,), (TensorSpec("y", (1, 2)),), "0" * 64, plain_image(spec))
    return replace(made, **fields)


def chosen(model=None, **options):
    return with_options(model or network(1, 3, 8, 8), Path("net.onnx"), ImportOptions(**options))


def of(model, value):
    """What a pixel value becomes in each channel."""
    how = model.preprocessing
    return [(value - mean) * scale for mean, scale in zip(how.mean, how.scale, strict=True)]


def expected(value, order=slice(None)):
    return [(value - mean) / std for mean, std in zip(IMAGENET[0][order], IMAGENET[1][order], strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "imagenet"},
        {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"mean": IMAGENET[0], "std": IMAGENET[1]},
        {"mean": IMAGENET[0], "scale": tuple(1 / each for each in IMAGENET[1])},
    ],
)
def test_the_numbers_everybody_has(options):
    model = chosen(**options)
    np.testing.assert_allclose(of(model, 200), expected(200), rtol=1e-5)
    assert "ImageNet's mean and deviation" in preparation(model)[0]


def test_presets():
    np.testing.assert_allclose(of(chosen(normalize="0..1"), 255), [1] * 3)
    np.testing.assert_allclose([of(chosen(normalize="-1..1"), value)[0] for value in (0, 255)], [-1, 1])
    caffe = chosen(normalize="caffe")
    assert caffe.preprocessing.channel_order == "BGR"
    np.testing.assert_allclose(of(caffe, 0), [-103.939, -116.779, -123.68])
    turned = chosen(normalize="imagenet", channel_order="bgr")
    np.testing.assert_allclose(of(turned, 9), expected(9, slice(None, None, -1)), rtol=1e-5)


def test_numbers_of_either_range():
    np.testing.assert_allclose(of(chosen(mean=(0.5,), std=(0.5,)), 255), [1] * 3)
    np.testing.assert_allclose(of(chosen(mean=(127.5,), std=(127.5,)), 255), [1] * 3)
    np.testing.assert_allclose(of(chosen(mean=(0.5,)), 255), [0.5] * 3)
    np.testing.assert_allclose(of(chosen(mean=(100.0,)), 255), [155] * 3)
    np.testing.assert_allclose(of(chosen(scale=(1 / 255,)), 255), [1] * 3)
    np.testing.assert_allclose(of(chosen(mean=(0.0,), std=(255.0,)), 255), [1] * 3)
    grey = chosen(network(1, 1, 28, 28), mean=(0.1307,), std=(0.3081,))
    np.testing.assert_allclose(of(grey, 255), [(1 - 0.1307) / 0.3081], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mean": (1.5,)}, "may be of pixels of 0..1 or of 0..255"),
        ({"std": (1.0,)}, "may be of pixels of 0..1 or of 0..255"),
        ({"mean": (0.5,), "std": (127.5,)}, "different ranges"),
        ({"mean": (0.5,), "scale": (0.0039,)}, "give --std instead"),
        ({"std": (0.5,), "scale": (2.0,)}, "give one of them"),
        ({"normalize": "0..1", "mean": (0.5,)}, "give one of them"),
        ({"normalize": "caffe", "channel_order": "RGB"}, "goes with --channel-order BGR"),
        ({"scale": (0.0,)}, "leaves nothing"),
        ({"scale": (float("nan"),)}, "not finite"),
        ({"std": (0.0,)}, "no deviation"),
        ({"mean": (300.0,)}, "no mean of pixel values"),
        ({"mean": (-123.0,)}, "it is subtracted"),
        ({"mean": (0.5, 120.0, 120.0)}, "may be of pixels of 0..1 or of 0..255"),
        ({"resize_to": 0}, "a short side of 0"),
        ({"resize_to": 10**9}, "at most 32768"),
        ({"resize": "letterbox", "resize_to": 100}, "not of --resize letterbox"),
        ({"mean": (0.1, 0.2)}, "2 values, the image 3 channels"),
    ],
)
def test_what_makes_no_sense_or_may_mean_two_things_is_asked_for(options, match):
    with pytest.raises(ModelError, match=match):
        chosen(**options)


def test_images_in_grey():
    for shape, layout in (((1, 1, 28, 28), "NCHW"), ((1, 28, 28, 1), "NHWC")):
        how = chosen(network(*shape, layout=layout), normalize="0..1").preprocessing
        assert (how.height, how.width, how.channel_order, how.scale) == (28, 28, "GREY", (1 / 255,))
    with pytest.raises(ModelError, match="three channels"):
        chosen(network(1, 1, 28, 28), normalize="imagenet")
    with pytest.raises(ModelError, match="does not fit an image of 1 channel"):
        chosen(network(1, 1, 28, 28), channel_order="RGB")
    assert plain_image(TensorSpec("x", (1, 1, 1, 16000), layout="NCHW")) is None
    assert plain_image(TensorSpec("x", (4, 3, 8, 8), layout="NCHW")) is None


def test_what_is_said_of_photos():
    photos, assumed = preparation(network(1, 3, 8, 10))
    assert photos == "photos: stretched to 10x8, RGB, 0..255 as they are (assumed)"
    for flag in ("--resize", "--channel-order", "--normalize"):
        assert flag in assumed
    model = chosen(normalize="0..1", resize="short-side", resize_to=12, channel_order="RGB")
    (line,) = preparation(model)
    assert line == "photos: short side to 12, centre 8x8 (--resize), RGB (--channel-order), 0..1 (--normalize 0..1)"
    assert "short side to 12, centre 8x8 (--resize-to)" in preparation(chosen(resize_to=12))[0]
    model = chosen(mean=(0.5,), std=(0.5,), resize="letterbox")
    assert "bars of 127.5 (--resize)" in preparation(model)[0]
    assert "-1..1 (--mean, --std of pixels of 0..1)" in preparation(model)[0]
    named = replace(network(1, 5), labels=("a", "b"), origins={"labels": "labels.txt, beside the model"})
    assert preparation(named) == ["labels: 2, from labels.txt, beside the model"]
