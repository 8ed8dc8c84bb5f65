"""TensorFlow Lite files compiled and run as the board runs them, against the outputs of their own runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tflite_file import TfliteFile
from bitkiln import targets
from bitkiln.pipeline import reference, run
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.importers import load_model
from tests.pipeline.conftest import NoRecords
from tests.pipeline.importers.test_tflite_layers import NONE, RELU, SAME, VALID, ints, normal
from tests.pipeline.importers.test_tflite_lce import bconv, convolved, options, signs, words


def compiled(folder, path, inputs, target="rasp3b"):
    """The outputs of the model at ``path``, run for each of ``inputs``."""
    board = targets.load(target)
    model = load_model(path)
    entry = model.module["main"].params[0].name
    bundle = compile_model(model, board, NoRecords(), folder / "bundle")
    try:
        answers = [run.on_emulator(bundle, board, {entry: x}) for x in inputs]
    except SetupError as problem:
        pytest.skip(str(problem))
    return [list(answer.outputs.values()) for answer in answers]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bconv_chain_bitpacked", 1),
        ("bconv_same_zero_bn", 1),
        ("bconv_sign_after_pool", 1),
        ("cifar10_resnet18_w1a1", 1),
        ("imagenet_resnet18_w1a1", 1),
    ],
)
def test_files_of_larq_compute_engine(tmp_path, shared, name, count):
    folder = shared / "models" / "lce"
    golden = np.load(folder / f"{name}.npz")
    images, expected = golden["x"][:count], golden["y"][:count]
    for (got,), want in zip(compiled(tmp_path, folder / f"{name}.tflite", images[:, None]), expected, strict=True):
        assert got[0].argmax() == want.argmax()
        np.testing.assert_allclose(got[0], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("target", ["rasp3b", "rasp3b32"])
def test_bits_from_input_to_output(tmp_path, target):
    """Words of odd channel counts go in and out; thresholds reach from never to always; groups, zero padding, pooling."""
    values = signs(1, 9, 8, 45)
    pooled = values.reshape(1, 9, 4, 2, 45).max(axis=3)
    first, second, third = signs(70, 3, 3, 45), signs(64, 3, 3, 70), signs(6, 3, 2, 32)
    thresholds = [np.full(count, reach // 2, np.int32) for count, reach in ((70, 405), (64, 630))]
    thresholds[0][:3] = np.int32([-(2**31), 2**31 - 1, 210])
    scale, bias = normal(6), normal(6)
    expected = [pooled]
    for weight, threshold, pad in ((first, thresholds[0], 1), (second, thresholds[1], 0)):
        reach = int(np.prod(weight.shape[1:]))
        sums = convolved(expected[-1], weight, (1, 1), (1, 1), SAME, pad)
        expected.append(np.where((reach - sums) / 2 > threshold, np.float32(-1), np.float32(1)))
    floats = np.maximum(convolved(expected[-1], third, (2, 1), (1, 1), VALID, 0, groups=2), 0) * scale + bias
    file = TfliteFile()
    source = file.tensor(words(values).shape, "int32")
    window = {"filter_height": 1, "filter_width": 2, "padding": VALID, "stride_height": 1, "stride_width": 2}
    pool = file.custom("LceBMaxPool2d", [source], words(pooled).shape, "int32", options(**window))
    one = bconv(file, pool, first, expected[1].shape, threshold=thresholds[0], channels=45, padding=SAME, pad=1)
    two = bconv(file, one, second, expected[2].shape, threshold=thresholds[1], channels=70, padding=SAME)
    last = bconv(
        file, two, third, floats.shape, multiplier=scale, bias=bias, channels=64, strides=(2, 1), activation=RELU
    )
    unpacked = file.custom("LceDequantize", [one], expected[1].shape)
    path = tmp_path / "network.tflite"
    path.write_bytes(file.write(source, [pool, one, two, unpacked, last]))
    (results,) = compiled(tmp_path, path, [words(values)], target)
    for got, want in zip(results, [words(each) for each in expected], strict=False):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(results[3], expected[1])
    np.testing.assert_allclose(results[4], floats, rtol=1e-6, atol=1e-4)


def test_float_operators(tmp_path):
    """Layers that the passes fuse and ones that they leave alone, in one network."""
    x = normal(1, 9, 9, 3)
    stem, depthwise, dense = normal(8, 3, 3, 3), normal(1, 3, 3, 16), normal(5, 16)
    window = {"Padding": SAME, "StrideH": 2, "StrideW": 2, "DilationHFactor": 1, "DilationWFactor": 1}
    file = TfliteFile()
    source = file.tensor(x.shape)
    y = file.operator(
        "CONV_2D",
        [source, file.constant(stem), file.constant(normal(8))],
        (1, 5, 5, 8),
        "Conv2DOptions",
        **window,
        FusedActivationFunction=RELU,
    )
    y = file.operator("PAD", [y, file.constant(ints(0, 0, 1, 1, 1, 1, 0, 0).reshape(4, 2))], (1, 7, 7, 8))
    pool = {"Padding": VALID, "StrideH": 2, "StrideW": 2, "FilterHeight": 3, "FilterWidth": 3}
    y = file.operator("MAX_POOL_2D", [y], (1, 3, 3, 8), "Pool2DOptions", **pool)
    y = file.operator(
        "DEPTHWISE_CONV_2D",
        [y, file.constant(depthwise), file.constant(normal(16))],
        (1, 2, 2, 16),
        "DepthwiseConv2DOptions",
        **window,
        DepthMultiplier=2,
        FusedActivationFunction=NONE,
    )
    y = file.operator("HARD_SWISH", [y], (1, 2, 2, 16))
    larger = file.operator(
        "RESIZE_BILINEAR", [y, file.constant(ints(3, 5))], (1, 3, 5, 16), "ResizeBilinearOptions", HalfPixelCenters=True
    )
    picked = file.operator(
        "RESIZE_NEAREST_NEIGHBOR", [y, file.constant(ints(3, 5))], (1, 3, 5, 16), "ResizeNearestNeighborOptions"
    )
    mirrored = file.operator(
        "MIRROR_PAD",
        [larger, file.constant(ints(0, 0, 0, 0, 2, 1, 0, 0).reshape(4, 2))],
        (1, 3, 8, 16),
        "MirrorPadOptions",
        Mode=1,
    )
    mean = file.operator("MEAN", [picked, file.constant(ints(1, 2))], (1, 16), "ReducerOptions")
    scores = file.operator(
        "FULLY_CONNECTED", [mean, file.constant(dense), file.constant(normal(5))], (1, 5), "FullyConnectedOptions"
    )
    scores = file.operator("SOFTMAX", [scores], (1, 5), "SoftmaxOptions", Beta=1.0)
    elu = file.operator("ELU", [mirrored], (1, 3, 8, 16))
    path = tmp_path / "network.tflite"
    path.write_bytes(file.write(source, [scores, elu]))
    model = load_model(path)
    expected = reference.run(model.module, {model.module["main"].params[0].name: x})
    (results,) = compiled(tmp_path, path, [x])
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
