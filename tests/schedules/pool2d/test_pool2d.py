"""Emitted pooling against the plain definition, and the definition against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference import compute
from bitkiln.schedules import pool2d
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool, Pool2d
from tests.schedules.kernels import bound, defined, example, on_host, same, without_set

BORDER = (1, 1, 1, 1)
WORKLOADS = [
    Pool2d(9, 9, 64, Pool((3, 3), (2, 2), BORDER)),
    Pool2d(8, 10, 32, Pool((2, 2), (2, 2))),
    Pool2d(7, 7, 20, Pool((7, 7), (1, 1), kind="avg"), epilogue=(Step("mul", "channel"), Step("relu"))),
    Pool2d(8, 8, 20, Pool((3, 3), (2, 2), (0, 0, 1, 1), "avg", False), out="bits"),
    Pool2d(8, 8, 20, Pool((3, 3), (2, 2), (0, 1, 1, 1), "avg", True), epilogue=(Step("add", "element"),)),
    Pool2d(5, 6, 7, Pool((3, 2), (1, 2), (1, 0, 1, 0)), epilogue=(Step("add", "tensor"),), out="bits", sign_zero=-1),
    Pool2d(8, 8, 20, Pool((3, 3), (2, 2), (0, 0, 1, 1)), bits=True),
    Pool2d(8, 8, 300, Pool((3, 3), (2, 2), BORDER), bits=True, invert=True),
]
#: Whole numbers of 8 bits: vectors and rests of channels, windows of a whole image.
WHOLE = [
    Pool2d(9, 7, 80, Pool((3, 3), (2, 2), BORDER), out="int8", whole=True),
    Pool2d(8, 8, 21, Pool((5, 5), (1, 1), (2, 2, 2, 2)), out="int8", whole=True),
    Pool2d(18, 18, 5, Pool((18, 18), (18, 18)), out="int8", whole=True),
]
#: Pooled by the micro-kernel of 64-bit boards: windows at all edges, steps of every size, images of one pixel.
LINES = [
    WORKLOADS[0],
    WORKLOADS[1],
    Pool2d(8, 10, 16, Pool((3, 3), (1, 1), BORDER)),
    Pool2d(11, 9, 48, Pool((2, 3), (2, 1), (1, 2, 0, 2))),
    Pool2d(7, 11, 32, Pool((3, 2), (1, 2), kind="avg")),
    Pool2d(6, 6, 64, Pool((2, 2), (2, 2), kind="avg")),
    Pool2d(1, 1, 16, Pool((3, 3), (2, 2), BORDER)),
    Pool2d(5, 4, 1024, Pool((1, 1), (1, 1))),
    Pool2d(6, 8, 32, Pool((2, 2), (2, 2), kind="avg"), epilogue=(Step("add", "tensor"), Step("prelu", "channel"))),
    Pool2d(7, 9, 16, Pool((3, 3), (2, 2), BORDER), epilogue=(Step("relu"),)),
    Pool2d(6, 8, 48, Pool((2, 2), (2, 2)), epilogue=(Step("add", "channel"),), out="bits", sign_zero=-1),
]


@pytest.mark.parametrize("workload", WORKLOADS, ids=Pool2d.key)
def test_plain_kernels_compute_the_definition(workload):
    target = without_set()
    kernel = pool2d.emit(workload, {}, target)
    args = example(workload)
    assert same(on_host(kernel.func, bound(kernel, args), workload), defined(workload, args))


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_kernels_compute_the_definition(board, run_kernels):
    target, workloads = targets.load(board), [*LINES, WORKLOADS[2], WORKLOADS[7]]
    args = [example(workload) for workload in workloads]
    kernels = [pool2d.emit(workload, {}, target) for workload in workloads]
    assert [bool(kernel.microkernels) for kernel in kernels] == [workload in LINES for workload in workloads]
    (results,) = run_kernels(workloads, kernels, args, target, [3])
    for workload, arguments, result in zip(workloads, args, results, strict=True):
        assert same(result, defined(workload, arguments)), workload.key()


@pytest.mark.parametrize("workload", WHOLE, ids=Pool2d.key)
def test_whole_numbers_are_pooled_in_8_bits(workload):
    target = targets.load("rasp3b")
    kernel = pool2d.emit(workload, {}, target)
    args = [np.random.default_rng(2).integers(-128, 128, workload.shapes[0][0]).astype("int8")]
    result = on_host(kernel.func, bound(kernel, args), workload)
    assert result.dtype == np.int8 and (result == defined(workload, args)).all()
    assert (result == compute(workload, args)).all()


def test_threads_share_the_channels_of_a_single_pixel(run_kernel):
    target, workload = targets.load("rasp3b"), Pool2d(7, 7, 164, Pool((7, 7), (7, 7), kind="avg"))
    args = example(workload)
    alone = run_kernel(workload, pool2d.emit(workload, {}, target), args, target, 1)
    assert same(alone, defined(workload, args))
    shared = run_kernel(workload, pool2d.emit(workload, {}, target, threads=4), args, target, 3)
    assert (shared == alone).all()


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_an_image_in_memory_is_read_in_order_by_each_thread(kind, run_kernel):
    target, window = targets.load("rasp3b"), Pool((29, 26), (1, 1), kind=kind)
    workload = Pool2d(29, 26, 101, window, epilogue=(Step("add", "channel"),))
    args = example(workload)
    for threads in (1, 4):
        found = run_kernel(workload, pool2d.emit(workload, {}, target, threads=threads), args, target, threads)
        assert same(found, defined(workload, args))


def test_maximum_of_signs_is_the_sign_of_the_maximum():
    window = Pool((3, 3), (2, 2), BORDER)
    signs = np.sign(np.random.default_rng(3).normal(size=(1, 7, 7, 16))).astype("float32")
    floats = defined(Pool2d(7, 7, 16, window), [signs])
    bits = defined(Pool2d(7, 7, 16, window, bits=True), [np.packbits(signs > 0, axis=3, bitorder="little")])
    assert (np.packbits(floats > 0, axis=3, bitorder="little") == bits).all()


def test_averages_count_what_they_are_told_to():
    ones = np.ones((1, 3, 3, 1), "float32")
    inside = defined(Pool2d(3, 3, 1, Pool((3, 3), (2, 2), BORDER, "avg", False)), [ones])
    everything = defined(Pool2d(3, 3, 1, Pool((3, 3), (2, 2), BORDER, "avg", True)), [ones])
    assert np.allclose(inside, 1) and np.allclose(everything, 4 / 9)
