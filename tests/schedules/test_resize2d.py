"""Emitted resizings against TVM's definition and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference.workloads import compute
from bitkiln.schedules import resize2d
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Resize, from_json, to_json
from tests.schedules.kernels import bound, defined, example, on_host, same

ADD, RELU = Step("add", "channel"), Step("relu")
NEAREST, LINEAR = resize2d.METHODS
WORKLOADS = [
    Resize(4, 5, 12, (8, 10), NEAREST, "asymmetric", "floor"),
    Resize(6, 7, 3, (3, 20), NEAREST, "half_pixel", "round_prefer_floor", (ADD, RELU)),
    Resize(6, 7, 20, (9, 5), NEAREST, "half_pixel", "round_prefer_ceil"),
    Resize(4, 5, 20, (8, 10), LINEAR, "half_pixel", epilogue=(ADD,)),
    Resize(4, 5, 3, (7, 4), LINEAR, "align_corners"),
    Resize(3, 4, 16, (1, 9), LINEAR, "pytorch_half_pixel"),
    Resize(4, 5, 8, (8, 10), LINEAR, "asymmetric", epilogue=(Step("add", "tensor"),)),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=Resize.key)
def test_kernels_compute_the_definition(workload):
    args = example(workload)
    expected = defined(workload, args)
    assert same(compute(workload, args), expected)
    kernel = resize2d.emit(workload, {}, targets.load("rasp3b32"))
    assert same(on_host(kernel.func, bound(kernel, args), workload), expected)


def test_kernels_of_64_bit_boards_compute_the_definition(run_kernels):
    target, args = targets.load("rasp3b"), [example(workload) for workload in WORKLOADS]
    kernels = [resize2d.emit(workload, {}, target) for workload in WORKLOADS]
    one, three = run_kernels(WORKLOADS, kernels, args, target, [1, 3])
    for workload, given, first, second in zip(WORKLOADS, args, one, three, strict=True):
        assert same(first, compute(workload, given)), workload.key()
        assert np.array_equal(first, second)


def test_nearest_by_two_repeats_pixels():
    workload, data = Resize(2, 2, 1, (4, 4), NEAREST, "asymmetric", "floor"), np.float32([1, 2, 3, 4])
    result = defined(workload, [data.reshape(1, 2, 2, 1)])
    assert np.array_equal(result[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])


def test_workload_is_a_value():
    assert [from_json(to_json(workload)) for workload in WORKLOADS] == WORKLOADS
    assert len({workload.key() for workload in WORKLOADS}) == len(WORKLOADS)
