"""Thresholds against the float steps they replace: every sum, every kind of slope, with and without pooling."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.passes.binary.thresholds import NotMonotone, find_thresholds
from bitkiln.pipeline.passes.fold_threshold import fold_threshold
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.to_operators import to_operators
from bitkiln.schedules.steps import Step, compute

op, nn = relax.op, relax.op.nn
CHANNELS = 12
REACH = 45


def operand(rng, shape, kind):
    values = rng.standard_normal(shape)
    if kind == "positive":
        values = np.abs(values)
    elif kind == "some zero":
        values = values * (rng.random(shape) > 0.4)
    return values.astype("float32")


def affine(rng, kind, shape=(CHANNELS,)):
    name = "channel" if len(shape) == 1 else "element"
    scale = operand(rng, shape, kind) * np.float32(0.3)
    return [(Step("mul", name), scale), (Step("add", name), operand(rng, shape, "any") * np.float32(3))]


def prelu(rng, kind, shape=(CHANNELS,)):
    return [(Step("prelu", "channel" if len(shape) == 1 else "element"), operand(rng, shape, kind))]


PLAIN = {
    "sign alone": lambda rng: [],
    "bias": lambda rng: affine(rng, "any")[1:],
    "affine": lambda rng: affine(rng, "any"),
    "zero gamma": lambda rng: affine(rng, "some zero"),
    "prelu": lambda rng: [*affine(rng, "any"), *prelu(rng, "positive"), *affine(rng, "any")],
    "relu": lambda rng: [*affine(rng, "any"), (Step("relu"), None), *affine(rng, "any")],
    "leaky": lambda rng: [*affine(rng, "any"), (Step("leaky", "", (0.1,)), None), *affine(rng, "any")],
    "clip": lambda rng: [*affine(rng, "any"), (Step("clip", "", (-1.0, 1.0)), None), *affine(rng, "any")],
    "tanh": lambda rng: [*affine(rng, "any"), (Step("tanh"), None), *affine(rng, "any")],
}


def check_every_sum(steps, sign_zero, found, size):
    """The bit by threshold and the bit by floats, for every sum."""
    shape = (*size[:2], size[2])
    for total in range(-REACH, REACH + 1):
        sums = np.full(shape, total, np.float32)
        values = compute([s for s, _ in steps], sums, [v for s, v in steps if s.operand])
        wanted = values >= 0 if sign_zero > 0 else values > 0
        actual = np.where(found.flip, -sums, sums) >= found.value
        np.testing.assert_array_equal(np.broadcast_to(actual, shape), wanted)


@pytest.mark.parametrize("sign_zero", [1, -1])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_every_sum_per_channel(name, sign_zero, seed):
    steps = PLAIN[name](np.random.default_rng(seed))
    size = (2, 2, CHANNELS)
    found = find_thresholds(steps, sign_zero, np.zeros(CHANNELS, bool), size, REACH)
    assert found.value.shape == (CHANNELS,)
    assert found.value.dtype == np.int32
    check_every_sum(steps, sign_zero, found, size)


@pytest.mark.parametrize("seed", range(3))
def test_every_sum_per_element(seed):
    rng = np.random.default_rng(seed)
    size = (3, 2, CHANNELS)
    steps = [*affine(rng, "any"), *prelu(rng, "positive", size), *affine(rng, "positive")]
    found = find_thresholds(steps, 1, np.zeros(CHANNELS, bool), size, REACH)
    assert found.value.shape == size
    check_every_sum(steps, 1, found, size)


def test_equal_elements_are_one_threshold_per_channel():
    slopes = np.broadcast_to(np.float32([0.5] * CHANNELS), (3, 2, CHANNELS))
    steps = [(Step("prelu", "element"), slopes), *affine(np.random.default_rng(0), "positive")]
    found = find_thresholds(steps, 1, np.zeros(CHANNELS, bool), (3, 2, CHANNELS), REACH)
    assert found.value.shape == (CHANNELS,)


def test_negative_slope_is_folded_where_it_does_no_harm():
    """x > 0 ? x : -0.1x, minus 100: no sum up to the reach gets that far down or up, so the bit is never set."""
    steps = [(Step("prelu", "channel"), np.float32([-0.1])), (Step("add", "channel"), np.float32([-100]))]
    found = find_thresholds(steps, 1, np.zeros(1, bool), (1, 1, 1), REACH)
    assert found.value.item() == REACH + 1


def odd(found, sums):
    """The bits that several thresholds give for ``sums`` [...]."""
    return np.logical_xor.reduce([sums >= value for value in found.value])


def test_negative_slope_that_bends_the_bit_takes_two_thresholds():
    """-10 or less and 10 or more have |x| - 10 >= 0 in the first channel; the second only rises."""
    steps = [(Step("prelu", "channel"), np.float32([-1, 1])), (Step("add", "channel"), np.float32([-10, -10]))]
    found = find_thresholds(steps, 1, np.zeros(2, bool), (1, 1, 2), REACH)
    assert (found.count, found.kind) == (3, "channel")
    assert found.value.tolist() == [[-REACH, 10], [-9, REACH + 1], [10, REACH + 1]]
    for total in range(-REACH, REACH + 1):
        assert odd(found, np.array([total, total])).tolist() == [abs(total) >= 10, total >= 10]


def test_pixels_of_one_channel_may_differ_in_direction():
    steps = [(Step("mul", "element"), np.float32([[[1]], [[-1]]]))]
    found = find_thresholds(steps, 1, np.zeros(1, bool), (2, 1, 1), REACH)
    assert (found.count, found.kind) == (2, "element")
    for total in range(-REACH, REACH + 1):
        assert odd(found, np.full((2, 1, 1), total)).ravel().tolist() == [total >= 0, total <= 0]


def test_bits_that_change_four_times_are_refused():
    bends = [(Step("prelu", "channel"), np.float32([-1])), (Step("add", "channel"), np.float32([-20]))]
    with pytest.raises(NotMonotone, match="1 of 1 elements go up and down"):
        find_thresholds(
            [*bends, *bends, (Step("add", "channel"), np.float32([12]))], -1, np.zeros(1, bool), (1, 1, 1), 45
        )


def test_what_is_no_number_is_refused():
    """Above 1 the product is infinite, and infinity times zero is no number: its bit is clear, zero's is set."""
    steps = [(Step("mul", "channel"), np.float32([3e38])), (Step("mul", "channel"), np.float32([0]))]
    with pytest.raises(NotMonotone, match="some sums give NaN"):
        find_thresholds(steps, 1, np.zeros(1, bool), (1, 1, 1), REACH)


