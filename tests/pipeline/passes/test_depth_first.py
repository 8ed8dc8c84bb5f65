"""Depthwise convolutions join with the 1x1 convolutions around them; the network computes what it did."""

from __future__ import annotations

import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings
from bitkiln.pipeline.passes.depth_first import depth_first
from bitkiln.schedules.steps import Step

SIDE = 56
#: Of a depthwise layer's weights and a 1x1 layer's.
SHAPES = ((24, 3, 3, 1), (24, 1, 1, 24))
WIDE = ((128, 3, 3, 1), (128, 1, 1, 128))
LARGE = ((512, 3, 3, 1), (512, 1, 1, 512))
ADD, SIX = Step("add", "channel"), Step("clip", values=(0.0, 6.0))


def residual(net, *, kept="", size=SIDE):
    """An inverted residual; ``kept``: a layer in it whose result somebody else reads, too."""

    def weight(*shape):
        return relax.const(net.rng.normal(0, 0.2, shape).astype("float32"), "float32")

    wide = net.add(ops.conv2d(net.x, weight(48, 1, 1, 8), net.normal(48), epilogue=(ADD, SIX)), "wide")
    deep = ops.conv2d(wide, weight(48, 3, 3, 1), net.normal(48), padding=(1,) * 4, groups=48, epilogue=(ADD, SIX))
    deep = net.add(deep, "deep")
    last = ops.conv2d(deep, weight(8, 1, 1, 48), net.normal(8), net.x, epilogue=(ADD, Step("add", "tensor")))
    last = net.add(last, "last")
    if kept:
        last = net.add(relax.op.concat([last, {"wide": wide, "deep": deep}[kept]], 3), "both")
    return net.module(last)


def layers(module):
    """For each operator of ours the number of convolutions that it computes."""
    found = [ops.workload_of(value) for _, value in bindings(module["main"]) if ops.has_workload(value)]
    return [len(getattr(work, "layers", (work,))) for work in found]


@pytest.mark.parametrize(("kept", "joined"), [("", [3]), ("wide", [1, 2]), ("deep", [2, 1])])
def test_layers_join_where_nobody_else_reads_what_lies_between(network, same, kept, joined):
    module = residual(network((1, SIDE, SIDE, 8)), kept=kept)
    after = depth_first(module, targets.load("rasp3b"))
    assert layers(after) == joined
    same(module, after)


def test_a_layer_between_two_depthwise_ones_joins_the_first(network, same):
    net = network((1, 64, 64, 24))
    value = net.x
    for name in ("first", "second"):
        filters, weight = (relax.const(net.rng.normal(0, 0.2, shape).astype("float32")) for shape in SHAPES)
        value = net.add(ops.conv2d(value, filters, padding=(1,) * 4, groups=24), f"{name}.deep")
        value = net.add(ops.conv2d(value, weight, net.normal(24), epilogue=(ADD,)), f"{name}.wide")
    module = net.module(value)
    after = depth_first(module, targets.load("rasp3b"))
    assert layers(after) == [2, 2]
    same(module, after)


def test_the_result_keeps_its_name(network):
    module = residual(network((1, SIDE, SIDE, 8)))
    after = depth_first(module, targets.load("rasp3b"))
    assert [name for name, _ in bindings(after["main"])] == [list(bindings(module["main"]))[-1][0]]


def test_a_target_without_its_kernels_keeps_layers_apart(network):
    module = residual(network((1, SIDE, SIDE, 8)))
    assert layers(depth_first(module, targets.load("rasp3b32"))) == [1, 1, 1]


def test_many_products_for_what_lies_between_stay_apart(network):
    net = network((1, SIDE, SIDE, 128))
    filters, weight = (relax.const(net.rng.normal(0, 0.2, shape).astype("float32")) for shape in WIDE)
    wide = net.add(ops.conv2d(net.x, weight))
    module = net.module(net.add(ops.conv2d(wide, filters, strides=(2, 2), padding=(1,) * 4, groups=128)))
    assert layers(depth_first(module, targets.load("rasp3b"))) == [1, 1]


def test_small_images_stay_in_the_cache_anyway(network):
    """A product is then computed alone; what the depthwise layer gives need not leave the L1 cache all the same."""
    module = residual(network((1, 7, 7, 8)))
    assert layers(depth_first(module, targets.load("rasp3b"))) == [1, 2]


def test_weights_that_fill_the_cache_keep_layers_apart(network):
    net = network((1, 14, 14, 512))
    filters, weight = (relax.const(net.rng.normal(0, 0.2, shape).astype("float32")) for shape in LARGE)
    deep = net.add(ops.conv2d(net.x, filters, padding=(1,) * 4, groups=512))
    module = net.module(net.add(ops.conv2d(deep, weight)))
    assert layers(depth_first(module, targets.load("rasp3b"))) == [1, 1]
