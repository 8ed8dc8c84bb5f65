"""Every dialect's binary convolution is found, and what is none is told from it, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.binary.recognise import recognise
from bitkiln.pipeline.passes.canonicalize import canonicalize
from bitkiln.pipeline.passes.layout import layout

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
    return recognise(layout(canonicalize(module)))


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
    assert verdicts[0].facts.zeros_count_as == (1 if name in ZERO_OF_ZERO else None)
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


def test_padding_of_turned_signs(network, same):
    net = network((1, 8, 6, 6))
    turned = net.add(op.where(net.add(op.greater(net.x, C(0.0))), C(-2.0), C(2.0)))
    padded = net.add(nn.pad(turned, [0, 0, 0, 0, 1, 2, 0, 3], "constant", 2.0))
    before = net.module(net.add(nn.conv2d(padded, net.signs(4, 8, 3, 3))))
    after, (verdict,) = lowered(before)
    assert verdict.binary
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
    after, verdicts = recognise(dense_to_conv(layout(canonicalize(before))))
    assert [verdict.binary for verdict in verdicts] == [True, True]
    assert operators(after) == [
        "permute_dims", "bitkiln.binarize", "bitkiln.bconv2d", "bitkiln.binarize", "reshape", "bitkiln.bconv2d", "reshape",
    ]  # fmt: skip
    same(before, after)


#: Activations of two levels: the operations, and a level between the two.
LEVELS = {
    "0 and 1": lambda n, x: n.add(op.astype(n.add(op.greater(x, C(0.0))), "float32")),
    "0 and 1 by ReLU": lambda n, x: chain(n, x, nn.relu, op.sign),
    "rounded": lambda n, x: chain(n, x, lambda v: op.clip(v, 0.0, 1.0), op.round),
    "rounded, odd": lambda n, x: chain(n, x, lambda v: op.clip(v, 1.0, 2.0), op.round, lambda v: op.add(v, C(-1.0))),
    "rounded, then clipped": lambda n, x: chain(n, x, op.round, lambda v: op.clip(v, 0.0, 1.0)),
    "floor": lambda n, x: chain(n, x, lambda v: op.clip(v, 0.0, 1.0), lambda v: op.add(v, C(0.5)), op.floor),
    "ceil": lambda n, x: chain(n, x, lambda v: op.clip(v, -1.0, 1.0), op.ceil, lambda v: op.add(v, C(1.0)), nn.relu),
    "0 and 3": lambda n, x: chain(n, x, lambda v: op.clip(v, 0.0, 1.0), op.round, lambda v: op.multiply(v, C(3.0))),
    "1 and 0": lambda n, x: n.add(op.where(n.add(op.less(x, C(0.25))), C(1.0), C(0.0))),
}


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", sorted(set(LEVELS) - {"ceil"}))
def test_other_levels_than_signs(network, same, name, groups, padding):
    """Halves in the input meet the rounding of halves; zero padding is the lower level."""
    net = network((1, 12, 6, 5))
    halves = net.add(op.multiply(net.add(op.round(net.add(op.multiply(net.x, C(4.0))))), C(0.25)))
    signs = net.signs(8, 12 // groups, 3, 3)
    before = net.module(net.add(nn.conv2d(LEVELS[name](net, halves), signs, padding=padding, groups=groups)))
    after, (verdict,) = lowered(before)
    assert verdict.facts.levels[0] == 0 < verdict.facts.levels[1]
    assert workloads(after)[1].pad_value == (0 if not padding else 1 if name == "1 and 0" else -1)
    same(before, after)


def test_three_levels_are_none(network, same):
    net = network((1, 8, 6, 5))
    before = net.module(net.add(nn.conv2d(LEVELS["ceil"](net, net.x), net.signs(8, 8, 3, 3))))
    after, (verdict,) = lowered(before)
    assert not verdict.binary
    same(before, after)


def zero_is_one(net, x):
    return net.add(op.where(net.add(op.equal(x, C(0.0))), C(1.0), net.add(op.sign(x))))


def zero_is_one_by_adding(net, x):
    return net.add(op.add(net.add(op.sign(x)), net.add(op.astype(net.add(op.equal(x, C(0.0))), "float32"))))


def difference_of_masks(net, x):
    above, below = (net.add(op.astype(net.add(make(x, C(0.0))), "float32")) for make in (op.greater, op.less_equal))
    return net.add(op.subtract(above, below))


def twice_computed(net, x):
    """clip(x) - clip(x) + sign(x), the two clips being two tensors."""
    first, second = net.add(op.clip(x, -1.0, 1.0)), net.add(op.clip(x, -1.0, 1.0))
    return net.add(op.add(net.add(op.subtract(first, second)), zero_is_one(net, x)))


@pytest.mark.parametrize("make", [zero_is_one, zero_is_one_by_adding, difference_of_masks, twice_computed])
def test_what_is_made_of_several_comparisons(network, same, make):
    net = network((1, 8, 6, 5))
    before = net.module(net.add(nn.conv2d(make(net, net.add(op.round(net.x))), net.signs(8, 8, 3, 3), padding=1)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    assert verdict.facts.zeros_count_as is None
    same(before, after)


def shuffled(net, sign):
    split = net.add(op.reshape(sign, (1, 2, 4, 6, 5)))
    return net.add(op.reshape(net.add(op.permute_dims(split, [0, 2, 1, 3, 4])), (1, 8, 6, 5)))


def joined(net, sign):
    other = net.add(op.sign(net.add(op.add(net.x, net.normal(8, 1, 1)))))
    return net.add(op.concat([sign, other], 1))


MOVES = {
    "shuffled": (shuffled, 8),
    "joined": (joined, 16),
    "sliced": (lambda net, sign: net.add(op.strided_slice(sign, [1], [3], [7])), 4),
    "gathered": (lambda net, sign: net.add(op.take(sign, C(np.array([5, 1, 1, 0])), axis=1)), 4),
}


@pytest.mark.parametrize("name", MOVES)
def test_signs_that_are_moved(network, same, name):
    make, channels = MOVES[name]
    net = network((1, 8, 6, 5))
    moved = make(net, net.add(op.sign(net.x)))
    before = net.module(net.add(nn.conv2d(moved, net.signs(8, channels, 3, 3), padding=1)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    same(before, after)


def test_a_factor_of_each_channel_joins_the_weights_of_a_depthwise_convolution(network, same):
    net = network((1, 8, 6, 5))
    factor = C(np.linspace(0.5, 2, 8, dtype="float32").reshape(8, 1, 1))
    scaled = net.add(op.multiply(net.add(op.sign(net.x)), factor))
    before = net.module(net.add(nn.conv2d(scaled, net.signs(8, 1, 3, 3), padding=1, groups=8)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    same(before, after, 1e-6)


def test_a_factor_that_the_network_computes_follows_the_convolution(network, same):
    net = network((1, 8, 6, 5))
    mean = net.add(op.mean(net.add(op.abs(net.x)), [0, 1, 2, 3], True))
    scaled = net.add(op.multiply(net.add(op.sign(net.x)), mean))
    before = net.module(net.add(nn.conv2d(scaled, net.signs(8, 8, 3, 3), padding=1)))
    after, (verdict,) = lowered(before)
    assert verdict.binary
    same(before, after, 1e-6)


def test_signs_of_zero_padding_are_true_zeros(network, same):
    """As the file says: Sign(0) is 0."""
    net = network((1, 8, 6, 6))
    padded = net.add(nn.pad(net.x, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.0))
    before = net.module(net.add(nn.conv2d(net.add(op.sign(padded)), net.signs(4, 8, 3, 3))))
    after, _ = lowered(before)
    assert workloads(after)[1].pad_value == 0
    same(before, after)


def pooled_sums(net, sums):
    return net.add(op.multiply(net.add(nn.max_pool2d(net.add(nn.relu(sums)), (2, 2))), C(-0.3)))


def residual(net, sums):
    return net.add(op.add(net.add(op.add(sums, net.add(op.sign(net.x)))), C(4.0)))


def rounded(net, sums):
    return net.add(op.round(net.add(op.multiply(sums, C(0.37)))))


@pytest.mark.parametrize("make", [lambda net, sums: sums, residual, rounded])
@pytest.mark.parametrize("padding", [0, 1])
def test_zeros_of_whole_numbers_stay_zeros(network, same, make, padding):
    """Half the sum of two convolutions, to which zeros count as +1 and as -1."""
    net = network((1, 8, 6, 6))
    sums = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(8, 8, 3, 3), padding=1))
    sign = net.add(op.sign(make(net, sums)))
    before = net.module(net.add(nn.conv2d(sign, net.signs(4, 8, 3, 3), padding=padding)))
    after, (first, second) = lowered(before)
    assert (first.facts.convolutions, second.facts.convolutions) == (1, 2)
    assert second.facts.exact_zeros
    same(before, after, scale=0.5)


@pytest.mark.parametrize("weights", ["ternary", "zero_one", "one_zero"])
@pytest.mark.parametrize(
    ("zero_often", "groups", "padding"), [(False, 1, 1), (False, 4, 0), (True, 1, 1), (True, 4, 0)]
)
def test_weights_that_are_zero(network, same, weights, zero_often, groups, padding):
    """Half the sum of two convolutions, whose weights have +1 and -1 in place of zeros."""
    net = network((1, 8, 6, 6))
    x = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(8, 8, 3, 3), padding=1)) if zero_often else net.x
    weight = WEIGHTS[weights](net.rng.choice([-1, 1], (8, 8 // groups, 3, 3))) * np.linspace(0.5, 4, 8).reshape(
        -1, 1, 1, 1
    )
    conv = nn.conv2d(net.add(op.sign(x)), C(weight.astype("float32")), padding=padding, groups=groups)
    before = net.module(net.add(conv))
    after, (*_, verdict) = lowered(before)
    zeros = np.count_nonzero(weight == 0)
    assert verdict.facts.convolutions == (4 if zero_often else 2)
    assert verdict.facts.zero_weights == zeros
    same(before, after, 1e-6)


def test_zeros_of_a_relu_stay_zeros(network, same):
    net = network((1, 8, 6, 6))
    sums = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(8, 8, 3, 3), padding=1))
    before = net.module(net.add(nn.conv2d(net.add(op.sign(pooled_sums(net, sums))), net.signs(4, 8, 3, 3))))
    after, verdicts = lowered(before)
    assert verdicts[1].facts.levels == (-1, 0)
    same(before, after)


def test_odd_sums_are_never_zero(network, same):
    net = network((1, 7, 6, 6))
    sums = net.add(nn.conv2d(net.add(op.sign(net.x)), net.signs(8, 7, 3, 3)))
    before = net.module(net.add(nn.conv2d(net.add(op.sign(sums)), net.signs(4, 8, 3, 3))))
    after, verdicts = lowered(before)
    assert verdicts[1].facts.zeros_count_as == 1
    same(before, after)


@pytest.mark.parametrize("kind", ["transposed", "rows"])
def test_other_layers_say_why_they_are_floats(network, same, kind):
    net = network((1, 8, 6, 6))
    sign = net.add(op.sign(net.x))
    if kind == "transposed":
        before = net.module(net.add(nn.conv2d_transpose(sign, net.signs(8, 4, 3, 3))))
    else:
        before = net.module(net.add(op.matmul(sign, net.add(op.abs(net.x)))))
    after, (verdict,) = lowered(before)
    assert not verdict.binary
    assert "run in floats; its input and weights" in verdict.reason or "done in floats" in verdict.reason
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


def equal_to_zero(net, x):
    return net.add(op.astype(net.add(op.equal(net.add(op.sign(x)), C(0.0))), "float32"))


def masked(net, x):
    small = net.add(op.less(net.add(op.abs(x)), C(1.0)))
    return net.add(op.multiply(net.add(op.sign(x), "sign"), net.add(op.astype(small, "float32"), "mask")))


def soft(net, x):
    return net.add(op.divide(x, net.add(op.add(net.add(op.abs(x)), C(1e-6)))))


def two_bits(net, x):
    return chain(net, x, lambda v: op.clip(v, 0.0, 1.0), lambda v: op.multiply(v, C(3.0)), op.round)


def scaled_by_pixel(net, x):
    return net.add(op.multiply(net.add(op.sign(x)), net.add(op.mean(net.add(op.abs(x)), 1, True), "mean")))


def scaled_by_channel(net, x):
    return net.add(op.multiply(net.add(op.sign(x)), C(np.linspace(0.5, 2, 8, dtype="float32").reshape(8, 1, 1))))


def sign(net, x):
    return net.add(op.sign(x))


def padded_with_half(net, x):
    return net.add(nn.pad(net.add(op.sign(x)), [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.5))


def padded_channels(net, x):
    return net.add(nn.pad(net.add(op.sign(x)), [0, 0, 0, 4, 0, 0, 0, 0], "constant", 1.0))


#: Weights made of random signs.
WEIGHTS = {
    "normal": lambda signs: signs * np.linspace(0.5, 1.5, signs.size).reshape(signs.shape),
    "signs": lambda signs: signs,
    "zeros": np.zeros_like,
    "zero_one": lambda signs: signs > 0,
    "ternary": lambda signs: signs * (np.arange(signs.size).reshape(signs.shape) % 3 > 0),
    "one_zero": lambda signs: signs * (np.arange(signs.size).reshape(signs.shape) != 5),
    "by_input": lambda signs: signs * np.linspace(0.5, 1.5, signs.shape[1]).reshape(-1, 1, 1),
    "two_values": lambda signs: 1.5 * signs + 0.5,
}

REFUSED = {
    "float weights": (relu_of, "normal", "float weights", False),
    "binary input, float weights": (sign, "normal", "float weights", True),
    "binary weights, float input": (relu_of, "signs", "not the sign of anything", True),
    "a mask of one value": (equal_to_zero, "signs", "takes the values 0, 1, not two", True),
    "signs of two tensors": (masked, "signs", "combines the signs of two tensors ('sign' times 'mask')", True),
    "a soft sign": (soft, "signs", "comes near +-1 but is no sign", True),
    "two bits": (two_bits, "signs", "rounded to more than two levels", True),
    "a factor of each pixel": (scaled_by_pixel, "signs", "times 'mean', another number for each pixel", True),
    "a factor of each channel": (scaled_by_channel, "signs", "times another factor for each channel", True),
    "weights 0 and 1": (relu_of, "zero_one", "its weights take the values 0 and 1, not +-s", False),
    "ternary weights": (relu_of, "ternary", "ternary weights", False),
    "weights scaled by input channel": (sign, "by_input", "differs between input channels", True),
    "weights of two values": (sign, "two_values", "take the values -1 and 2 in output channel", True),
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
    weight = C((WEIGHTS[weights](net.rng.choice([-1, 1], shape))).astype("float32"))
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
    _, verdicts = recognise(dense_to_conv(layout(canonicalize(model.module))))
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
