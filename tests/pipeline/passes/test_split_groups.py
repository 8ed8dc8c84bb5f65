"""Grouped binary convolutions become one for each group where groups are whole bytes, and stay what they compute."""

from __future__ import annotations

import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.passes.split_groups import split_groups
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool

STEPS = (Step("mul", "channel"), Step("add", "element"))


def grouped(net, channels, outs, groups, *operands, **how):
    bits = net.add(ops.binarize(net.x, sign_zero=1))
    weight = relax.const(ops.pack_bits(net.rng.integers(0, 2, (outs, 3, 3, channels // groups))), "uint8")
    return net.add(
        ops.bconv2d(bits, weight, *operands, channels=channels, groups=groups, padding=(1, 1, 1, 1), **how), "conv"
    )


@pytest.mark.parametrize(("channels", "outs", "groups"), [(32, 16, 2), (24, 48, 3), (64, 64, 8)])
@pytest.mark.parametrize("bits", [True, False])
def test_groups_of_whole_bytes(network, same, operators, channels, outs, groups, bits):
    net = network((1, 6, 5, channels))
    if bits:
        thresholds = relax.const(net.rng.integers(-9, 9, outs).astype("int32"), "int32")
        conv = grouped(net, channels, outs, groups, thresholds, out="bits", threshold="channel", pad_value=1)
    else:
        operands = net.normal(outs), net.normal(6, 5, outs)
        conv = grouped(net, channels, outs, groups, *operands, epilogue=STEPS, pool=Pool((2, 2), (2, 2)))
    before = net.module(conv)
    after = split_groups(before)
    names = operators(after)
    assert names.count("bitkiln.bconv2d") == names.count("strided_slice") == groups
    assert names[-1] == "bitkiln.concat"
    same(before, after)


@pytest.mark.parametrize(("channels", "outs", "groups"), [(24, 16, 2), (32, 12, 2), (32, 16, 1)])
def test_others_stay_whole(network, operators, channels, outs, groups):
    net = network((1, 6, 5, channels))
    after = split_groups(net.module(grouped(net, channels, outs, groups)))
    assert operators(after).count("bitkiln.bconv2d") == 1


def test_residuals_stay_whole(network, operators):
    net = network((1, 6, 5, 16))
    after = split_groups(net.module(grouped(net, 16, 16, 2, net.x, epilogue=(Step("add", "tensor"),))))
    assert operators(after).count("bitkiln.bconv2d") == 1
