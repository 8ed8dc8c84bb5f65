"""First layers by Winograd's filtering of their phases: which workloads, and their answers against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import conv2d
from bitkiln.schedules.conv2d import stem_winograd as conv2d_stem_winograd
from bitkiln.schedules.conv2d.winograd_transforms import FOUR_TAPS, matrix
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool, Signs
from tests.schedules.kernels import defined, example, identical, signs_of

ADD, MUL, RELU = Step("add", "channel"), Step("mul", "channel"), Step("relu")
STRIDE, AROUND = (2, 2), (3, 3, 3, 3)
OVERLAPPING = Pool((3, 3), (2, 2), (1, 1, 1, 1))
#: Rounding errors of F(4x4, 4x4), of the largest output.
ERROR = 1e-5
WORKLOADS = [
    Conv2d(24, 56, 3, 16, (7, 7), STRIDE, AROUND),
    Conv2d(23, 31, 3, 24, (7, 7), STRIDE, AROUND, epilogue=(ADD, RELU)),
    Conv2d(37, 24, 1, 8, (7, 8), STRIDE, (2, 3, 3, 4), epilogue=(Step("prelu", "channel"), Step("mul", "element"))),
    Conv2d(40, 40, 4, 8, (8, 8), STRIDE, AROUND, epilogue=(ADD, RELU), pool=Pool((2, 2), (2, 2))),
    Conv2d(64, 72, 3, 64, (7, 7), STRIDE, AROUND, epilogue=(ADD, RELU), pool=OVERLAPPING),
    Conv2d(48, 37, 3, 8, (7, 7), STRIDE, AROUND, epilogue=(MUL, ADD), pool=OVERLAPPING, layout="NCHW", shift=True),
    Conv2d(48, 37, 3, 8, (7, 7), STRIDE, AROUND, epilogue=(ADD, Step("silu"), MUL), pool=OVERLAPPING),
    Conv2d(8, 24, 3, 8, (7, 7), STRIDE, AROUND, pool=Pool((3, 3), (2, 2), (1, 0, 0, 1)), shift=True),
    # Four blocks in a row: of several threads each takes one.
    Conv2d(24, 224, 3, 8, (7, 7), STRIDE, AROUND, epilogue=(ADD, RELU), pool=OVERLAPPING, layout="NCHW", shift=True),
]


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_phases_give_what_the_definition_gives(board, run_kernels):
    target = targets.load(board)
    workloads = WORKLOADS if board == "rasp3b" else WORKLOADS[::2]
    args = [example(workload) for workload in workloads]
    results = []
    for threads in (1, 4):
        kernels = []
        for workload in workloads:
            knobs = conv2d.default(workload, target)
            assert knobs == {"algorithm": "stem winograd"}
            assert knobs["algorithm"] in conv2d.space(workload, target)["algorithm"]
            kernels.append(conv2d.emit(workload, knobs, target, threads))
        results += run_kernels(workloads, kernels, args, target, [3])
    for workload, arguments, one, four in zip(workloads, args, *results, strict=True):
        expected = defined(workload, arguments)
        assert np.abs(one - expected).max() <= ERROR * np.abs(expected).max(), workload.key()
        # Who computes a tile does not change it, nor the order in which maxima are taken.
        assert np.array_equal(one, four), workload.key()


#: Without a maximum, with one in a tile, one of rows and columns as they come, one of joined parts and of joined blocks.
WITH_SIGNS = [
    Conv2d(23, 31, 3, 24, (7, 7), STRIDE, AROUND, epilogue=(ADD, RELU), signs=(Signs((ADD,)), Signs((), -1))),
    Conv2d(37, 24, 1, 8, (7, 8), STRIDE, (2, 3, 3, 4), epilogue=(Step("silu"),), signs=(Signs(),)),
    Conv2d(
        40, 40, 4, 8, (8, 8), STRIDE, AROUND, epilogue=(ADD,), pool=Pool((2, 2), (2, 2)), signs=(Signs((MUL, ADD)),)
    ),
    Conv2d(48, 37, 3, 8, (7, 7), STRIDE, AROUND, epilogue=(ADD,), pool=OVERLAPPING, shift=True, signs=(Signs((ADD,)),)),
    Conv2d(64, 72, 3, 64, (7, 7), STRIDE, AROUND, epilogue=(ADD,), pool=OVERLAPPING, signs=(Signs(), Signs((MUL,)))),
    Conv2d(24, 224, 3, 8, (7, 7), STRIDE, AROUND, epilogue=(ADD,), pool=OVERLAPPING, signs=(Signs((MUL, ADD), -1),)),
    Conv2d(24, 224, 3, 64, (7, 7), STRIDE, AROUND, pool=OVERLAPPING, layout="NCHW", signs=(Signs((ADD,)), Signs())),
]


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_signs_beside_are_those_of_the_floats(board, run_kernels):
    target = targets.load(board)
    workloads = WITH_SIGNS if board == "rasp3b" else WITH_SIGNS[::2]
    args = [example(workload) for workload in workloads]
    results = []
    for threads in (1, 4):
        kernels = [conv2d_stem_winograd.emit(workload, kernel_set(target), threads) for workload in workloads]
        results += run_kernels(workloads, kernels, args, target, [3])
    for workload, arguments, one, four in zip(workloads, args, *results, strict=True):
        (floats, *bits), expected = one, defined(workload, arguments)[0]
        assert np.abs(floats - expected).max() <= ERROR * np.abs(expected).max(), workload.key()
        assert all(map(np.array_equal, bits, signs_of(workload, arguments, floats))), workload.key()
        assert identical(one, four), workload.key()


@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(24, 24, 3, 16, (5, 5), STRIDE),
        Conv2d(24, 24, 3, 16, (7, 7), (1, 1)),
        Conv2d(24, 24, 8, 16, (7, 7), STRIDE),
        Conv2d(24, 24, 3, 12, (7, 7), STRIDE),
        Conv2d(24, 24, 3, 16, (7, 7), STRIDE, AROUND, out="bits"),
        Conv2d(26, 24, 3, 16, (7, 7), STRIDE, AROUND, pool=OVERLAPPING),
        Conv2d(24, 24, 3, 16, (7, 7), STRIDE, AROUND, pool=Pool((3, 3), (2, 2), (1, 1, 1, 1), "avg")),
    ],
    ids=Conv2d.key,
)
def test_others_are_left_to_other_schedules(workload):
    assert not conv2d_stem_winograd.applies(workload)


def test_the_transform_is_a_filter_of_four_taps():
    rng = np.random.default_rng(0)
    data, taps = rng.normal(size=FOUR_TAPS.points), rng.normal(size=4)
    products = (matrix(FOUR_TAPS.data, FOUR_TAPS.points) @ data) * (FOUR_TAPS.weight @ taps)
    assert np.allclose(matrix(FOUR_TAPS.result, FOUR_TAPS.points) @ products, np.correlate(data, taps), atol=1e-12)
