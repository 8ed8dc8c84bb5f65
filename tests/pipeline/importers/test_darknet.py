"""darknet networks: every layer against its definition in numpy, binary layers to the bit."""

from __future__ import annotations

import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline import reference, run
from bitkiln.pipeline.compile import compile_model
from bitkiln.pipeline.importers import ImportOptions, load_model
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.meaning.tables import check_head
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.reference import heads
from tests.pipeline.importers.darknet_files import (
    FIRST,
    FORK,
    ORIGINAL,
    SCALAR_ACTIVATIONS,
    TRANSPOSED,
    Darknet,
    convolution,
    normalized,
    sigmoid,
    softmax,
    windows,
)

RNG = np.random.default_rng(11)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whatever ran before, a test draws the same numbers."""
    RNG.bit_generator.state = START


@pytest.fixture
def darknet(tmp_path: Path) -> Darknet:
    return Darknet(tmp_path)


def evaluate(model: Model, x: np.ndarray) -> list[np.ndarray]:
    """The network's results without their batch axis."""
    return [np.asarray(y)[0] for y in reference.run(model.module, {"input": x[None].astype(np.float32)})]


def image(*size: int) -> np.ndarray:
    return RNG.normal(size=size).astype(np.float32)


def statistics(count: int) -> list[np.ndarray]:
    """Biases, scales, means and variances."""
    scales = RNG.uniform(-1.5, 1.5, count)
    return [RNG.normal(size=count), scales, RNG.normal(size=count), RNG.uniform(0.01, 2, count)]


@pytest.mark.parametrize("header", [ORIGINAL, FIRST, FORK, TRANSPOSED])
def test_convolutions_with_batch_norm_of_every_writer(darknet, header):
    weights, values = image(4, 3, 3, 3), statistics(4)
    values[3][0] = 1e-6  # where the epsilons differ
    cfg = darknet.write(
        "[convolutional]\nbatch_normalize=1\nfilters=4\nsize=3\nstride=1\npad=1\nactivation=leaky",
        [*values, weights],
        header=header,
    )
    x = image(3, 6, 5)
    y = normalized(convolution(x, weights, pad=1), *values, fork=header == FORK)
    np.testing.assert_allclose(evaluate(load_model(cfg), x)[0], np.where(y > 0, y, 0.1 * y), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "kwargs", "shape"),
    [
        ("filters=6\nsize=3\nstride=2\npadding=2\ngroups=2", {"stride": (2, 2), "pad": 2, "groups": 2}, (6, 2, 3, 3)),
        ("filters=5\nsize=2\nstride=1\npad=1", {"pad": 1}, (5, 4, 2, 2)),
        (
            "filters=4\nsize=3\nstride_x=1\nstride_y=2\npad=1\ngroups=4",
            {"stride": (2, 1), "pad": 1, "groups": 4},
            (4, 1, 3, 3),
        ),
        ("filters=3\nsize=3\ndilation=2\npad=1", {"pad": 2, "dilation": 2}, (3, 4, 3, 3)),
        ("filters=3\nsize=1\nstride=2\npad=1", {"stride": (2, 2)}, (3, 4, 1, 1)),
    ],
)
def test_convolutions_with_bias(darknet, options, kwargs, shape):
    weights, biases = image(*shape), image(shape[0])
    cfg = darknet.write(f"[conv]\n{options}\nactivation=linear", [biases, weights], (4, 7, 6))
    x = image(4, 7, 6)
    expected = convolution(x, weights, **kwargs) + biases[:, None, None]
    np.testing.assert_allclose(evaluate(load_model(cfg), x)[0], expected, rtol=1e-4, atol=1e-5)


def test_flipped_weights_are_stored_taps_first(darknet):
    weights, biases = image(4, 3, 3, 3), image(4)
    flipped = weights.reshape(4, -1).T
    layers = "[convolutional]\nfilters=4\nsize=3\nactivation=linear"
    straight = load_model(darknet.write(layers, [biases, weights]))
    other = load_model(darknet.write(f"{layers}\nflipped=1", [biases, flipped], name="flipped"))
    x = image(3, 6, 5)
    np.testing.assert_array_equal(evaluate(straight, x)[0], evaluate(other, x)[0])


