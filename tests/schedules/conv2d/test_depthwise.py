"""Depthwise convolution by tiles: every tile against the definition, at borders, with leftovers and on several threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import conv2d
from bitkiln.schedules.conv2d import depthwise_a53 as conv2d_depthwise_a53
from bitkiln.schedules.conv2d import depthwise_in_place, patches
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool
from tests.schedules.kernels import defined, example

RASP3B = targets.load("rasp3b")
SAME = (1, 1, 1, 1)
ADD, RELU = Step("add", "channel"), Step("relu")

WORKLOADS = [
    Conv2d(9, 11, 16, 16, (3, 3), padding=SAME, groups=16, epilogue=(ADD, RELU)),
    Conv2d(7, 7, 64, 64, (3, 3), padding=SAME, groups=64, epilogue=(ADD, Step("clip", values=(0.0, 6.0)))),
    Conv2d(14, 13, 20, 20, (3, 3), (2, 2), (0, 0, 1, 1), groups=20, epilogue=(ADD, Step("hardswish"))),
    Conv2d(12, 15, 12, 12, (5, 5), padding=(2, 2, 2, 2), groups=12, epilogue=(Step("prelu", "channel"),)),
    Conv2d(15, 15, 8, 8, (5, 5), (2, 2), (2, 2, 2, 2), groups=8, epilogue=(Step("leaky", values=(0.1,)),)),
    Conv2d(
        11, 12, 8, 8, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2), groups=8, epilogue=(ADD, Step("mul", "channel"))
    ),
    Conv2d(6, 90, 16, 16, (3, 3), padding=SAME, groups=16),
    Conv2d(3, 2, 4, 4, (3, 3), padding=SAME, groups=4),
    Conv2d(5, 5, 4, 4, (1, 7), padding=(0, 3, 0, 3), groups=4),
    Conv2d(3, 3, 8, 8, (5, 5), padding=(4, 4, 4, 4), groups=8, epilogue=(RELU,)),
    Conv2d(30, 34, 36, 36, (3, 3), padding=SAME, groups=36, epilogue=(ADD, RELU)),
    Conv2d(12, 12, 16, 16, (3, 3), padding=SAME, groups=16, pool=Pool((2, 2), (2, 2)), out="bits"),
    # Dilated so far that a band of rows does not fit the L2 cache: group after group of channels.
    Conv2d(24, 12, 400, 400, (3, 3), padding=(8, 8, 8, 8), dilation=(8, 8), groups=400, epilogue=(ADD,)),
    # What follows the micro-kernel's steps, with the channels of few cells shared among threads, too.
    Conv2d(9, 13, 20, 20, (3, 3), padding=SAME, groups=20, epilogue=(ADD, Step("silu"), Step("mul", "channel"))),
    Conv2d(7, 7, 64, 64, (3, 3), padding=SAME, groups=64, epilogue=(ADD, Step("add", "tensor"), Step("tanh"), RELU)),
    Conv2d(8, 8, 8, 8, (3, 3), padding=SAME, groups=8, epilogue=(Step("gelu"),), pool=Pool((2, 2), (2, 2))),
]


#: Every other one in A32.
BOTH = [*((each, "rasp3b") for each in WORKLOADS), *((each, "rasp3b32") for each in WORKLOADS[::2])]


@pytest.mark.parametrize(("workload", "board"), BOTH, ids=[f"{work.key()}-{board}" for work, board in BOTH])
def test_tiles_compute_the_definition(workload, board, run_kernels):
    args, target = example(workload), targets.load(board)
    micro = kernel_set(target)
    expected = defined(workload, args)
    tiles = conv2d_depthwise_a53.tiles(workload, micro)
    # Cells and patches for one thread or for four by turns: each tile is compiled once.
    threads = itertools.cycle((1, 4))
    kernels = [conv2d_depthwise_a53.emit(workload, tile, micro, next(threads)) for tile in tiles]
    if depthwise_in_place.applies(workload, micro):
        more = patches.tiles(workload, micro)
        kernels += [depthwise_in_place.emit(workload, tile, micro, next(threads)) for tile in more]
        tiles += more
    count = len(kernels)
    results = run_kernels([workload] * count, kernels, [args] * count, target, (1, 4))
    for by_threads in results:
        for tile, result in zip(tiles, by_threads, strict=True):
            if result.dtype == np.uint8:
                assert np.unpackbits(result ^ expected).sum() <= 1, tile
            else:
                np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=tile)


@pytest.mark.parametrize("workload", WORKLOADS, ids=Conv2d.key)
def test_the_default_is_a_tile(workload):
    for threads in (1, 4):
        knobs = conv2d.default(workload, RASP3B, threads)
        assert knobs["tile"] in conv2d.space(workload, RASP3B)["tile"]
        assert conv2d.emit(workload, knobs, RASP3B, threads).microkernels


@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(8, 8, 7, 7, (3, 3), padding=SAME, groups=7),
        Conv2d(8, 8, 8, 16, (3, 3), padding=SAME, groups=8),
    ],
    ids=Conv2d.key,
)
def test_what_tiles_cannot_do_is_left_to_loops(workload):
    assert not conv2d_depthwise_a53.applies(workload, kernel_set(RASP3B))
    assert "tile" not in conv2d.space(workload, RASP3B) or not workload.depthwise or workload.out_channels > 8


def test_a_large_layer_waits_little_for_memory(kernel_cycles):
    """Reading and writing it once takes 0.88 M cycles; a walk over the pixels without fetching ahead took 4.5 M."""
    workload = Conv2d(28, 28, 256, 256, (3, 3), padding=SAME, groups=256, epilogue=(ADD, RELU))
    kernel = conv2d.emit(workload, conv2d.default(workload, RASP3B), RASP3B)
    cycles = kernel_cycles(kernel, example(workload), RASP3B)
    assert cycles < 2.2e6
