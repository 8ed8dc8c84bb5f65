"""Bounds of values, and rounding between two whole numbers as a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, bindings
from bitkiln.pipeline.passes.binary.rounding import ROUNDINGS, bounds, jump_between

op, nn = relax.op, relax.op.nn
C = relax.const


@pytest.mark.parametrize("low", [-2, -1, 0, 1, 2, 5])
@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_step_is_where_the_rounding_has_it(name, low):
    """For every float near the step, and for what the bounds leave beside it."""
    step = jump_between(name, float(low), low + 1.0)
    near = np.float32([low, low + 0.5, low + 1])
    x = np.concatenate([np.nextafter(near, np.float32(-99)), near, np.nextafter(near, np.float32(99))])
    rounded = ROUNDINGS[name](x)
    inside = (rounded >= low) & (rounded <= low + 1)
    stepped = np.where(x > step.level, low + 1, np.where(x < step.level, low, step.at))
    np.testing.assert_array_equal(stepped[inside], rounded[inside])


@pytest.mark.parametrize(("low", "high"), [(0, 2), (0.5, 1.5), (-np.inf, 0), (3, 3), (2.0**30, 2.0**30 + 1)])
def test_other_bounds_leave_no_step(low, high):
    assert jump_between("round", low, high) is None


BOUNDS = {
    "of a clip": (lambda n, x: n.add(op.clip(x, -2.0, 3.0)), (-2, 3)),
    "scaled and shifted": (
        lambda n, x: n.add(op.add(n.add(op.multiply(n.add(op.clip(x, -1.0, 1.0)), C(-2.0))), C(1.0))),
        (-1, 3),
    ),
    "a quotient": (lambda n, x: n.add(op.divide(n.add(op.clip(x, -1.0, 1.0)), C(4.0))), (-0.25, 0.25)),
    "a factor for each channel": (
        lambda n, x: n.add(op.multiply(n.add(nn.relu6(x)), C(np.float32([[[1]], [[-2]]])))),
        (-12, 6),
    ),
    "a square": (lambda n, x: n.add(op.multiply(x, x)), (0, np.inf)),
    "pooled": (lambda n, x: n.add(nn.max_pool2d(n.add(op.sigmoid(x)), (2, 2))), (0, 1)),
    "rounded": (lambda n, x: n.add(op.ceil(n.add(op.clip(x, -0.5, 0.5)))), (0, 1)),
    "of anything": (lambda n, x: n.add(op.add(x, C(1.0))), (-np.inf, np.inf)),
    "of a quotient by what may be zero": (lambda n, x: n.add(op.divide(x, C(np.float32([1, 0])))), (-np.inf, np.inf)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(network, name):
    make, expected = BOUNDS[name]
    net = network((1, 2, 4, 2))
    function = net.module(make(net, net.x))["main"]
    graph = Graph(function)
    last = [graph.bind(name, graph.remap(value)) for name, value in bindings(function)][-1]
    assert bounds(graph, last) == expected
