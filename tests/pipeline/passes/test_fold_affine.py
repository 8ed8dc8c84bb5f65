"""Multiplications and additions by constants merge, and weights take factors."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.passes.fold_affine import fold_affine

op, nn = relax.op, relax.op.nn
C = relax.const


def conv(net, x, channels, outs, **attrs):
    weight = net.normal(outs, 3, 3, channels)
    call = nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC", padding=1, **attrs)
    return net.add(call)


def test_a_chain_becomes_one_of_each(network, same, operators):
    net = network((1, 4, 4, 6))
    x = net.x
    for _ in range(3):
        x = net.add(op.add(net.add(op.multiply(x, net.normal(6))), net.normal(6)))
    before = net.module(x)
    after = fold_affine(before)
    assert operators(after) == ["multiply", "add"]
    same(before, after, 1e-6)


def test_factors_go_into_weights(network, same, operators):
    net = network((1, 5, 5, 3))
    x = net.add(op.add(conv(net, net.x, 3, 6), net.normal(6)))
    before = net.module(net.add(nn.relu(net.add(op.multiply(x, net.normal(1, 1, 1, 6))))))
    after = fold_affine(before)
    assert operators(after) == ["nn.conv2d", "add", "nn.relu"]
    same(before, after, 1e-5)


def test_factor_per_element_stays(network, same, operators):
    net = network((1, 5, 5, 3))
    before = net.module(net.add(op.multiply(conv(net, net.x, 3, 6), net.normal(5, 5, 6))))
    after = fold_affine(before)
    assert operators(after) == ["nn.conv2d", "multiply"]
    same(before, after)


def test_value_used_elsewhere_is_kept(network, same, operators):
    net = network((1, 5, 5, 3))
    x = conv(net, net.x, 3, 6)
    before = net.module(net.add(op.multiply(x, net.normal(6))), net.add(nn.relu(x)))
    after = fold_affine(before)
    assert operators(after) == ["nn.conv2d", "multiply", "nn.relu"]
    same(before, after)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_padding_joins_only_where_it_is_zero(network, same, operators, value):
    net = network((1, 5, 5, 3))
    padded = net.add(nn.pad(net.x, [0, 0, 1, 2, 0, 1, 0, 0], "constant", value))
    before = net.module(conv(net, padded, 3, 6, strides=2))
    after = fold_affine(before)
    assert operators(after) == (["nn.pad", "nn.conv2d"] if value else ["nn.conv2d"])
    same(before, after)


def test_what_changes_nothing_goes_and_its_name_stays(network, same):
    net = network((1, 5, 5, 3))
    x = net.add(op.multiply(net.add(nn.relu(net.x)), C(1.0)))
    before = net.module(net.add(op.add(x, C(np.zeros(3, "float32"))), "last"))
    after = fold_affine(before)
    assert [name for name, _ in bindings(after["main"])] == ["out0"]
    same(before, after)


def test_broadcasting_identity_is_kept(network, same):
    net = network((1, 1, 1, 3))
    before = net.module(net.add(op.add(net.x, C(np.zeros((1, 4, 4, 3), "float32")))))
    same(before, fold_affine(before))


def test_dead_channels_do_not_keep_weights_from_their_factors(network, operators):
    """Training with weight decay leaves denormal weights and factors."""
    net = network((1, 4, 4, 2))
    weights = np.full((2, 1, 1, 2), 1e-40, "float32")
    conv = net.add(nn.conv2d(net.x, relax.const(weights), data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"))
    factors = net.add(relax.op.multiply(conv, relax.const(np.float32([1e-41, 0.3]))))
    assert operators(fold_affine(net.module(factors))) == ["nn.conv2d"]


def test_factors_that_float32_cannot_hold_as_one_stay_apart(network, same, operators):
    net = network((1, 4, 4, 2))
    x = net.x
    for factor in (1e-30, 1e-30):
        x = net.add(relax.op.multiply(x, relax.const(np.float32([factor, 1]))))
    before = net.module(x)
    assert operators(fold_affine(before)) == ["multiply", "multiply"]
    same(before, fold_affine(before), scale=1e30)


def test_constants_that_widen_an_image_stay(network, operators):
    net = network((1, 1, 1, 2))
    weights = net.normal(2, 1, 1, 2)
    conv = net.add(nn.conv2d(net.x, weights, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"))
    wide = net.add(relax.op.multiply(conv, relax.const(np.full((1, 3, 3, 2), 2, "float32"))))
    assert operators(fold_affine(net.module(wide))) == ["nn.conv2d", "multiply"]
