"""Softmax and normalisation of rows: against TVM's definition, and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference.workloads import compute
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Normalize, Softmax, from_json, to_json
from tests.schedules.kernels import bound, defined, example, on_host, same, without_set

WORKLOADS = [
    Softmax((3, 16)),
    Softmax((2, 5, 197)),
    Softmax((1, 1)),
    Softmax((7, 1)),
    Softmax((3, 33), log=True),
    Softmax((2, 3), log=True),
    Normalize((5, 48), 1e-5),
    Normalize((1, 3, 21), 1e-6),
    Normalize((2, 1), 1e-3),
]


def kernel_of(workload, target):
    return operator_for(workload).emit(workload, operator_for(workload).default(workload, target), target)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key())
def test_definition_and_loops_of_any_cpu(workload):
    args = example(workload)
    expected = compute(workload, args)
    assert same(defined(workload, args), expected)
    kernel = kernel_of(workload, without_set())
    assert same(on_host(kernel.func, bound(kernel, args), workload), expected)


@pytest.mark.parametrize("name", ["rasp3b", "rasp3b32"])
def test_kernels_compute_the_definition(name, run_kernels):
    target, args = targets.load(name), [example(workload) for workload in WORKLOADS]
    kernels = [kernel_of(workload, target) for workload in WORKLOADS]
    one, three = run_kernels(WORKLOADS, kernels, args, target, [1, 3])
    for workload, given, first, second in zip(WORKLOADS, args, one, three, strict=True):
        assert same(first, compute(workload, given)), workload.key()
        assert np.array_equal(first, second)


def test_shares_of_numbers_of_any_size(run_kernel):
    """Precise where shares are large, right to their last bit of subnormals, none of what is far below; no overflow."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (9, 53)) * np.float64([[0], [1], [10], [50], [1e4], [1e30], [1], [1], [1]])
    rows[6, 3:40], rows[7, 50], rows[8] = -np.inf, np.inf, -np.inf
    data = rows.astype(np.float32)
    workload, target = Softmax((9, 53)), targets.load("rasp3b")
    result = run_kernel(workload, kernel_of(workload, target), [data], target, 1)
    with np.errstate(all="ignore"):
        wide = np.exp(data.astype(np.float64) - data.max(axis=1, keepdims=True))
        expected = wide / wide.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result[:7], expected[:7], rtol=5e-6, atol=2e-45)
    assert np.isnan(result[7:]).all()


def test_rows_far_from_zero_are_centred_before_their_squares(run_kernel):
    workload, target = Normalize((2, 40), 1e-5), targets.load("rasp3b")
    data, scale, shift = example(workload)
    args = [data + np.float32(1000), scale, shift]
    result = run_kernel(workload, kernel_of(workload, target), args, target, 1)
    np.testing.assert_allclose(result, compute(workload, args), rtol=1e-3, atol=1e-3)


def test_workload_is_a_value():
    assert [from_json(to_json(workload)) for workload in WORKLOADS] == WORKLOADS
    assert len({workload.key() for workload in WORKLOADS}) == len(WORKLOADS)
