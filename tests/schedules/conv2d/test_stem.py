"""First layers: which workloads the strips serve, and their answers against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules.conv2d import stem as conv2d_stem
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool, Signs
from tests.schedules.kernels import defined, example, identical, same, signs_of

SAME = (1, 1, 1, 1)
ADD, MUL, RELU = Step("add", "channel"), Step("mul", "channel"), Step("relu")
HALF = Pool((2, 2), (2, 2))
WORKLOADS = [
    Conv2d(16, 20, 3, 16, (3, 3), padding=SAME, epilogue=(ADD, RELU, MUL, ADD), pool=HALF),
    Conv2d(13, 15, 3, 8, (3, 3), padding=SAME, epilogue=(ADD, Step("leaky", values=(0.1,))), pool=HALF),
    Conv2d(12, 19, 3, 24, (3, 3), (2, 2), (0, 0, 1, 1), epilogue=(Step("clip", values=(0.0, 6.0)),)),
    Conv2d(
        23,
        29,
        3,
        16,
        (7, 7),
        (2, 2),
        (3, 3, 3, 3),
        epilogue=(Step("prelu", "channel"),),
        pool=Pool((3, 3), (2, 2), SAME),
    ),
    Conv2d(14, 14, 1, 8, (5, 5), epilogue=(ADD, RELU), pool=HALF, out="bits"),
    Conv2d(16, 20, 3, 16, (3, 3), padding=SAME, epilogue=(ADD, RELU), pool=HALF, shift=True),
    Conv2d(9, 17, 3, 8, (3, 3), (2, 2), SAME, epilogue=(Step("silu"), ADD), shift=True, layout="NCHW"),
    Conv2d(11, 18, 4, 8, (3, 3), padding=SAME, epilogue=(Step("silu"), Step("mul", "element"))),
    Conv2d(40, 21, 3, 16, (3, 3), padding=SAME, epilogue=(ADD, RELU), pool=Pool((3, 3), (2, 2), SAME)),
    Conv2d(50, 19, 1, 8, (3, 3), padding=SAME, pool=Pool((2, 2), (1, 1), (0, 0, 1, 1)), out="bits"),
    Conv2d(64, 20, 3, 8, (3, 3), padding=SAME, epilogue=(ADD,), pool=Pool((5, 3), (2, 3), (2, 1, 2, 1)), layout="NCHW"),
    Conv2d(20, 17, 32, 32, (3, 3), padding=SAME, groups=4, epilogue=(ADD, RELU)),
    Conv2d(22, 27, 12, 48, (3, 3), (2, 2), SAME, groups=3, epilogue=(ADD,), pool=HALF),
    Conv2d(64, 20, 32, 64, (3, 3), padding=SAME, groups=8, epilogue=(ADD, RELU), pool=Pool((3, 3), (2, 2), SAME)),
    Conv2d(31, 51, 3, 16, (11, 11), (4, 4), (0, 0, 1, 2), epilogue=(ADD, RELU), pool=HALF, out="bits"),
    Conv2d(24, 40, 3, 8, (9, 9), (1, 3), padding=(4, 4, 4, 4), epilogue=(ADD,), layout="NCHW"),
]


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_strips_give_what_the_definition_gives(board, run_kernels):
    target = targets.load(board)
    kernels = kernel_set(target)
    assert all(conv2d_stem.applies(workload, kernels) for workload in WORKLOADS)
    emitted = [conv2d_stem.emit(workload, kernels) for workload in WORKLOADS]
    args = [example(workload) for workload in WORKLOADS]
    (results,) = run_kernels(WORKLOADS, emitted, args, target, [2])
    for workload, arguments, result in zip(WORKLOADS, args, results, strict=True):
        assert same(result, defined(workload, arguments)), workload.key()


#: Rows in one strip each and in several, pooled by the micro-kernel, strip by strip and afterwards.
WITH_SIGNS = [
    Conv2d(40, 40, 3, 32, (3, 3), (2, 2), (0, 0, 1, 1), epilogue=(ADD, RELU), signs=(Signs((ADD,)), Signs((), -1))),
    Conv2d(13, 15, 3, 8, (3, 3), padding=SAME, epilogue=(ADD,), pool=HALF, signs=(Signs((MUL, ADD)),)),
    Conv2d(23, 31, 3, 16, (7, 7), (2, 2), (3, 3, 3, 3), epilogue=(Step("silu"),), pool=HALF, signs=(Signs((ADD,)),)),
    Conv2d(40, 21, 3, 16, (3, 3), padding=SAME, pool=Pool((3, 3), (2, 2), SAME), signs=(Signs(),), layout="NCHW"),
    Conv2d(9, 17, 3, 24, (3, 3), (2, 2), SAME, epilogue=(Step("silu"), ADD), shift=True, signs=(Signs((MUL, ADD)),)),
    Conv2d(12, 17, 32, 32, (3, 3), padding=SAME, groups=4, epilogue=(ADD,), signs=(Signs(),)),
]


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_signs_beside_are_those_of_the_floats(board, run_kernels):
    target = targets.load(board)
    emitted = [conv2d_stem.emit(workload, kernel_set(target)) for workload in WITH_SIGNS]
    args = [example(workload) for workload in WITH_SIGNS]
    one, three = run_kernels(WITH_SIGNS, emitted, args, target, [1, 3])
    for workload, arguments, result, again in zip(WITH_SIGNS, args, one, three, strict=True):
        floats, *bits = result
        assert same(floats, defined(workload, arguments)[0]), workload.key()
        assert all(map(np.array_equal, bits, signs_of(workload, arguments, floats))), workload.key()
        assert identical(result, again), workload.key()


@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(16, 16, 16, 16, (3, 3)),
        Conv2d(16, 16, 3, 12, (3, 3)),
        Conv2d(16, 16, 3, 16, (3, 3), dilation=(2, 2)),
        Conv2d(16, 6, 3, 16, (3, 3)),
        Conv2d(64, 99, 3, 64, (2, 61), (4, 4)),
    ],
    ids=Conv2d.key,
)
def test_others_are_left_to_other_schedules(workload):
    assert not conv2d_stem.applies(workload)


def test_with_a_stride_tiles_fetch_what_later_ones_read_and_store():
    for layout, pool in (("NCHW", None), ("NHWC", Pool((3, 3), (2, 2)))):
        strided = Conv2d(225, 225, 3, 32, (3, 3), (2, 2), epilogue=(ADD, RELU), pool=pool, layout=layout)
        (kernel, *_) = conv2d_stem.emit(strided, kernel_set(targets.load("rasp3b"))).microkernels
        text = kernel.assembly()
        assert "fetches" in kernel.symbol
        # A tile of 8 pixels stores to 8 lines; of the image there is at least one for it.
        assert text.count("prfm pstl1keep") == 8
        assert text.count("prfm pldl1keep") >= 1
        # Where several threads keep rows for the pooling in the L2 cache, there is no room for more.
        (kernel, *_) = conv2d_stem.emit(strided, kernel_set(targets.load("rasp3b")), threads=4).microkernels
        assert ("fetches" in kernel.symbol) == (pool is None)
        # These kernels have no registers for it.
        (kernel, *_) = conv2d_stem.emit(strided, kernel_set(targets.load("rasp3b32"))).microkernels
        assert "fetches" not in kernel.symbol and "stored" not in kernel.symbol
