"""Emitted tables against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference import compute
from bitkiln.schedules import lookup
from bitkiln.schedules.workload import Lookup, from_json, to_json
from tests.schedules.kernels import bound, defined, on_host, without_set

#: Several runs of numbers, whole pieces and a rest, less than a piece.
WORKLOADS = [Lookup((1, 41, 9, 50)), Lookup((1, 4, 4, 16)), Lookup((1, 23)), Lookup((5,))]


def arguments(workload):
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, workload.shape).astype(np.int8)
    return [x, rng.permutation(256).astype(np.uint8).view(np.int8)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=Lookup.key)
def test_plain_loops_and_the_definition_look_up_the_same(workload):
    args = arguments(workload)
    expected = args[1][args[0].astype(int) + 128]
    assert (compute(workload, args) == expected).all() and (defined(workload, args) == expected).all()
    kernel = lookup.emit(workload, {}, without_set())
    assert not kernel.microkernels
    assert (on_host(kernel.func, bound(kernel, args), workload) == expected).all()
    assert from_json(to_json(workload)) == workload


def test_micro_kernels_look_up_the_same(run_kernels):
    target = targets.load("rasp3b")
    args = [arguments(workload) for workload in WORKLOADS]
    kernels = [lookup.emit(workload, {}, target) for workload in WORKLOADS]
    assert [bool(kernel.microkernels) for kernel in kernels] == [True, True, True, False]
    for results in run_kernels(WORKLOADS, kernels, args, target, (1, 3)):
        for result, workload, given in zip(results, WORKLOADS, args, strict=True):
            assert (result == compute(workload, given)).all(), workload.key()
