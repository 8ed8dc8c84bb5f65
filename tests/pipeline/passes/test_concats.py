"""Concatenations: nothing is copied twice, and signs are taken of the parts."""

from __future__ import annotations

import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.layout import layout
from bitkiln.pipeline.passes.to_operators import to_operators

op, nn = relax.op, relax.op.nn


def conv(net, x, channels, outs):
    weight = net.normal(outs, 3, 3, channels, scale=0.3)
    return net.add(nn.conv2d(x, weight, padding=1, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"))


def concats(module):
    found = [workload_of(value) for _, value in bindings(module["main"]) if op_name(value) == "bitkiln.concat"]
    return [(concat.parts, concat.bits) for concat in found]


def test_concats_of_concats_join_the_parts(network, same, operators):
    net = network((1, 5, 6, 8))
    first = net.add(op.concat([net.x, conv(net, net.x, 8, 4)], -1))
    second = net.add(op.concat([first, conv(net, first, 12, 3)], 3))
    before = net.module(net.add(nn.relu(second)))
    after = fuse_epilogue(to_operators(before))
    assert concats(after) == [((8, 4), False), ((8, 4, 3), False)]
    assert "nn.relu" not in operators(after)
    same(before, after, 1e-6)


@pytest.mark.parametrize(("begin", "end", "left"), [(0, 8, 0), (8, 12, 0), (0, 12, 1), (-7, 99, 1), (0, 5, 2)])
def test_slices_along_the_seams(network, same, operators, begin, end, left):
    net = network((1, 5, 6, 8))
    parts = [net.x, conv(net, net.x, 8, 4), conv(net, net.x, 8, 3)]
    before = net.module(net.add(op.strided_slice(net.add(op.concat(parts, 3)), [3], [begin], [end])))
    after = to_operators(before)
    assert operators(after).count("bitkiln.concat") + operators(after).count("strided_slice") == left
    same(before, after)


def test_other_axes_stay(network, same, operators):
    net = network((1, 5, 6, 8))
    before = net.module(net.add(op.strided_slice(net.add(op.concat([net.x, net.x], 1)), [1], [0], [5])))
    assert operators(to_operators(before)) == ["concat", "strided_slice"]


def test_slices_of_channels_need_no_other_layout(network, same, operators):
    net = network((1, 6, 5, 4))
    weight = net.normal(6, 6, 3, 3)
    x = net.add(nn.conv2d(net.x, weight, padding=1))
    part = net.add(op.strided_slice(x, [1], [2], [-1]))
    before = net.module(net.add(nn.conv2d(part, net.normal(4, 3, 1, 1))))
    after = layout(before)
    assert operators(after).count("permute_dims") == 2
    same(before, after, 1e-6)


@pytest.mark.parametrize("twice", [False, True])
def test_signs_are_those_of_the_parts(network, same, operators, twice):
    net = network((1, 5, 6, 16))
    x = net.add(op.concat([net.x, conv(net, net.x, 16, 8), conv(net, net.x, 16, 3)], 3))
    normed = net.add(op.add(net.add(op.multiply(x, net.normal(27))), net.normal(27)))
    signs = [net.add(ops.binarize(normed, sign_zero=1))]
    if twice:
        signs.append(net.add(ops.binarize(x, sign_zero=-1)))
    before = net.module(*signs)
    after = fuse_epilogue(to_operators(before))
    assert concats(after) == [((16, 8, 3), True)] * len(signs)
    same(before, after)


def test_signs_of_parts_that_nobody_else_needs_are_taken_where_they_are_made(network, same, operators):
    net = network((1, 5, 6, 8))
    x = net.add(op.concat([net.x, conv(net, net.x, 8, 8)], 3))
    before = net.module(net.add(ops.binarize(x, sign_zero=1)))
    after = fuse_epilogue(to_operators(before))
    assert operators(after) == ["bitkiln.binarize", "bitkiln.conv2d", "bitkiln.concat"]
    same(before, after)


def test_parts_that_end_inside_a_byte_stay_together(network, same):
    net = network((1, 5, 6, 4))
    x = net.add(op.concat([net.x, conv(net, net.x, 4, 12)], 3))
    before = net.module(net.add(ops.binarize(x, sign_zero=1)))
    after = fuse_epilogue(to_operators(before))
    assert concats(after) == [((4, 12), False)]
    same(before, after)


@pytest.mark.parametrize(("outs", "same_residual"), [((16, 16), True), ((16, 8), True), ((16, 16), False)])
def test_binary_convolutions_of_the_same_bits_become_one(network, same, operators, outs, same_residual):
    net = network((1, 5, 6, 24))
    bits = net.add(ops.binarize(net.x, sign_zero=1))
    parts = []
    for i, out in enumerate(outs):
        weight = ops.pack_bits(net.rng.integers(0, 2, (out, 1, 1, 24)))
        x = net.add(ops.bconv2d(bits, relax.const(weight, "uint8"), channels=24))
        x = net.add(op.add(net.add(op.multiply(x, net.normal(out))), net.normal(out)))
        residual = conv(net, net.x, 24, outs[0]) if i == 0 or not same_residual else conv(net, net.x, 24, out)
        parts.append((x, residual))
    alike = outs[0] == outs[1]
    residuals = [parts[0][1], parts[0][1] if same_residual else parts[1][1]]
    sums = [net.add(op.add(x, r)) if alike else x for (x, _), r in zip(parts, residuals, strict=True)]
    joined = net.add(op.concat(sums, 3))
    shifted = net.add(op.add(joined, net.normal(sum(outs))))
    before = net.module(net.add(ops.prelu(shifted, net.normal(sum(outs)))))
    after = fuse_epilogue(to_operators(before))
    assert operators(after).count("bitkiln.bconv2d") == (1 if same_residual or not alike else 2)
    if alike and same_residual:
        kinds = [(step.op, step.operand) for step in workload_of(list(bindings(after["main"]))[-1][1]).epilogue]
        assert kinds == [
            ("mul", "channel"),
            ("add", "channel"),
            ("add", "half"),
            ("add", "channel"),
            ("prelu", "channel"),
        ]
    same(before, after, 1e-6)
