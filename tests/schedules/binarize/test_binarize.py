"""Emitted bit packing against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import binarize
from bitkiln.schedules.binarize import a53 as binarize_a53
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Binarize
from tests.schedules.kernels import bound, defined, example, on_host, same, without_set

AFFINE = (Step("mul", "channel"), Step("add", "channel"))
WORKLOADS = [
    Binarize(5, 7, 64),
    Binarize(5, 7, 24, sign_zero=-1),
    Binarize(5, 7, 19, (*AFFINE, Step("relu")), -1),
    Binarize(5, 7, 48, AFFINE),
    Binarize(4, 4, 96, AFFINE),
    Binarize(3, 4, 128, AFFINE),
    Binarize(6, 4, 16, (Step("add", "channel"), Step("prelu", "element"), Step("add", "tensor"))),
    Binarize(1, 1, 3),
]


def cases(workload: Binarize) -> list[np.ndarray]:
    """Random arguments with zeros of both signs, denormals and what is not a number among the data."""
    args = example(workload)
    # With an epilogue, the bit of what is not a number is anybody's guess.
    last = np.inf if workload.epilogue else np.nan
    odd = np.array([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, last], "float32")
    data = args[0].reshape(-1)
    data[: len(odd)] = odd[: data.size]
    data[len(data) // 2 :][: len(odd)] = -odd[: data.size - data.size // 2]
    return args


@pytest.mark.parametrize("workload", WORKLOADS, ids=Binarize.key)
def test_plain_loops_compute_the_definition(workload):
    kernel = binarize.emit(workload, {}, without_set())
    args = cases(workload)
    assert same(on_host(kernel.func, bound(kernel, args), workload), defined(workload, args))


@pytest.mark.parametrize("workload", WORKLOADS, ids=Binarize.key)
def test_kernels_of_64_bit_boards_compute_the_definition(workload, run_kernel):
    target = targets.load("rasp3b")
    args = cases(workload)
    kernel = binarize.emit(workload, {}, target)
    assert same(run_kernel(workload, kernel, args, target, 3), defined(workload, args))


@pytest.mark.parametrize("workload", WORKLOADS, ids=Binarize.key)
def test_kernels_of_32_bit_boards_take_denormals_for_zero(workload, run_kernel):
    target = targets.load("rasp3b32")
    args = cases(workload)
    tiny = np.abs(args[0]) < np.finfo("float32").tiny
    args[0] = np.where(tiny, np.copysign(np.float32(0), args[0]), args[0])
    expected = defined(workload, args)
    kernel = binarize.emit(workload, {}, target)
    assert bool(kernel.microkernels) == binarize_a53.applies(workload)
    if kernel.microkernels:
        args[0] = np.where(tiny, np.copysign(np.float32(1e-40), args[0]), args[0])
    assert same(run_kernel(workload, kernel, args, target, 3), expected)


def test_sign_of_zero():
    zeros = np.array([0.0, -0.0, 1.0, -1.0, np.nan, 0.0, 0.0, 0.0, 1.0], "float32").reshape(1, 1, 1, 9)
    assert defined(Binarize(1, 1, 9), [zeros]).tolist() == [[[[0b11100111, 1]]]]
    assert defined(Binarize(1, 1, 9, sign_zero=-1), [zeros]).tolist() == [[[[0b00000100, 1]]]]


def test_thresholds_are_where_the_sign_changes():
    """Of every step that is folded, at both signs of its factor and where it is constant."""
    steps = (Step("mul", "channel"), Step("add", "channel"), Step("clip", "", (-3.0, 5.0)), Step("leaky", "", (0.1,)))
    factor = np.array([1.5, -1.5, 0.0, 0.0, 1e-30, -1e30, 0.1, -0.3], "float32")
    offset = np.array([0.7, 0.7, 1.0, -1.0, 1.0, 1.0, 0.0, -0.0], "float32")
    for sign_zero in (1, -1):
        workload = Binarize(1, 1, 8, steps, sign_zero)
        threshold, flip = binarize_a53.thresholds(workload, [factor, offset])
        candidates = [threshold, np.nextafter(threshold, -np.inf), np.nextafter(threshold, np.inf), 0 * factor]
        for x in (np.nan_to_num(values, posinf=3e38, neginf=-3e38) for values in candidates):
            y = np.clip(x * factor + offset, np.float32(-3), np.float32(5))
            y = np.where(y > 0, y, y * np.float32(0.1))
            expected = y >= 0 if sign_zero > 0 else y > 0
            assert ((x >= threshold) ^ flip == expected).all()
