"""Costs that a network's layers hide."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from bitkiln import targets
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.passes.costs import hidden_costs
from bitkiln.pipeline.passes.pipeline import survey
from tests.pipeline.inspect.networks import model_of, weight


def costs(body, shape):
    return list(hidden_costs(survey(model_of(body, shape).module)))


def signed(weights):
    def body(emit, x):
        sign = emit(
            relax.op.where(relax.op.greater_equal(x, relax.const(0.0)), relax.const(1.0), relax.const(-1.0)), "sign"
        )
        return emit(relax.op.nn.conv2d(sign, relax.const(weights), padding=1), "conv")

    return body


def test_a_zero_weight_doubles_a_layer():
    values = np.sign(np.random.default_rng(0).normal(size=(32, 32, 3, 3))).astype(np.float32)
    assert not costs(signed(values), (1, 32, 16, 16))
    values[0, 0, 0, 0] = 0
    (cost,) = costs(signed(values), (1, 32, 16, 16))
    assert cost.name == "y"
    assert "1 weights are zero" in cost.text
    assert cost.macs == 16 * 16 * 32 * 32 * 9
    assert "ms on rasp3b" in cost.priced(targets.load("rasp3b"))


def test_several_images_run_in_general_kernels():
    (cost,) = costs(
        lambda emit, x: emit(relax.op.nn.conv2d(x, weight(32, 16, 3, 3), padding=1), "conv"), (4, 16, 32, 32)
    )
    assert "4 images at once" in cost.text
    assert cost.macs == 4 * 32 * 32 * 32 * 16 * 9


@pytest.mark.parametrize("size", [8, 64])
def test_inspect_warns_of_what_is_noticed(size):
    model = model_of(
        lambda emit, x: emit(relax.op.nn.conv2d(x, weight(32, 16, 3, 3), padding=1), "conv"), (2, 16, size, size)
    )
    found = inspect_model(model, [targets.load("rasp3b")])
    warned = [text for row in found.rows for text in row.warnings]
    assert any("general kernel" in text for text in warned) == (size == 64)