def bconv(net, channels=20, outs=12, **attrs):
    bits = net.add(ops.binarize(net.x))
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (outs, 3, 3, channels))), "uint8")
    return net.add(ops.bconv2d(bits, weight, channels=channels, padding=(1, 1, 1, 1), **attrs))


def batch_norm(net, x, kind):
    channels = int(x.ty.shape.values[3])
    scaled = net.add(op.multiply(x, relax.const(operand(net.rng, (channels,), kind))))
    return net.add(op.add(scaled, net.normal(channels, scale=20)))


def pooled(net, x, pool=(3, 3)):
    return net.add(nn.max_pool2d(x, pool, (2, 2), (pool[0] - 2,) * 2, layout="NHWC", out_layout="NHWC"))


def folded(module):
    return fold_threshold(fuse_epilogue(to_operators(module)))


def finished(net, x, sign_zero=1):
    return net.module(net.add(ops.binarize(x, sign_zero=sign_zero)))


@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["any", "positive", "some zero"])
def test_layer_without_pooling(network, same, operators, kind, pad_value):
    net = network((1, 6, 5, 20))
    before = finished(net, batch_norm(net, bconv(net, pad_value=pad_value), kind))
    after, notes = folded(before)
    assert not notes
    assert operators(after) == ["bitkiln.binarize", "bitkiln.bconv2d"]
    same(before, after)


@pytest.mark.parametrize("sign_zero", [1, -1])
@pytest.mark.parametrize("kind", ["any", "positive", "some zero"])
@pytest.mark.parametrize("pool", [(2, 2), (3, 3)])
def test_layer_with_pooling(network, same, operators, kind, pool, sign_zero):
    net = network((1, 8, 8, 20), seed=sign_zero + 2)
    x = batch_norm(net, bconv(net), "any")
    x = net.add(ops.prelu(x, relax.const(operand(net.rng, (8, 8, 12), "positive"))))
    before = finished(net, batch_norm(net, pooled(net, x, pool), kind), sign_zero)
    after, notes = folded(before)
    if notes:
        # Per-element slopes behind a batch norm of mixed signs may turn pixels of one channel apart; then floats stay.
        assert "bitkiln.bmaxpool2d" not in operators(after)
    else:
        assert operators(after) == ["bitkiln.binarize", "bitkiln.bconv2d", "bitkiln.bmaxpool2d"]
    same(before, after)


