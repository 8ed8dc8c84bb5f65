"""Large weights rounded to bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.ir.graph import array_of, bindings, op_name
from bitkiln.pipeline.passes.round_weights import nearest, round_weights

RASP3B = targets.load("rasp3b")


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F800000, 0x3F80),
        (0x3F807FFF, 0x3F80),
        (0x3F808000, 0x3F80),  # a tie: to even
        (0x3F818000, 0x3F82),
        (0x3F808001, 0x3F81),
        (0xBFFFFFFF, 0xC000),
        (0x7F7FFFFF, 0x7F80),
        (0xFF800000, 0xFF80),
        (0x80000001, 0x8000),
    ],
)
def test_rounding_is_to_the_nearest_and_ties_to_even(bits, expected):
    value = np.array([bits], "uint32").view("float32")
    assert nearest(value).view("uint32")[0] == expected << 16


def test_what_is_no_number_stays_none():
    assert np.isnan(nearest(np.array([0x7F800001, 0xFFFFFFFF], "uint32").view("float32"))).all()


def convolution(net, channels: int):
    layouts = {"data_layout": "NHWC", "kernel_layout": "OHWI"}
    return net.module(net.add(relax.op.nn.conv2d(net.x, net.normal(channels, 1, 1, 256), **layouts), "conv"))


@pytest.mark.parametrize(("channels", "rounds"), [(257, True), (256, False)])
def test_only_weights_that_caches_do_not_hold_are_rounded(network, channels, rounds):
    before = convolution(network((1, 2, 2, 256)), channels)
    weights = [
        next(array_of(value.args[1]) for _, value in bindings(module["main"]) if op_name(value) == "nn.conv2d")
        for module in (before, round_weights(before, RASP3B))
    ]
    assert np.array_equal(weights[1], nearest(weights[0]) if rounds else weights[0])
    assert not np.array_equal(weights[0], nearest(weights[0]))