@pytest.mark.parametrize("header", [ORIGINAL, TRANSPOSED])
@pytest.mark.parametrize("normalize", [0, 1])
def test_dense_layers_read_the_image_channel_by_channel(darknet, header, normalize):
    weights, values = image(7, 90), statistics(7)
    stored = weights.T if header == TRANSPOSED else weights
    arrays = [values[0], stored, *(values[1:] if normalize else [])]
    layers = f"[connected]\noutput=7\nactivation=relu\nbatch_normalize={normalize}\n[softmax]\ngroups=1\ntemperature=2"
    x = image(3, 6, 5)
    y = weights.astype(np.float64) @ x.ravel()
    y = normalized(y, *values) if normalize else y + values[0]
    model = load_model(darknet.write(layers, arrays, header=header))
    np.testing.assert_allclose(evaluate(model, x)[0], softmax(np.maximum(y, 0) / 2), rtol=1e-4, atol=1e-6)
    assert model.outputs[0].shape == (1, 7)


@pytest.mark.parametrize("name", SCALAR_ACTIVATIONS)
def test_activations(darknet, name):
    x = np.concatenate([np.linspace(-25, 25, 201), [-4, -2, -1, 0, 1, 4, 6]]).astype(np.float32).reshape(1, 1, -1)
    model = load_model(darknet.write(f"[activation]\nactivation={name}", size=x.shape))
    expected = np.array([SCALAR_ACTIVATIONS[name](float(v)) for v in x.ravel()])
    np.testing.assert_allclose(evaluate(model, x)[0].ravel(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kernel", "stride", "pads"),
    [
        ("size=2\nstride=2", 2, 2, (0, 0, 1, 1)),
        ("size=2\nstride=1", 2, 1, (0, 0, 1, 1)),
        ("size=3\nstride=2", 3, 2, (1, 1, 1, 1)),
        ("size=5\nstride=1", 5, 1, (2, 2, 2, 2)),
        ("size=3\nstride=2\npadding=0", 3, 2, (0, 0, 0, 0)),
        ("stride=3", 3, 3, (1, 1, 1, 1)),
    ],
)
def test_max_pooling_pads_both_sides_together(darknet, options, kernel, stride, pads):
    x = image(3, 7, 5) - 5
    expected = windows(x, kernel, (stride, stride), pads, -np.inf).max(axis=(3, 4)).transpose(2, 0, 1)
    model = load_model(darknet.write(f"[maxpool]\n{options}", size=x.shape))
    np.testing.assert_array_equal(evaluate(model, x)[0], expected)


def test_averages(darknet):
    x = image(3, 7, 5)
    taps = windows(x, 2, (2, 2), (0, 0, 1, 1), np.nan)
    expected = np.nanmean(taps, axis=(3, 4)).transpose(2, 0, 1)
    local = load_model(darknet.write("[local_avgpool]\nsize=2\nstride=2", size=x.shape))
    np.testing.assert_allclose(evaluate(local, x)[0], expected, rtol=1e-5)
    whole = load_model(darknet.write("[avgpool]", size=x.shape))
    np.testing.assert_allclose(evaluate(whole, x)[0], x.mean(axis=(1, 2)), rtol=1e-5)


def test_locally_connected_weights_differ_by_place(darknet):
    weights, biases = image(12, 2, 27), image(2, 3, 4)  # 3x4 places
    x = image(3, 5, 6)
    taps = windows(x, 3, (1, 1), (0, 0, 0, 0), 0).reshape(12, 27)
    expected = np.einsum("pk,pfk->fp", taps, weights).reshape(2, 3, 4) + biases
    cfg = darknet.write("[local]\nfilters=2\nsize=3\nstride=1\nactivation=linear", [biases, weights], x.shape)
    np.testing.assert_allclose(evaluate(load_model(cfg), x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_biases", [False, True])
def test_a_batch_norm_of_its_own_has_biases_in_the_fork_alone(darknet, with_biases):
    values = statistics(3)
    stored = values if with_biases else values[1:]
    x = image(3, 6, 5)
    expected = normalized(x.astype(np.float64), values[0] if with_biases else np.zeros(3), *values[1:])
    model = load_model(darknet.write("[batchnorm]", stored))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_neighbouring_channels_are_summed_as_darknet_slides_them(darknet):
    x = image(9, 2, 3)
    squares, sums = (x.astype(np.float64) ** 2), np.zeros((9, 2, 3))
    sums[0] = squares[0] + squares[1]
    for k in range(1, 9):
        sums[k] = sums[k - 1] + (squares[k + 2] if k + 2 < 9 else 0) - (squares[k - 3] if k >= 3 else 0)
    cfg = darknet.write("[normalization]\nsize=5\nalpha=0.01\nbeta=0.5\nkappa=2", size=x.shape)
    np.testing.assert_allclose(evaluate(load_model(cfg), x)[0], x / np.sqrt(2 + 0.01 * sums), rtol=1e-5)


def test_l2norm_and_logistic(darknet):
    x = image(4, 3, 2)
    model = load_model(darknet.write("[l2norm]\n[logistic]", size=x.shape))
    expected = sigmoid(x / np.sqrt((x.astype(np.float64) ** 2).sum(axis=0)))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("adjust", [True, False])
def test_crops_take_the_centre(darknet, adjust):
    x = image(3, 9, 8)
    layers = f"[crop]\ncrop_height=6\ncrop_width=5\nflip=1\nnoadjust={int(not adjust)}\n[dropout]\nprobability=.5"
    part = x[:, 1:7, 1:6]
    model = load_model(darknet.write(layers, size=x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], 2 * part - 1 if adjust else part, rtol=1e-6)


def test_routes_by_number_from_either_end(darknet):
    x = image(4, 4, 4)
    layers = "[activation]\nactivation=relu\n[logistic]\n[route]\nlayers = 0, -1\n[route]\nlayers=-1,-3\ngroups=2\ngroup_id=1"
    relu = np.maximum(x, 0)
    gates = sigmoid(relu)
    both = np.concatenate([relu, gates])
    model = load_model(darknet.write(layers, size=x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], np.concatenate([both[4:], relu[2:]]), rtol=1e-6)


@pytest.mark.parametrize("own", [(4, 4, 4), (2, 4, 4), (6, 4, 4), (6, 2, 2), (3, 4, 4)])
def test_shortcuts_add_what_overlaps(darknet, own):
    """The other is [4, 4, 4]; a smaller image samples it, further channels stay as they are."""
    weights, biases = image(own[0], 4, 1, 1), image(own[0])
    pool = "[maxpool]\nsize=2\nstride=2\n" if own[1] == 2 else "[dropout]\n"
    layers = (
        f"[activation]\nactivation=linear\n[convolutional]\nfilters={own[0]}\nsize=1\nactivation=linear\n{pool}"
        "[shortcut]\nfrom=0\nactivation=relu\nalpha=0.5\nbeta=2"
    )
    x = image(4, 4, 4)
    y = convolution(x, weights) + biases[:, None, None]
    if own[1] == 2:
        y = windows(y, 2, (2, 2), (0, 0, 0, 0), 0).max(axis=(3, 4)).transpose(2, 0, 1)
    shared, step = min(4, own[0]), 4 // own[1]
    y[:shared] = 0.5 * y[:shared] + 2 * x[:shared, ::step, ::step]
    model = load_model(darknet.write(layers, [biases, weights], x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], np.maximum(y, 0), rtol=1e-4, atol=1e-5)


def test_shortcuts_from_several_layers_and_products(darknet):
    x = image(4, 3, 3)
    layers = (
        "[activation]\nactivation=linear\n[logistic]\n[shortcut]\nfrom=-2,0\nactivation=linear\n"
        "[avgpool]\n[scale_channels]\nfrom=1\n[sam]\nfrom=0"
    )
    gates = sigmoid(x)
    scaled = gates * (gates + 2 * x).mean(axis=(1, 2), keepdims=True)
    model = load_model(darknet.write(layers, size=x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], scaled * x, rtol=1e-4, atol=1e-6)


def test_products_per_pixel(darknet):
    x = image(3, 4, 5)
    weights, biases = image(1, 3, 1, 1), image(1)
    layers = "[logistic]\n[conv]\nfilters=1\nsize=1\nactivation=logistic\n[scale_channels]\nfrom=0\nscale_wh=1"
    gates = sigmoid(x)
    expected = gates * sigmoid(convolution(gates, weights) + biases)
    model = load_model(darknet.write(layers, [biases, weights], x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("stride", [2, 3, -2])
def test_upsampling_repeats_and_downsampling_sums(darknet, stride):
    x = image(3, 4, 6)
    if stride > 0:
        expected = 0.5 * x.repeat(stride, axis=1).repeat(stride, axis=2)
    else:
        expected = 0.5 * x.reshape(3, 2, 2, 3, 2).sum(axis=(2, 4))
    model = load_model(darknet.write(f"[upsample]\nstride={stride}\nscale=0.5", size=x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [0, 1])
def test_reorg_has_darknets_own_order(darknet, reverse):
    """Element by element, as darknet computes its indices from the input's size in both directions."""
    x = image(8, 4, 6)
    channels, height, width = x.shape
    flat, out = x.ravel(), np.zeros(x.size, np.float32)
    for k, j, i in np.ndindex(channels, height, width):
        inner = i + width * (j + height * k)
        offset = k // (channels // 4)
        across, down = i * 2 + offset % 2, j * 2 + offset // 2
        outer = across + width * 2 * (down + height * 2 * (k % (channels // 4)))
        out[outer if reverse else inner] = flat[inner if reverse else outer]
    expected = out.reshape((2, 8, 12) if reverse else (32, 2, 3))
    model = load_model(darknet.write(f"[reorg]\nstride=2\nreverse={reverse}", size=x.shape))
    np.testing.assert_array_equal(evaluate(model, x)[0], expected)


def test_reorg3d_is_space_to_depth(darknet):
    x = image(3, 4, 6)
    expected = np.concatenate([x[:, r::2, c::2] for r in range(2) for c in range(2)])
    model = load_model(darknet.write("[reorg3d]\nstride=2", size=x.shape))
    np.testing.assert_array_equal(evaluate(model, x)[0], expected)


def test_every_yolo_layer_is_an_output(darknet):
    x = image(14, 3, 2)
    layers = (
        "[yolo]\nmask=0,1\nclasses=2\nnum=6\nanchors=1,2, 3,4\n[route]\nlayers=-1\n"
        "[yolo]\nmask=3,4\nclasses=2\nscale_x_y=1.2\n[yolo]\nmask=0,1\nclasses=2\nnew_coords=1\nscale_x_y=2"
    )
    model = load_model(darknet.write(layers, size=x.shape))

    def yolo(x: np.ndarray, stretch: float, plain: bool = False) -> np.ndarray:
        boxes = x.astype(np.float64).reshape(2, 7, 3, 2)
        if not plain:
            boxes[:, [0, 1, 4, 5, 6]] = sigmoid(boxes[:, [0, 1, 4, 5, 6]])
        boxes[:, :2] = boxes[:, :2] * stretch - 0.5 * (stretch - 1)
        return boxes.reshape(14, 3, 2)

    first = yolo(x, 1)
    expected = [first, yolo(first, 1.2), yolo(yolo(first, 1.2), 2, plain=True)]
    assert [spec.name for spec in model.outputs] == ["yolo_0", "yolo_2", "yolo_3"]
    for found, wanted in zip(evaluate(model, x), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("classes", "background"), [(1, 0), (0, 0), (1, 1)])
def test_region_layers_score_anchor_by_anchor(darknet, classes, background):
    x = image(16, 3, 2)
    model = load_model(
        darknet.write(
            f"[region]\nclasses=3\ncoords=4\nnum=2\nsoftmax={classes}\nbackground={background}\nbias_match=1",
            size=x.shape,
        )
    )
    boxes = x.astype(np.float64).reshape(2, 8, 3, 2)
    gated = [0, 1, *([] if background else [4]), *([] if classes else [5, 6, 7])]
    boxes[:, gated] = sigmoid(boxes[:, gated])
    if classes:
        first = 4 if background else 5
        boxes[:, first:] = softmax(boxes[:, first:], axis=1)
    np.testing.assert_allclose(evaluate(model, x)[0], boxes.reshape(16, 3, 2), rtol=1e-4, atol=1e-6)


def test_detection_layers_score_place_by_place(darknet):
    weights, biases = image(4 * (2 * 5 + 3), 12), image(4 * (2 * 5 + 3))
    layers = (
        f"[connected]\noutput={len(biases)}\nactivation=linear\n"
        "[detection]\nclasses=3\ncoords=4\nnum=2\nside=2\nsoftmax=1\nrescore=1"
    )
    x = image(3, 2, 2)
    expected = weights @ x.ravel() + biases
    expected[:12] = softmax(expected[:12].reshape(4, 3)).ravel()
    model = load_model(darknet.write(layers, [biases, weights], x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("root", "coding", "anchor"), [(0, "cell-linear", 1.0), (1, "cell-square", 0.25)])
def test_detection_layers_are_heads(darknet, root, coding, anchor):
    """YOLOv1: photos are stretched, boxes of a place share its classes, sqrt=1 gives the roots of their sizes."""
    biases = image(4 * (2 * 5 + 3))
    layers = (
        f"[connected]\noutput={len(biases)}\nactivation=linear\n"
        f"[detection]\nclasses=3\ncoords=4\nnum=2\nside=2\nsoftmax=0\nsqrt={root}"
    )
    model = load_model(darknet.write(layers, [biases, image(len(biases), 3 * 8 * 8)], (3, 8, 8)))
    assert model.preprocessing.resize == "stretch"
    head = model.head
    assert (head.kind, head.classes, head.objectness) == ("darknet-detection", 3, True)
    (part,) = head.candidates
    assert (part.layout, part.coding, part.units, part.grid) == ("kinds", coding, "unit", (2, 2))
    assert part.anchors == ((anchor, anchor),) * 2
    check_head(head, {spec.name: (spec.shape, spec.dtype) for spec in model.outputs})


def test_softmax_in_groups(darknet):
    x = image(6, 2, 1)
    model = load_model(darknet.write("[softmax]\ngroups=3\n[cost]\ntype=sse", size=x.shape))
    np.testing.assert_allclose(evaluate(model, x)[0].ravel(), softmax(x.reshape(3, 4)).ravel(), rtol=1e-5)


def xnor(x: np.ndarray, weights: np.ndarray, **kwargs: int) -> tuple[np.ndarray, np.ndarray]:
    """Signs (0 and NaN are -1) against signs with true zero padding, and the mean magnitude of each filter."""
    means = np.abs(weights).reshape(len(weights), -1).mean(axis=1, dtype=np.float64)
    sums = convolution(np.where(x > 0, 1, -1), np.where(weights > 0, 1, -1), **kwargs)
    return sums, means[:, None, None]


@pytest.mark.parametrize("case", range(16))
def test_xnor_layers_are_binary_and_exact(darknet, case):
    """Random channels, windows and groups, with inputs and weights of 0 and inputs of NaN and infinity among them."""
    rng = np.random.default_rng(case)
    channels = int(rng.choice([1, 2, 3, 7, 8, 16, 31, 32, 33, 64, 65, 130]))
    groups = int(rng.choice([g for g in (1, 2, channels) if channels % g == 0]))
    filters = groups * int(rng.integers(1, 9))
    kernel, stride, pad = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(0, 2))
    height, width = rng.integers(6, 12, 2).tolist()
    weights = rng.normal(size=(filters, channels // groups, kernel, kernel)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.1] = 0
    biases = rng.normal(size=filters).astype(np.float32)
    cfg = darknet.write(
        f"[convolutional]\nxnor=1\nfilters={filters}\nsize={kernel}\nstride={stride}\npad={pad}\ngroups={groups}\n"
        "activation=linear",
        [biases, weights],
        (channels, height, width),
    )
    x = rng.normal(size=(channels, height, width)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    for special in (-0.0, np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.05] = special
    kwargs = {"stride": (stride, stride), "pad": kernel // 2 if pad else 0, "groups": groups}
    sums, means = xnor(x, weights, **kwargs)
    model = load_model(cfg)
    lowered = lower(model, targets.load("rasp3b"))
    assert [verdict.binary for verdict in lowered.verdicts] == [True]
    found = evaluate(model, x)[0] - biases[:, None, None]
    np.testing.assert_allclose(found, sums * means, rtol=1e-4, atol=1e-4)
    graph = np.asarray(reference.run(lowered.graph, {"input": x[None]})[0])[0]
    np.testing.assert_allclose(graph, sums * means + biases[:, None, None], rtol=1e-6, atol=1e-5)
    dots = next(name for name, value in bindings(lowered.graph["main"]) if op_name(value) == "bitkiln.bconv2d")
    np.testing.assert_array_equal(_tensor(lowered.graph, dots, x).transpose(2, 0, 1), sums)


def _tensor(module, name: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(reference.evaluate(module, {"input": x[None]}, [name])[name])[0]


def test_binary_weights_keep_a_float_input(darknet):
    weights, biases = image(5, 3, 3, 3), image(5)
    layers = "[convolutional]\nbinary=1\nfilters=5\nsize=3\npad=1\nactivation=linear"
    x = image(3, 6, 5)
    means = np.abs(weights).mean(axis=(1, 2, 3), keepdims=True)
    expected = convolution(x, np.where(weights > 0, means, -means), pad=1) + biases[:, None, None]
    model = load_model(darknet.write(layers, [biases, weights]))
    np.testing.assert_allclose(evaluate(model, x)[0], expected, rtol=1e-4, atol=1e-4)
    warnings = lower(model, targets.load("rasp3b")).warnings()
    assert len(warnings) == 1 and warnings[0].startswith("conv_0 runs in floats")


XNOR_NETWORK = (
    "[convolutional]\nbatch_normalize=1\nfilters=16\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
    "[convolutional]\nxnor=1\nbatch_normalize=1\nfilters=24\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
    "[maxpool]\nsize=2\nstride=2\n"
    "[convolutional]\nxnor=1\nbatch_normalize=1\nfilters=12\nsize=1\nstride=1\npad=1\nactivation=leaky\n"
    "[connected]\noutput=5\nactivation=linear\n[softmax]\ngroups=1\n[cost]\ntype=sse"
)


def test_an_xnor_network_runs_on_the_simulated_board(darknet, tmp_path, no_records):
    convs = [(16, 3, 3), (24, 16, 3), (12, 24, 1)]
    values = [(statistics(o), image(o, c, k, k)) for o, c, k in convs]
    dense, biases = image(5, 192), image(5)
    arrays = [array for numbers, weights in values for array in (*numbers, weights)] + [biases, dense]
    model = load_model(darknet.write(XNOR_NETWORK, arrays, (3, 8, 8)))
    x = image(3, 8, 8)

    def active(sums: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        y = normalized(sums, *numbers)
        return np.where(y > 0, y, 0.1 * y)

    y = active(convolution(x, values[0][1], pad=1), values[0][0])
    y = active(np.multiply(*xnor(y, values[1][1], pad=1)), values[1][0])
    y = windows(y, 2, (2, 2), (0, 0, 0, 0), 0).max(axis=(3, 4)).transpose(2, 0, 1)
    y = active(np.multiply(*xnor(y, values[2][1])), values[2][0])
    expected = softmax(dense @ y.ravel() + biases)

    lowered = lower(model, targets.load("rasp3b"))
    assert [verdict.binary for verdict in lowered.verdicts] == [False, True, True, False] and not lowered.notes
    bundle = compile_model(model, targets.load("rasp3b"), no_records, tmp_path / "bundle")
    np.save(tmp_path / "x.npy", x[None])
    answer = run.run(bundle, tensor=tmp_path / "x.npy")
    np.testing.assert_allclose(answer.outputs["output"].ravel(), expected, rtol=1e-4, atol=1e-6)


def test_a_network_that_darknet_trained(shared):
    """Ten scores that the original darknet's CPU build gave for the same pixels."""
    model = load_model(shared / "models" / "ell" / "unittest.cfg")
    x = ((np.arange(784) * 7 % 256) / 255).astype(np.float32).reshape(1, 28, 28)
    expected = [
        0.0888343,
        0.0902832,
        0.0877904,
        0.2334248,
        0.1048013,
        0.0910572,
        0.0703598,
        0.0868741,
        0.0908888,
        0.0556861,
    ]
    np.testing.assert_allclose(evaluate(model, x)[0], expected, atol=2e-6)
    assert model.outputs[0].shape == (1, 10) and model.preprocessing.channel_order == "GREY" and not model.warnings


def test_images_are_prepared_as_darknet_does(darknet):
    weights = [np.zeros(18), np.zeros((18, 3, 1, 1))]
    conv = "[convolutional]\nfilters=18\nsize=1\nactivation=linear\n"
    classifier = load_model(darknet.write(f"{conv}[softmax]", weights, (3, 32, 48)))
    detector = load_model(darknet.write(f"{conv}[yolo]\nclasses=1\nmask=0,1,2", weights, (3, 32, 48), name="detector"))
    for model in (classifier, detector):
        how = model.preprocessing
        assert (how.height, how.width, how.channel_order, how.layout) == (32, 48, "RGB", "NCHW")
        assert how.mean == (0, 0, 0) and how.scale == (1 / 255,) * 3
    assert (classifier.preprocessing.resize, classifier.preprocessing.resize_to) == ("short-side", 48)
    assert detector.preprocessing.resize == "letterbox"


@pytest.mark.parametrize(
    ("net", "yolo", "resize"),
    [("", "", "letterbox"), ("letter_box=1\n", "", "letterbox"), ("letter_box=0\n", "", "stretch"),
     ("mosaic=1\n", "", "stretch"), ("", "iou_loss=ciou\n", "stretch"), ("mosaic=1\nletter_box=1\n", "", "letterbox")],
)  # fmt: skip
def test_detectors_fit_images_in_as_the_build_does_that_the_cfg_is_of(tmp_path, net, yolo, resize):
    cfg = tmp_path / "net.cfg"
    conv = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n"
    cfg.write_text(f"[net]\nwidth=8\nheight=8\nchannels=3\n{net}{conv}[yolo]\nclasses=1\nmask=0\n{yolo}")
    (tmp_path / "net.weights").write_bytes(struct.pack("<3iq24f", 0, 2, 0, 0, *[0.1] * 24))
    model = load_model(cfg)
    assert model.preprocessing.resize == resize
    assert ("letter_box" in model.origins["resize"]) == ("letter_box" in net)
    assert not model.warnings


def test_misspelt_keys_of_net_are_warned_of(tmp_path):
    cfg = tmp_path / "net.cfg"
    conv = "[convolutional]\nfilters=1\nsize=1\nactivation=linear\n"
    cfg.write_text(f"[net]\nwidth=8\nheight=8\nchannels=1\nleter_box=1\nmomentum=0.9\n{conv}")
    (tmp_path / "net.weights").write_bytes(struct.pack("<3iq2f", 0, 2, 0, 0, 0.1, 0.1))
    (warning,) = load_model(cfg).warnings
    assert "'leter_box' is not known and was ignored" in warning
    assert "letter_box?" in warning


def test_the_input_may_be_resized(darknet):
    cfg = darknet.write("[convolutional]\nfilters=2\nsize=1\nactivation=linear", [np.zeros(2), np.zeros((2, 3))])
    model = load_model(cfg, ImportOptions(shapes={"input": (1, 3, 10, 12)}))
    assert model.inputs[0].shape == (1, 3, 10, 12) and model.outputs[0].shape == (1, 2, 10, 12)


# --- What the outputs mean --------------------------------------------------------------------------------------------


def test_yolo_layers_have_boxes(darknet, tmp_path):
    """Boxes by darknet's formulas: get_yolo_box in src/yolo_layer.c, with AlexeyAB's new_coords."""
    x = image(14, 4, 6)
    layers = (
        "[yolo]\nmask=0,2\nclasses=2\nnum=3\nanchors=10,20, 30,40, 50,60\n[route]\nlayers=-2\n"
        "[yolo]\nmask=1,0\nclasses=2\nnum=3\nanchors=10,20, 30,40, 50,60\nnew_coords=1\nscale_x_y=2"
    )
    layers = f"[activation]\nactivation=logistic\n{layers}"
    (tmp_path / "net.names").write_text("cat\ndog\n")
    model = load_model(darknet.write(layers, size=x.shape))
    assert model.labels == ("cat", "dog") and model.head.kind == "darknet-yolo" and model.head.classes == 2
    head = asdict(model.head) | {"threshold": 0.0, "overlap": 1.0}
    outputs = dict(zip((spec.name for spec in model.outputs), evaluate(model, x), strict=True))
    found = {box.score: box for box in heads.detect(head, outputs, (4, 6))}
    first, second = (values.reshape(2, 7, 4, 6).astype(float) for values in outputs.values())
    assert len(found) == 2 * 2 * 24
    for values, anchors, square in ((first, [(10, 20), (50, 60)], False), (second, [(30, 40), (10, 20)], True)):
        for anchor, row, column in ((0, 0, 0), (1, 2, 5), (0, 3, 1)):
            entry = values[anchor, :, row, column]
            width, height = (entry[2:4] ** 2 * 4 if square else np.exp(entry[2:4])) * anchors[anchor]
            middle = (entry[0] + column, entry[1] + row)  # the cells are pixels of this input
            score = entry[4] * entry[5:].max()
            box = found[min(found, key=lambda other: abs(other - score))]
            corners = [middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2]
            np.testing.assert_allclose([box.score, *box.corners], [score, *corners], rtol=1e-4)
            assert box.number == entry[5:].argmax()


def test_region_layers_have_boxes_in_cells(darknet):
    x = image(2 * 8, 2, 3)
    region = "[region]\nclasses=3\ncoords=4\nnum=2\nsoftmax=1\nanchors=1,2, 0.5,0.25"
    model = load_model(darknet.write(f"[upsample]\nstride=1\n{region}", size=x.shape))
    (part,) = model.head.candidates
    assert (model.head.kind, part.coding, part.anchors) == ("darknet-region", "cell-exp", ((1, 2), (0.5, 0.25)))


@pytest.mark.parametrize(
    "layers",
    [
        "[region]\nclasses=3\ncoords=4\nnum=2\nbackground=1",
        "[region]\nclasses=4\ncoords=3\nnum=2",
        "[yolo]\nclasses=3\nmask=5,7\nnum=2\nanchors=1,2,3,4",
        "[activation]\nactivation=linear",
    ],
)
def test_detectors_of_other_kinds_have_no_boxes(darknet, layers):
    assert load_model(darknet.write(layers, size=(16, 2, 3))).head is None