def test_falling_pooling_inverts(network, same):
    net = network((1, 8, 8, 20))
    x = pooled(net, net.add(nn.leakyrelu(bconv(net), 0.1)))
    x = net.add(op.multiply(x, relax.const(np.float32([-0.5, 0.5, -1] * 4))))
    before = finished(net, net.add(op.add(x, net.normal(12, scale=20))))
    after, notes = folded(before)
    assert not notes
    pools = [value for _, value in bindings(after["main"]) if op_name(value) == "bitkiln.bmaxpool2d"]
    assert len(pools[0].args) == 2
    same(before, after)


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_strided_dilated(network, same, groups):
    net = network((1, 9, 9, 16))
    bits = net.add(ops.binarize(net.x))
    weight = relax.const(ops.pack_bits(net.rng.choice([-1, 1], (24, 3, 3, 16 // groups))), "uint8")
    conv = ops.bconv2d(bits, weight, channels=16, groups=groups, strides=(2, 1), dilation=(2, 1), padding=(0, 1, 2, 1))
    before = finished(net, batch_norm(net, net.add(conv), "any"))
    after, notes = folded(before)
    assert not notes
    same(before, after)


def test_residual_keeps_floats_and_says_so(network, same):
    net = network((1, 6, 6, 12))
    before = finished(net, net.add(op.add(bconv(net, channels=12), net.x)))
    after, (note,) = folded(before)
    assert "not known before the network runs" in note.reason
    same(before, after)


def test_average_pooling_keeps_floats(network, same):
    net = network((1, 6, 6, 20))
    x = net.add(nn.avg_pool2d(bconv(net), (2, 2), (2, 2), layout="NHWC", out_layout="NHWC"))
    before = finished(net, x)
    after, notes = folded(before)
    assert [note.reason for note in notes] == ["an average pooling stands before the sign"]
    same(before, after)


@pytest.mark.parametrize("pool", [False, True])
def test_bent_layer(network, same, operators, pool):
    net = network((1, 6, 6, 20))
    x = net.add(ops.prelu(bconv(net), relax.const(np.full(12, -1, "float32"))))
    x = net.add(op.add(x, relax.const(np.full(12, -10, "float32"))))
    before = finished(net, pooled(net, x) if pool else x)
    after, notes = folded(before)
    assert not notes
    assert operators(after) == ["bitkiln.binarize", "bitkiln.bconv2d", *["bitkiln.bmaxpool2d"] * pool]
    same(before, after)


def test_layer_that_bends_often_keeps_floats(network, same, operators):
    net = network((1, 6, 6, 20))
    x = bconv(net)
    for shift in (-20, -8):
        x = net.add(ops.prelu(x, relax.const(np.full(12, -1, "float32"))))
        x = net.add(op.add(x, relax.const(np.full(12, shift, "float32"))))
    before = finished(net, x)
    after, (note,) = folded(before)
    assert "12 of 12 elements go up and down" in note.reason
    assert operators(after)[-1] == "bitkiln.binarize"
    same(before, after)


@pytest.mark.parametrize("seed", range(40))
def test_random_layers(network, same, seed):
    """Random steps before and after a random pooling; whatever becomes of them, the bits are the same."""
    net = network((1, 7, 6, 9), seed)
    rng = net.rng
    x = bconv(net, channels=9, outs=int(rng.integers(1, 20)), pad_value=int(rng.integers(-1, 2)))
    for position in range(2):
        for _ in range(rng.integers(0, 4)):
            shape = tuple(int(size) for size in x.ty.shape.values)[1:]
            shape = shape if rng.random() < 0.2 else shape[2:]
            kind = rng.choice(["any", "positive", "some zero"])
            steps = [
                lambda x=x, shape=shape: op.multiply(x, relax.const(operand(rng, shape, kind))),  # noqa: B023
                lambda x=x, shape=shape: op.add(x, net.normal(*shape, scale=10)),
                lambda x=x, shape=shape: ops.prelu(x, relax.const(operand(rng, shape, kind))),  # noqa: B023
                lambda x=x: nn.relu(x),
                lambda x=x: nn.leakyrelu(x, 0.2),
                lambda x=x: op.clip(x, -8.0, 20.0),
                lambda x=x: op.tanh(x),
            ]
            x = net.add(steps[rng.integers(len(steps))]())
        if position == 0 and rng.random() < 0.6:
            x = pooled(net, x, (2, 2) if rng.random() < 0.5 else (3, 3))
    before = finished(net, x, int(rng.choice([-1, 1])))
    after, _ = folded(before)
    same(before, after, seeds=range(3))
