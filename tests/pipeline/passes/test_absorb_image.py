"""First layers take the image as it comes: mean, scale and layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.absorb_image import absorb_image
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.to_operators import to_operators

op, nn = relax.op, relax.op.nn
RASP3B = targets.load("rasp3b")


def stem(net, x, outs=16):
    weight = net.normal(outs, 3, 3, 3)
    attrs = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC", "padding": 1}
    return net.add(nn.relu(net.add(nn.conv2d(x, weight, **attrs))))


def absorbed(before, target=RASP3B):
    return absorb_image(fuse_epilogue(to_operators(before)), target)


def first(module):
    return next(workload_of(value) for _, value in bindings(module["main"]))


def test_a_mean_becomes_a_shift(network, const, same, operators):
    net = network((1, 12, 12, 3))
    before = net.module(stem(net, net.add(op.add(net.x, const([-1.0, 2.0, 0.5])))))
    after = absorbed(before)
    assert operators(after) == ["bitkiln.conv2d"]
    assert first(after).shift
    same(before, after, 1e-5)


def test_planes_with_mean_and_scale_are_read_as_they_are(network, const, same, operators):
    net = network((1, 3, 12, 14))
    image = net.add(op.permute_dims(net.x, [0, 2, 3, 1]))
    scaled = net.add(op.multiply(net.add(op.add(image, const(-114.0))), const([0.5, 2.0, -1.0])))
    before = net.module(stem(net, scaled))
    after = absorbed(before)
    assert operators(after) == ["bitkiln.conv2d"]
    assert (first(after).layout, first(after).shift) == ("NCHW", True)
    same(before, after, 1e-5)


@pytest.mark.parametrize("scale", [[1.0, 0.0, 1.0]])
def test_a_factor_of_zero_stays(network, const, same, operators, scale):
    net = network((1, 12, 12, 3))
    before = net.module(stem(net, net.add(op.multiply(net.add(op.add(net.x, const(3.0))), const(scale)))))
    after = absorbed(before)
    assert operators(after) == ["add", "multiply", "bitkiln.conv2d"]
    same(before, after)


def test_a_shift_per_pixel_stays(network, operators):
    net = network((1, 12, 12, 3))
    before = net.module(stem(net, net.add(op.add(net.x, net.normal(12, 12, 3)))))
    assert operators(absorbed(before)) == ["add", "bitkiln.conv2d"]


def test_an_image_that_is_used_twice_is_kept(network, const, same, operators):
    net = network((1, 12, 12, 3))
    shifted = net.add(op.add(net.x, const(1.0)))
    before = net.module(stem(net, shifted), net.add(nn.relu(shifted)))
    after = absorbed(before)
    assert sorted(operators(after)) == ["add", "bitkiln.conv2d", "nn.relu"]
    same(before, after)


def test_targets_without_such_a_kernel_keep_the_steps(network, const, operators):
    net = network((1, 12, 12, 3))
    before = net.module(stem(net, net.add(op.add(net.x, const(1.0)))))
    assert operators(absorbed(before, replace(targets.load("rasp3b32"), kernels=""))) == ["add", "bitkiln.conv2d"]


def test_other_layers_are_left_alone(network, operators):
    net = network((1, 12, 12, 3))
    before = net.module(stem(net, net.x))
    after = absorbed(before)
    assert operators(after) == ["bitkiln.conv2d"]
    assert not first(after).shift
    assert np.prod(first(after).out_size) == 144


def test_groups_take_their_image_as_it_is(network, const, same, operators):
    net = network((1, 12, 12, 8))
    x = net.add(op.multiply(net.x, net.normal(8)))
    attrs = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC", "padding": 1, "groups": 2}
    before = net.module(net.add(nn.conv2d(x, net.normal(16, 3, 3, 4), **attrs)))
    after = absorbed(before)
    assert operators(after) == ["multiply", "bitkiln.conv2d"]
    same(before, after, 1e-5)
