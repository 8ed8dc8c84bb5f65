"""What follows a convolution moves into it, in order, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, op_name
from bitkiln.pipeline.ops import workload_of
from bitkiln.pipeline.passes.fuse_epilogue import fuse_epilogue
from bitkiln.pipeline.passes.to_operators import to_operators
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool

op, nn = relax.op, relax.op.nn
C = relax.const
MAX = Pool((2, 2), (2, 2))


def conv(net, x, channels, outs, weight=None):
    weight = net.normal(outs, 3, 3, channels, scale=0.3) if weight is None else weight
    return net.add(nn.conv2d(x, weight, padding=1, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"))


def max_pool(x):
    return nn.max_pool2d(x, (2, 2), (2, 2), layout="NHWC", out_layout="NHWC")


def fused(module):
    return fuse_epilogue(to_operators(module))


def workloads(module):
    return [workload_of(value) for _, value in bindings(module["main"]) if op_name(value).startswith("bitkiln.")]


STEPS = {
    "bias": (lambda n, x: op.add(x, n.normal(8)), Step("add", "channel")),
    "scalar": (lambda n, x: op.multiply(x, C(3.0)), Step("mul", "channel")),
    "per element": (lambda n, x: op.multiply(x, n.normal(1, 6, 6, 8)), Step("mul", "element")),
    "per row": (lambda n, x: op.add(x, n.normal(6, 1, 1)), Step("add", "element")),
    "relu": (lambda n, x: nn.relu(x), Step("relu")),
    "relu6": (lambda n, x: nn.relu6(x), Step("clip", "", (0.0, 6.0))),
    "clip": (lambda n, x: op.clip(x, -1.0, 2.5), Step("clip", "", (-1.0, 2.5))),
    "leaky": (lambda n, x: nn.leakyrelu(x, 0.25), Step("leaky", "", (0.25,))),
    "prelu": (lambda n, x: ops.prelu(x, n.normal(8)), Step("prelu", "channel")),
    "prelu per element": (lambda n, x: ops.prelu(x, n.normal(6, 6, 8)), Step("prelu", "element")),
    "sigmoid": (lambda n, x: op.sigmoid(x), Step("sigmoid")),
    "tanh": (lambda n, x: op.tanh(x), Step("tanh")),
    "silu": (lambda n, x: nn.silu(x), Step("silu")),
    "hardswish": (lambda n, x: ops.hardswish(x), Step("hardswish")),
}


@pytest.mark.parametrize("name", STEPS)
def test_step(network, same, name):
    make, step = STEPS[name]
    net = network((1, 6, 6, 3))
    before = net.module(net.add(make(net, conv(net, net.x, 3, 8))))
    after = fused(before)
    (workload,) = workloads(after)
    assert workload.epilogue == (step,)
    assert [name for name, _ in bindings(after["main"])] == ["out0"]
    same(before, after)


def test_clip_without_an_upper_end_is_exact(network, same):
    net = network((1, 6, 6, 3))
    before = net.module(net.add(op.clip(conv(net, net.x, 3, 8), -0.5, float("inf"))))
    same(before, fused(before))


def test_everything_in_order(network, same):
    net = network((1, 6, 6, 3))
    x = net.add(op.add(conv(net, net.x, 3, 8), net.normal(8)))
    before = net.module(net.add(max_pool(net.add(nn.relu(x)))))
    after = fused(before)
    (workload,) = workloads(after)
    assert workload.epilogue == (Step("add", "channel"), Step("relu"))
    assert workload.pool == MAX
    same(before, after)


def test_residual_goes_to_the_later_convolution(network, same):
    net = network((1, 6, 6, 8))
    first = conv(net, net.x, 8, 8)
    second = conv(net, first, 8, 8)
    shortcut = conv(net, net.x, 8, 8)
    before = net.module(net.add(nn.relu(net.add(op.add(second, shortcut)))))
    after = fused(before)
    assert [w.epilogue for w in workloads(after)] == [(), (), (Step("add", "tensor"), Step("relu"))]
    same(before, after, 1e-6)


def test_result_with_two_uses_is_not_swallowed(network, same, operators):
    net = network((1, 6, 6, 3))
    x = conv(net, net.x, 3, 8)
    before = net.module(net.add(op.add(net.add(nn.relu(x)), x)))
    after = fused(before)
    assert operators(after) == ["bitkiln.conv2d", "nn.relu", "add"]
    same(before, after)


def test_a_value_added_to_itself(network, same):
    net = network((1, 6, 6, 3))
    x = conv(net, net.x, 3, 8)
    before = net.module(net.add(op.add(x, x)))
    same(before, fused(before))


def test_order_keeping_steps_move_before_the_pooling(network, same, operators):
    net = network((1, 6, 6, 3))
    x = net.add(max_pool(conv(net, net.x, 3, 8)))
    x = net.add(op.multiply(x, C(net.rng.uniform(0, 2, 8).astype("float32"))))
    before = net.module(net.add(nn.relu(net.add(op.add(x, net.normal(8))))))
    after = fused(before)
    assert operators(after) == ["bitkiln.conv2d"]
    same(before, after)


def test_order_turning_steps_stay_behind(network, same, operators):
    net = network((1, 6, 6, 3))
    x = net.add(max_pool(conv(net, net.x, 3, 8)))
    before = net.module(net.add(op.multiply(x, net.normal(8))))
    after = fused(before)
    assert operators(after) == ["bitkiln.conv2d", "multiply"]
    same(before, after)


def test_signs_of_a_float_convolution(network, same):
    net = network((1, 6, 6, 3))
    x = net.add(max_pool(net.add(op.add(conv(net, net.x, 3, 20), net.normal(20)))))
    before = net.module(net.add(ops.binarize(x, sign_zero=-1)))
    after = fused(before)
    (workload,) = workloads(after)
    assert (workload.out, workload.sign_zero, workload.pool) == ("bits", -1, MAX)
    same(before, after)


def test_batch_norm_joins_the_signs(network, same):
    net = network((1, 6, 6, 20))
    kept = net.add(nn.relu(net.x))
    norm = net.add(op.add(net.add(op.multiply(kept, net.normal(20))), net.normal(20)))
    before = net.module(net.add(ops.binarize(norm)), kept)
    after = fused(before)
    (workload,) = workloads(after)
    assert workload.epilogue == (Step("mul", "channel"), Step("add", "channel"))
    same(before, after)


POOLS = {
    "max": (max_pool, Pool((2, 2), (2, 2))),
    "max, ceil": (
        lambda x: nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True, layout="NHWC", out_layout="NHWC"),
        Pool((3, 3), (2, 2), (0, 0, 1, 1)),
    ),
    "average": (
        lambda x: nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1), layout="NHWC", out_layout="NHWC", count_include_pad=False),
        Pool((3, 3), (2, 2), (1, 1, 1, 1), "avg", False),
    ),
    "average, ceil": (
        lambda x: nn.avg_pool2d(
            x, (3, 3), (2, 2), ceil_mode=True, layout="NHWC", out_layout="NHWC", count_include_pad=False
        ),
        None,
    ),
    "global": (lambda x: op.mean(x, [1, 2], keepdims=True), Pool((6, 6), (1, 1), kind="avg")),
    "adaptive": (lambda x: nn.adaptive_avg_pool2d(x, (1, 1), "NHWC", "NHWC"), Pool((6, 6), (1, 1), kind="avg")),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_on_its_own(network, same, name):
    make, pool = POOLS[name]
    net = network((1, 6, 6, 5))
    before = net.module(net.add(op.multiply(net.add(make(net.x)), net.normal(5))))
    after = fused(before)
    found = workloads(after)
    assert len(found) == (1 if pool else 0)
    if pool:
        assert (found[0].pool, found[0].epilogue) == (pool, (Step("mul", "channel"),))
    same(before, after, 1e-6)


def test_mean_without_its_axes(network, same, operators):
    net = network((1, 6, 6, 5))
    before = net.module(net.add(op.mean(net.x, [1, 2])))
    after = fused(before)
    assert operators(after) == ["bitkiln.pool2d", "reshape"]
    same(before, after, 1e-6)


def test_computed_weights_stay_with_relax(network, operators):
    net = network((1, 6, 6, 5))
    weight = net.add(op.reshape(net.add(op.strided_slice(net.x, [1, 2], [0, 0], [3, 3])), (5, 3, 3, 1)))
    x = net.add(nn.conv2d(net.x, weight, groups=5, data_layout="NHWC", kernel_layout="OHWI", out_layout="NHWC"))
    assert "nn.conv2d" in operators(fused(net.module(x)))


def test_uneven_residual_is_no_step(network, same, operators):
    net = network((1, 6, 6, 5))
    gate = net.add(op.mean(net.x, [1, 2], keepdims=True))
    before = net.module(net.add(op.multiply(conv(net, net.x, 5, 5), gate)))
    after = fused(before)
    assert operators(after)[-1] == "multiply"
    same(before, after, 1e-6)
    assert np.prod(gate.ty.shape.values) == 5
