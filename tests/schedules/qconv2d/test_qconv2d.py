"""Emitted convolutions of whole numbers against their definition, and the definition against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.reference import compute
from bitkiln.schedules import qconv2d
from bitkiln.schedules.qconv2d.segments import laid
from bitkiln.schedules.workload import QConv2d
from tests.schedules.kernels import bound, defined, on_host, without_set

BORDER = (1, 1, 1, 1)
#: Products: odd sizes, strides, borders, rows that are filled up, few pixels, images that are 7 wide.
PRODUCTS = (
    QConv2d(6, 6, 32, 24, (1, 1), zero=-128, out_zero=-128),
    QConv2d(7, 7, 64, 20, (1, 1), zero=3, out_zero=-2, low=-100, high=90),
    QConv2d(5, 9, 13, 11, (3, 3), (2, 2), BORDER, zero=5),
    QConv2d(1, 1, 40, 17, (1, 1), zero=9),
    QConv2d(3, 4, 16, 8, (2, 3), (1, 1), (0, 2, 1, 0), dilation=(2, 1)),
    QConv2d(9, 9, 3, 16, (3, 3), (2, 2), (0, 0, 1, 1), zero=-1, out_zero=7, low=7),
    QConv2d(3, 2, 24, 16, (3, 2), zero=77),
)
DEPTHWISE = (
    QConv2d(9, 7, 24, 24, (3, 3), padding=BORDER, groups=24, zero=4, out_zero=-8),
    QConv2d(8, 11, 20, 20, (3, 3), (2, 2), (0, 1, 1, 1), groups=20, zero=-128),
    QConv2d(6, 8, 8, 8, (3, 3), groups=8, zero=127, low=-1, high=1),
)
#: Other windows: blocks and panels that overlap, tiles that repeat results, strips of rows, few results, high windows.
ROWS = (
    QConv2d(5, 5, 12, 12, (5, 5), padding=(2, 2, 2, 2), groups=12, zero=-7),
    QConv2d(9, 10, 76, 76, (5, 5), padding=(2, 2, 2, 2), groups=76, zero=9, low=-90),
    QConv2d(28, 29, 72, 72, (5, 5), (2, 2), (1, 1, 2, 2), groups=72, zero=-128),
    QConv2d(30, 28, 64, 64, (5, 5), padding=(2, 2, 2, 2), groups=64, zero=3),
    QConv2d(8, 12, 8, 8, (3, 7), padding=(1, 3, 1, 3), groups=8),
    QConv2d(4, 3, 24, 24, (3, 3), padding=BORDER, groups=24, zero=1),
)
PLAIN = (
    QConv2d(6, 6, 8, 12, (3, 3), groups=4, padding=BORDER, zero=3),
    QConv2d(5, 12, 12, 12, (2, 9), padding=(1, 4, 0, 4), groups=12, zero=-7),
    QConv2d(4, 4, 6, 5, (1, 1)),
)
WORKLOADS = (*PRODUCTS, *DEPTHWISE, *ROWS, *PLAIN)
WEIGHTS = {
    "uniform": lambda rng, shape: rng.integers(-128, 128, shape),
    "of 8 bits": lambda rng, shape: rng.choice([-127, 127], shape),
    "lowest": lambda rng, shape: np.full(shape, -128),
    "alternating": lambda rng, shape: np.where(np.arange(np.prod(shape)) % 2, 127, -128).reshape(shape),
    "nine bits": lambda rng, shape: rng.choice([-255, 255], shape),
}


def arguments(workload, kind):
    """The workload with its segments planned, and arguments: extreme data where the weights are."""
    rng = np.random.default_rng(workload.channels)
    (data, _), (shape, _), (channels, _), *_ = workload.shapes
    weight = WEIGHTS[kind](rng, shape).astype(np.int16)
    x = rng.integers(-128, 128, data) if kind == "uniform" else rng.choice([-128, 127], data, p=[0.7, 0.3])
    x = np.full(data, -128) if kind == "lowest" else x
    bias = rng.integers(-30000, 30000, channels).astype(np.int32)
    spread = 100 * np.sqrt(weight[0].size) * np.abs(weight).mean()
    factor = (rng.uniform(20, 90, channels) / spread).astype(np.float32)
    return qconv2d.planned(workload, weight), [x.astype(np.int8), weight, bias, factor]


@pytest.mark.parametrize("workload", WORKLOADS, ids=QConv2d.key)
def test_the_definition_is_that_of_the_reference(workload):
    workload, args = arguments(workload, "uniform")
    expected = compute(workload, args)
    assert (defined(workload, args) == expected).all()
    assert np.ptp(expected.astype(int)) >= 2


@pytest.mark.parametrize("workload", [PRODUCTS[2], DEPTHWISE[1], ROWS[0], *PLAIN], ids=QConv2d.key)
def test_plain_loops_compute_the_definition(workload):
    workload, args = arguments(workload, "uniform")
    kernel = qconv2d.emit(workload, {}, without_set())
    assert not kernel.microkernels
    assert (on_host(kernel.func, bound(kernel, args), workload) == compute(workload, args)).all()


def test_weights_of_dense_layers_stay_bytes():
    """Pairs of products fit 16 bits, but not those of -128."""
    target = targets.load("rasp3b")
    dense, heavy = (arguments(PRODUCTS[3], kind)[0] for kind in ("of 8 bits", "lowest"))
    assert (dense.segment, dense.segments) == (2, 0) and heavy.segments > 0
    assert qconv2d.emit(dense, {}, target).arguments[1].dtype == "int8"


def test_kernels_of_64_bit_boards_compute_the_definition(run_kernels):
    target = targets.load("rasp3b")
    cases = [arguments(workload, kind) for workload in WORKLOADS for kind in WEIGHTS]
    kernels = [qconv2d.emit(workload, {}, target) for workload, _ in cases]
    own = [work.segment > 0 or (work.depthwise and work.kernel[1] < 9) for work, _ in cases]
    assert [bool(kernel.microkernels) for kernel in kernels] == own
    for results in run_kernels([work for work, _ in cases], kernels, [args for _, args in cases], target, (1, 3)):
        for result, (workload, args) in zip(results, cases, strict=True):
            assert (result == compute(workload, args)).all(), workload.key()


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_segments_of_every_length(run_kernel, length):
    target = targets.load("rasp3b")
    workload, args = arguments(QConv2d(4, 5, 48, 16, (1, 1), zero=-128), "uniform")
    segments = laid(args[1].reshape(16, 48), 8, length).counts.max()
    workload = replace(workload, segment=length, segments=int(segments))
    kernel = qconv2d.emit(workload, {}, target)
    assert (run_kernel(workload, kernel, args, target, 1) == compute(workload, args)).all()


@pytest.mark.parametrize(
    ("workload", "group"),
    [
        (QConv2d(3, 5, 600, 240, (1, 1), zero=5), "2 of 2 blocks"),
        (QConv2d(9, 9, 200, 80, (3, 3), padding=BORDER, zero=5), "9 of 11 blocks"),
    ],
    ids=["all", "groups"],
)
def test_many_weights_meet_groups_of_blocks(run_kernel, workload, group):
    target = targets.load("rasp3b")
    workload, args = arguments(workload, "uniform")
    kernel = qconv2d.emit(workload, {}, target)
    assert group in kernel.notes
    assert (run_kernel(workload, kernel, args, target, 3) == compute(workload, args)).all()
