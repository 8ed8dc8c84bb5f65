"""Convolutions whose large weights are bfloat16 values are marked."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import bindings, constant
from bitkiln.pipeline.ops.register import has_workload, workload_of
from bitkiln.pipeline.passes.halves import halves
from bitkiln.pipeline.passes.round_weights import nearest

RASP3B = targets.load("rasp3b")


def marked(net, weights: np.ndarray, target=RASP3B) -> bool:
    conv = net.add(ops.conv2d(net.x, constant(weights)), "conv")
    after = halves(net.module(conv), target)
    return any(workload_of(value).halves for _, value in bindings(after["main"]) if has_workload(value))


@pytest.mark.parametrize(
    ("channels", "rounded", "expected"), [(300, True, True), (300, False, False), (9, True, False)]
)
def test_large_weights_that_are_exact(network, channels, rounded, expected):
    net = network((1, 2, 2, 256))
    weights = net.rng.normal(size=(channels, 1, 1, 256)).astype("float32")
    assert marked(net, nearest(weights) if rounded else weights) == expected


def test_targets_without_kernels_for_them_keep_floats(network):
    net = network((1, 2, 2, 256))
    weights = nearest(net.rng.normal(size=(300, 1, 1, 256)).astype("float32"))
    assert not marked(net, weights, targets.load("rasp3b32"))
