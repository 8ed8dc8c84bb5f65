"""Every dialect's binary convolution is found, and what is none is told from it, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.graph import bindings, op_name
from bitkiln.pipeline.passes.recognise_binary import recognise
from bitkiln.pipeline.passes.to_nhwc import to_nhwc

op, nn = relax.op, relax.op.nn
C = relax.const


def chain(net, x, *makers):
    for make in makers:
        x = net.add(make(x))
    return x


def straight_through(net, x):
    """(sign(x) - p(x)) + p(x), as exporters of PyTorch networks leave it."""
    slope = chain(net, x, lambda v: op.clip(v, -1.0, 1.0), lambda v: op.multiply(v, C(2.0)))
    return chain(net, net.add(op.sign(x)), lambda s: op.subtract(s, slope), lambda d: op.add(d, slope))


def detached(net, x):
    """x + (sign(x) - x)."""
    return net.add(op.add(x, net.add(op.subtract(net.add(op.sign(x)), x))))


#: How networks write signs: the operations, the sign of zero, and a factor.
SIGNS = {
    "sign": (lambda n, x: n.add(op.sign(x)), 1, 1),
    "sign, nudge, sign": (lambda n, x: chain(n, x, op.sign, lambda v: op.add(v, C(0.1)), op.sign), 1, 1),
    "sign, nudge down, sign": (lambda n, x: chain(n, x, op.sign, lambda v: op.add(v, C(-0.1)), op.sign), -1, 1),
    "where greater": (lambda n, x: n.add(op.where(n.add(op.greater(x, C(0.0))), C(1.0), C(-1.0))), -1, 1),
    "where greater or equal": (lambda n, x: n.add(op.where(n.add(op.greater_equal(x, C(0.0))), C(1.0), C(-1.0))), 1, 1),
    "where less": (lambda n, x: n.add(op.where(n.add(op.less(x, C(0.0))), C(-1.0), C(1.0))), 1, 1),
    "turned comparison": (lambda n, x: n.add(op.where(n.add(op.less(C(0.0), x)), C(1.0), C(-1.0))), -1, 1),
    "scaled": (lambda n, x: n.add(op.where(n.add(op.greater_equal(x, C(0.0))), C(0.5), C(-0.5))), 1, 0.5),
    "2b - 1": (
        lambda n, x: chain(
            n, x, lambda v: op.greater(v, C(0.0)), lambda v: op.astype(v, "float32"),
            lambda v: op.multiply(v, C(2.0)), lambda v: op.subtract(v, C(1.0)),
        ),
        -1, 1,
    ),
    "negated": (lambda n, x: n.add(op.negative(n.add(op.sign(x)))), -1, 1),
    "where reversed": (lambda n, x: n.add(op.where(n.add(op.greater(x, C(0.0))), C(-1.0), C(1.0))), -1, 1),
    "straight-through": (straight_through, 1, 1),
    "detached": (detached, 1, 1),
    "clipped": (lambda n, x: n.add(op.clip(n.add(op.sign(x)), -1.0, 1.0)), 1, 1),
}  # fmt: skip


def lowered(module):
    return recognise(to_nhwc(canonicalize(module)))


def workloads(module):
    return [workload_of(value) for _, value in bindings(module["main"]) if op_name(value).startswith("bitkiln.")]


#: Those that give 0 for 0, which has no bit of its own.
ZERO_OF_ZERO = {"sign", "negated", "straight-through", "detached", "clipped"}


@pytest.mark.parametrize("name", SIGNS)
def test_dialects_of_signs(network, same, name):
    make, sign_zero, _ = SIGNS[name]
    net = network((1, 20, 6, 5))
    shifted = net.add(op.add(net.x, net.normal(20, 1, 1)))
    before = net.module(net.add(nn.conv2d(make(net, shifted), net.signs(8, 20, 3, 3), padding=1)))
    after, verdicts = lowered(before)
    assert [verdict.binary for verdict in verdicts] == [True]
    assert ("zeros count as +1" in verdicts[0].reason) == (name in ZERO_OF_ZERO)
    binarize, conv = workloads(after)
    assert (binarize.sign_zero, conv.binary, conv.pad_value, conv.channels) == (sign_zero, True, 0, 20)
    same(before, after, 1e-6)


@pytest.mark.parametrize("name", ["where greater", "where greater or equal", "turned comparison", "where reversed"])
def test_zeros_keep_their_sign(network, same, name):
    net = network((1, 20, 6, 5))
    rounded = net.add(op.round(net.x))
    before = net.module(net.add(nn.conv2d(SIGNS[name][0](net, rounded), net.signs(8, 20, 3, 3), padding=1)))
    same(before, lowered(before)[0])


def test_comparison_with_other_than_zero(network, same):
    net = network((1, 8, 4, 4))
    sign = net.add(op.where(net.add(op.greater(net.x, net.normal(8, 1, 1))), C(1.0), C(-1.0)))
    before = net.module(net.add(nn.conv2d(sign, net.signs(4, 8, 1, 1))))
    after, verdicts = lowered(before)
    assert verdicts[0].binary
    same(before, after)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_padding_before_the_convolution(network, same, value):
    net = network((1, 8, 6, 6))
    padded = net.add(nn.pad(net.add(op.sign(net.x)), [0, 0, 0, 0, 1, 2, 0, 3], "constant", value))
    before = net.module(net.add(nn.conv2d(padded, net.signs(4, 8, 3, 3), strides=(2, 1))))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    conv = workloads(after)[1]
    assert (conv.pad_value, conv.padding) == (int(value), (1, 0, 2, 3))
    same(before, after)


@pytest.mark.parametrize(("value", "expected"), [(2.0, 1), (-0.5, -1)])
def test_padding_before_the_sign(network, same, value, expected):
    net = network((1, 8, 6, 6))
    padded = net.add(nn.pad(net.x, [0, 0, 0, 0, 1, 1, 1, 1], "constant", value))
    before = net.module(net.add(nn.conv2d(net.add(op.sign(padded)), net.signs(4, 8, 3, 3))))
    after, _ = lowered(before)
    assert workloads(after)[1].pad_value == expected
    same(before, after)


def test_asymmetric_padding_of_the_convolution(network, same):
    net = network((1, 8, 6, 6))
    sign = net.add(op.sign(net.x))
    before = net.module(net.add(nn.conv2d(sign, net.signs(4, 8, 3, 3), strides=2, padding=(0, 0, 1, 1))))
    after, _ = lowered(before)
    assert workloads(after)[1].padding == (0, 0, 1, 1)
    same(before, after)


def test_scales_per_channel_with_rounding_noise(network, same, operators):
    net = network((1, 8, 6, 6))
    scale = net.rng.uniform(0.05, 2, (4, 1, 1, 1)) * (1 + 1e-6 * net.rng.standard_normal((4, 8, 3, 3)))
    weight = (net.rng.choice([-1, 1], (4, 8, 3, 3)) * scale).astype("float32")
    before = net.module(net.add(nn.conv2d(net.add(op.sign(net.x)), C(weight), padding=1)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    assert "multiply" in operators(after)
    same(before, after, 1e-5)


def test_scaled_signs_scale_the_result(network, same):
    net = network((1, 8, 6, 6))
    sign = SIGNS["scaled"][0](net, net.x)
    padded = net.add(nn.pad(sign, [0, 0, 0, 0, 1, 1, 1, 1], "constant", -0.5))
    before = net.module(net.add(nn.conv2d(padded, net.signs(4, 8, 3, 3))))
    after, _ = lowered(before)
    assert workloads(after)[1].pad_value == -1
    same(before, after, 1e-6)


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_and_dilation(network, same, groups):
    net = network((1, 16, 7, 7))
    sign = net.add(op.sign(net.x))
    weight = net.signs(8, 16 // groups, 3, 3)
    before = net.module(net.add(nn.conv2d(sign, weight, groups=groups, dilation=(2, 1), padding=1)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    same(before, after)


def test_dense_behind_a_flattened_image_shares_its_bytes(network, same, operators):
    from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv

    net = network((1, 7, 3, 3))
    # An odd number of terms is never zero, whose sign the file has as 0.
    image = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(16, 7, 1, 1)))
    row = net.add(op.reshape(net.add(op.sign(image)), (1, 144)))
    before = net.module(net.add(op.matmul(row, net.signs(144, 6))))
    after, verdicts = recognise(dense_to_conv(to_nhwc(canonicalize(before))))
    assert [verdict.binary for verdict in verdicts] == [True, True]
    assert operators(after) == [
        "permute_dims", "bitkiln.binarize", "bitkiln.bconv2d", "bitkiln.binarize", "reshape", "bitkiln.bconv2d", "reshape",
    ]  # fmt: skip
    same(before, after)


def test_bits_are_made_once(network, operators):
    net = network((1, 8, 6, 6))
    first = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(4, 8, 1, 1)))
    second = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(4, 8, 1, 1)))
    after, _ = lowered(net.module(net.add(op.add(first, second))))
    assert operators(after).count("bitkiln.binarize") == 1


def relu_of(net, x):
    return net.add(nn.relu(x))


def sign_of_relu(net, x):
    return net.add(op.sign(net.add(nn.max_pool2d(net.add(nn.relu(x)), (3, 3), (1, 1), (1, 1)))))


def zero_one(net, x):
    return net.add(op.astype(net.add(op.greater(x, C(0.0))), "float32"))


def sign(net, x):
    return net.add(op.sign(x))


def padded_with_half(net, x):
    return net.add(nn.pad(net.add(op.sign(x)), [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.5))


def padded_channels(net, x):
    return net.add(nn.pad(net.add(op.sign(x)), [0, 0, 0, 4, 0, 0, 0, 0], "constant", 1.0))


REFUSED = {
    "float weights": (relu_of, "normal", "float weights", False),
    "binary input, float weights": (sign, "normal", "float weights", True),
    "binary weights, float input": (relu_of, "signs", "not the sign of anything", True),
    "values 0 and 1": (zero_one, "signs", "takes the values 0, 1", True),
    "sign of a ReLU, which is never -1": (sign_of_relu, "signs", "takes the values 0, 1", True),
    "odd padding": (padded_with_half, "signs", "padded with 0.5", True),
    "padded channels": (padded_channels, "signs", "padded by other", True),
    "zero weights": (sign, "zeros", "all its weights are zero", True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_binary_says_why(network, same, name):
    make, weights, reason, suspicious = REFUSED[name]
    net = network((1, 8, 6, 6))
    x = make(net, net.x)
    shape = (4, 12 if name == "padded channels" else 8, 3, 3)
    weight = C(np.zeros(shape, "float32")) if weights == "zeros" else getattr(net, weights)(*shape)
    before = net.module(net.add(nn.conv2d(x, weight)))
    after, (verdict,) = lowered(before)
    assert not verdict.binary
    assert reason in verdict.reason
    assert verdict.suspicious == suspicious
    same(before, after, 1e-6)


def test_real_networks(shared):
    from bitkiln.pipeline.importers import load_model

    model = load_model(shared / "models" / "onnx" / "imagenet_resnet18_w1a1.onnx.xz")
    after, verdicts = lowered(model.module)
    assert sum(verdict.binary for verdict in verdicts) == 20
    assert not any(verdict.suspicious for verdict in verdicts)
    convs = [value for _, value in bindings(after["main"]) if isinstance(value, Call)]
    binary = [workload_of(value) for value in convs if op_name(value) == "bitkiln.bconv2d"]
    assert {workload.pad_value for workload in binary if any(workload.padding)} == {1}


@pytest.mark.parametrize(("name", "binary"), [("pt_reactnet_block", 1), ("TFC_1W1A", 4)])
def test_other_exporters(shared, name, binary):
    from bitkiln.pipeline.importers import load_model
    from bitkiln.pipeline.passes.dense_to_conv import dense_to_conv

    model = load_model(shared / "models" / "onnx" / f"{name}.onnx")
    _, verdicts = recognise(dense_to_conv(to_nhwc(canonicalize(model.module))))
    assert [verdict.binary for verdict in verdicts] == [True] * binary


def test_pooled_signs(network, same, operators):
    net = network((1, 8, 6, 6))
    pool = net.add(nn.max_pool2d(net.add(op.sign(net.x)), (3, 3), (2, 2), (1, 1)))
    before = net.module(net.add(nn.conv2d(pool, net.signs(4, 8, 3, 3))))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    assert operators(after)[1:3] == ["nn.max_pool2d", "bitkiln.binarize"]
    same(before, after)


def test_batch_of_two_is_left_alone(network, same):
    net = network((2, 8, 6, 6))
    before = net.module(net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(4, 8, 3, 3))))
    after, (verdict,) = lowered(before)
    assert "batch 1" in verdict.reason
    same(before, after)


@pytest.mark.parametrize("kind", ["one weight a channel", "a mean"])
def test_equal_weights_alone_raise_no_suspicion(network, kind):
    net = network((1, 4, 6, 6))
    weight = C(np.full((4, 1, 3, 3), 1 / 9, "float32")) if kind == "a mean" else net.normal(4, 1, 1, 1)
    _, (verdict,) = lowered(net.module(net.add(nn.conv2d(net.x, weight, groups=4))))
    assert (verdict.binary, verdict.suspicious) == (False, False)
