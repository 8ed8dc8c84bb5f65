"""Emitted concatenations against the plain definition, and the definition against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import concat
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Concat, from_json, packed, to_json
from tests.schedules.kernels import bound, defined, on_host, same

WORKLOADS = [
    Concat(5, 6, (16, 4, 20)),
    Concat(3, 4, (64, 64, 64, 64, 64)),
    Concat(4, 3, (7, 1), epilogue=(Step("mul", "channel"), Step("add", "element"), Step("relu"))),
    Concat(4, 3, (8, 24), epilogue=(Step("add", "tensor"),)),
    Concat(4, 5, (9, 58, 3), epilogue=(Step("relu"),), begins=(3, 0, 61), widths=(12, 58, 64)),
    Concat(4, 5, (64, 8, 19), bits=True),
    Concat(4, 5, (64, 8, 19), whole=True),
    Concat(4, 5, (9, 58, 3), begins=(3, 0, 61), widths=(12, 58, 64), whole=True),
]


def example(workload: Concat) -> list[np.ndarray]:
    """Normal floats, or random bits with clear spare bits, for each part and operand."""
    rng = np.random.default_rng(0)
    arrays = []
    for shape, dtype in workload.shapes[:-1]:
        floats = rng.normal(0, 1, shape).astype("float32")
        if dtype == "uint8":
            channels = workload.parts[len(arrays)]
            signs = rng.integers(0, 2, (*shape[:-1], channels), dtype="uint8")
            floats = np.packbits(signs, axis=3, bitorder="little")
        arrays.append((50 * floats).astype(dtype) if dtype == "int8" else floats)
    return arrays


@pytest.mark.parametrize("workload", WORKLOADS, ids=Concat.key)
def test_kernels_compute_the_definition(workload):
    args = example(workload)
    expected = defined(workload, args)
    if not workload.epilogue and not workload.begins:
        assert np.array_equal(expected, np.concatenate(args, axis=3))
    kernel = concat.emit(workload, {}, targets.load("rasp3b32"))
    assert same(on_host(kernel.func, bound(kernel, args), workload), expected)


@pytest.mark.parametrize("workload", WORKLOADS[2::2], ids=Concat.key)
def test_kernels_of_64_bit_boards_compute_the_definition(workload, run_kernel):
    target, args = targets.load("rasp3b"), example(workload)
    kernel = concat.emit(workload, {}, target)
    assert same(run_kernel(workload, kernel, args, target, 3), defined(workload, args))


def test_workload_is_a_value():
    assert [from_json(to_json(workload)) for workload in WORKLOADS] == WORKLOADS
    assert len({workload.key() for workload in WORKLOADS}) == len(WORKLOADS)
    assert WORKLOADS[5].shapes[-1] == ((1, 4, 5, packed(91)), "uint8")
