"""Steps of epilogues become fewer, and compute what they did but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln.pipeline import ops, reference
from bitkiln.pipeline.ir.graph import bindings, constant
from bitkiln.pipeline.passes.fold_steps import fold_steps
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool

MUL, ADD, PRELU, MAX = (Step(op, "channel") for op in ("mul", "add", "prelu", "max_scaled"))
TENSOR = Step("add", "tensor")
CASES = {
    "sums around another activation": ((MUL, ADD, TENSOR, ADD), (MUL, ADD, TENSOR)),
    "behind two of them": ((ADD, TENSOR, TENSOR, ADD, MUL), (ADD, TENSOR, TENSOR, MUL)),
    "none before": ((MUL, TENSOR, ADD), (MUL, TENSOR, ADD)),
    "not across a step that bends": ((ADD, TENSOR, PRELU, ADD), (ADD, TENSOR, MAX, ADD)),
}


def pooled(net, steps, slope=(0.05, 0.5)):
    operands = []
    for step in steps:
        if step is TENSOR:
            operands.append(net.x)
        elif step is PRELU:
            operands.append(slopes_within(net, slope))
        else:
            operands.append(net.normal(16))
    window = Pool((3, 3), (1, 1), (1, 1, 1, 1))
    return net.module(net.add(ops.pool2d(net.x, *operands, pool=window, epilogue=steps)))


def slopes_within(net, limits):
    return constant(net.rng.uniform(*limits, 16))


def steps_of(module):
    ((_, call),) = list(bindings(module["main"]))
    return ops.workload_of(call).epilogue


@pytest.mark.parametrize("name", CASES)
def test_fewer_steps(network, name):
    before, after = CASES[name]
    module = pooled(network((1, 5, 6, 16)), before)
    folded = fold_steps(module)
    assert steps_of(folded) == after
    x = {"x": np.random.default_rng(1).normal(size=(1, 5, 6, 16)).astype("float32")}
    np.testing.assert_allclose(reference.run(folded, x)[0], reference.run(module, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slopes", [(1.0001, 2.0), (0.0, 1e-50)])
def test_slopes_that_are_no_maximum(network, slopes):
    assert steps_of(fold_steps(pooled(network((1, 5, 6, 16)), (PRELU,), slopes))) == (PRELU,)
