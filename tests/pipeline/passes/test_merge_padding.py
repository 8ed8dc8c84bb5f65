"""Padding in a step of its own becomes that of the convolution or pooling behind it, where that is exact."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.merge_padding import merge_padding

nn = relax.op.nn
LOWEST = float(np.finfo(np.float32).min)


def padded(net, x, value, widths=(1, 0, 0, 2)):
    top, left, bottom, right = widths
    return net.add(nn.pad(x, [0, 0, top, bottom, left, right, 0, 0], "constant", value))


def bconv(net, x, *, sign_zero=1, channels=12, **attrs):
    weight = relax.const(ops.pack_bits(np.random.default_rng(3).normal(size=(6, 3, 3, channels))), "uint8")
    return net.add(ops.bconv2d(net.add(ops.binarize(x, sign_zero=sign_zero)), weight, channels=channels, **attrs))


def convolutions(module):
    calls = (value for _, value in bindings(module["main"]))
    return [workload_of(value) for value in calls if op_name(value) == "bitkiln.bconv2d"]


@pytest.mark.parametrize("value", [1.0, -0.5, 0.0])
@pytest.mark.parametrize("sign_zero", [1, -1])
def test_signs_of_padded_images(network, same, operators, value, sign_zero):
    net = network((1, 6, 7, 12))
    before = net.module(bconv(net, padded(net, net.x, value), sign_zero=sign_zero, strides=(2, 1)))
    after = merge_padding(before)
    assert operators(after) == ["bitkiln.binarize", "bitkiln.bconv2d"]
    (workload,) = convolutions(after)
    assert (workload.padding, workload.pad_value) == ((1, 0, 0, 2), int(np.sign(value)) or sign_zero)
    same(before, after)


@pytest.mark.parametrize(("own", "merged"), [(1, True), (-1, False), (0, False)])
def test_padding_of_two_values_stays_apart(network, same, operators, own, merged):
    net = network((1, 6, 7, 12))
    before = net.module(bconv(net, padded(net, net.x, 2.0, (1, 1, 0, 0)), padding=(0, 0, 1, 1), pad_value=own))
    after = merge_padding(before)
    assert ("nn.pad" not in operators(after)) == merged
    same(before, after)


def test_padding_wider_than_the_window_stays(network, same, operators):
    net = network((1, 6, 7, 12))
    before = net.module(bconv(net, padded(net, net.x, 1.0, (3, 0, 0, 0))))
    after = merge_padding(before)
    assert "nn.pad" in operators(after)
    same(before, after)


def test_signs_are_made_once(network, same, operators):
    net = network((1, 6, 7, 12))
    first = bconv(net, net.x)
    second = bconv(net, padded(net, net.x, 1.0))
    third = bconv(net, net.x, sign_zero=-1)
    before = net.module(first, second, third)
    after = merge_padding(before)
    assert operators(after).count("bitkiln.binarize") == 2
    same(before, after)


@pytest.mark.parametrize(
    ("value", "bounded", "merged"),
    [(0.0, True, True), (0.0, False, False), (LOWEST, False, True), (-np.inf, False, True), (0.5, True, False)],
)
def test_maxima_of_padded_images(network, same, operators, value, bounded, merged):
    net = network((1, 6, 7, 12))
    x = net.add(nn.relu(net.x)) if bounded else net.x
    pool = nn.max_pool2d(padded(net, x, value, (1, 1, 1, 2)), (3, 3), (2, 2), layout="NHWC")
    before = net.module(net.add(pool))
    after = merge_padding(before)
    assert ("nn.pad" not in operators(after)) == merged
    same(before, after)


@pytest.mark.parametrize(("value", "merged"), [(0.0, True), (1.0, False)])
def test_averages_of_padded_images(network, same, operators, value, merged):
    net = network((1, 6, 7, 12))
    pool = nn.avg_pool2d(padded(net, net.x, value), (3, 3), (2, 2), layout="NHWC")
    before = net.module(net.add(pool))
    after = merge_padding(before)
    assert ("nn.pad" not in operators(after)) == merged
    same(before, after, 1e-6)


def test_windows_in_the_padding_alone_keep_it(network, same, operators):
    net = network((1, 6, 7, 12))
    pool = nn.max_pool2d(padded(net, net.add(nn.relu(net.x)), 0.0, (2, 0, 0, 0)), (2, 2), (2, 2), layout="NHWC")
    before = net.module(net.add(pool))
    after = merge_padding(before)
    assert "nn.pad" in operators(after)
    same(before, after)
