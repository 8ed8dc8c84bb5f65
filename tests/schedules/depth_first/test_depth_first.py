"""Layers computed depth first: against the definition, at borders, with leftovers, in residuals and on several threads."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.pipeline.tune import data
from bitkiln.schedules import conv2d, depth_first
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, DepthFirst, Pool, argument_specs, from_json, to_json
from tests.schedules.kernels import defined, example, without_set

RASP3B = targets.load("rasp3b")
ADD, RELU, SIX = Step("add", "channel"), Step("relu"), Step("clip", values=(0.0, 6.0))
RESIDUAL = Step("add", "tensor")
#: A depthwise layer by itself, which copies its image and border.
_DEPTHWISE = {"algorithm": "depthwise", "tile": "1x4"}


def chain(size, channels, wide, out, *, kernel=3, stride=1, padding=None, last=(ADD,), act=SIX):
    """An inverted residual of an image of ``size``; without ``channels`` or ``out`` it lacks a layer."""
    border = (kernel // 2,) * 4 if padding is None else padding
    layers = [Conv2d(*size, channels, wide, (1, 1), epilogue=(ADD, act))] if channels else []
    layers.append(
        Conv2d(*size, wide, wide, (kernel, kernel), (stride, stride), border, groups=wide, epilogue=(ADD, act))
    )
    layers += [Conv2d(*layers[-1].out_size, wide, out, (1, 1), epilogue=last)] if out else []
    return DepthFirst(tuple(layers))


WORKLOADS = [
    chain((14, 14), 8, 48, 8, last=(ADD, RESIDUAL)),
    chain((15, 17), 16, 24, 12, stride=2),
    chain((28, 28), 8, 24, 20, stride=2, padding=(0, 0, 1, 1)),
    chain((16, 15), 8, 16, 8, kernel=5, last=(ADD, RESIDUAL, RELU)),
    chain((19, 21), 4, 24, 16, kernel=5, stride=2, act=Step("hardswish")),
    chain((13, 16), 0, 32, 24, last=(ADD, RELU)),
    chain((12, 31), 0, 20, 16, stride=2),
    chain((11, 12), 12, 24, 0, act=RELU),
    chain((7, 7), 8, 36, 16),
    chain((5, 40), 4, 8, 4, last=()),
    chain((28, 28), 0, 64, 48, stride=2, padding=(0, 0, 1, 1)),
    chain((9, 23), 0, 36, 20, kernel=5, last=(ADD, RESIDUAL, RELU)),
    chain((14, 17), 0, 48, 16, kernel=5, stride=2, act=Step("hardswish")),
    chain((6, 5), 0, 16, 8, padding=(2, 2, 2, 2), last=()),
    chain((1, 9), 0, 4, 4, padding=(1, 1, 1, 1)),
]
#: Of these the results of the layers alone are compared to the bit.
ALONE = [WORKLOADS[0], *[workload for workload in WORKLOADS if workload.layers[0].depthwise][::2]]


@pytest.mark.parametrize("workload", WORKLOADS, ids=DepthFirst.key)
def test_strips_compute_the_definition(workload, run_kernels):
    args = example(workload)
    expected = defined(workload, args)
    tiles = depth_first.space(workload, RASP3B)["tile"]
    points = [
        (1, tiles[-1]),
        *((threads, depth_first.default(workload, RASP3B, threads)["tile"]) for threads in (1, 4)),
    ]
    kernels = [depth_first.emit(workload, {"tile": tile}, RASP3B, threads) for threads, tile in points]
    count = len(kernels)
    for by_threads in run_kernels([workload] * count, kernels, [args] * count, RASP3B, (1, 4)):
        for point, result in zip(points, by_threads, strict=True):
            np.testing.assert_allclose(result, expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=str(point))


@pytest.mark.parametrize("workload", ALONE, ids=DepthFirst.key)
def test_results_are_those_of_the_layers_alone_to_the_bit(workload, run_kernels):
    args = example(workload)
    value, rest = args[0], args[1:]
    for layer in workload.layers:
        own = [value, *(rest.pop(0) for _ in layer.shapes[1:-1])]
        knobs = _DEPTHWISE if layer.depthwise else {**conv2d.default(layer, RASP3B), "algorithm": "direct"}
        kernel = conv2d.emit(layer, knobs, RASP3B)
        [[value]] = run_kernels([layer], [kernel], [own], RASP3B, (1,))
    kernels = [depth_first.emit(workload, depth_first.default(workload, RASP3B, n), RASP3B, n) for n in (1, 4)]
    for results in run_kernels([workload] * 2, kernels, [args] * 2, RASP3B, (1, 2, 3, 4)):
        for result in results:
            np.testing.assert_array_equal(result, value)


def test_every_tile_computes_the_same(run_kernels):
    workload = chain((13, 30), 0, 32, 12)
    args = example(workload)
    kernels = [
        depth_first.emit(workload, {"tile": tile}, RASP3B) for tile in depth_first.space(workload, RASP3B)["tile"]
    ]
    [results] = run_kernels([workload] * len(kernels), kernels, [args] * len(kernels), RASP3B, (1,))
    assert len(kernels) > 3
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_large_image_is_cut_for_the_cache():
    """On four threads each keeps a part of the rows and columns."""
    workload = chain((112, 112), 16, 96, 24, stride=2)
    tile = str(depth_first.default(workload, RASP3B, 4)["tile"])
    assert depth_first.default(workload, RASP3B)["tile"] in depth_first.space(workload, RASP3B)["tile"]
    notes = [depth_first.emit(workload, {"tile": tile}, RASP3B, threads).notes for threads in (1, 4)]
    assert "1 cells" in notes[0] and "4 cells" in notes[1]


@pytest.mark.parametrize(
    "workload",
    [
        chain((14, 14), 6, 24, 8),
        chain((14, 14), 8, 20, 8),
        chain((14, 14), 8, 24, 8, act=Step("silu")),
        chain((14, 14), 0, 24, 8, act=Step("silu")),
        chain((14, 14), 0, 16, 8, padding=(3, 1, 1, 1)),
        DepthFirst((Conv2d(8, 8, 4, 8, (1, 1), (2, 2)), Conv2d(4, 4, 8, 8, (3, 3), padding=(1,) * 4, groups=8))),
        DepthFirst(
            (
                Conv2d(8, 8, 8, 8, (3, 3), padding=(1,) * 4, groups=8),
                Conv2d(8, 8, 8, 8, (1, 1), pool=Pool((2, 2), (2, 2))),
            )
        ),
    ],
    ids=DepthFirst.key,
)
def test_what_strips_cannot_do_is_refused(workload):
    assert not depth_first.applies(workload, RASP3B)


def test_without_micro_kernels_layers_stay_apart():
    assert not depth_first.applies(WORKLOADS[0], without_set())
    assert not depth_first.applies(WORKLOADS[0], targets.load("rasp3b32"))


def test_a_workload_survives_json():
    assert from_json(to_json(WORKLOADS[0])) == WORKLOADS[0]


def test_the_tuner_makes_its_arguments_and_numbers():
    workload = WORKLOADS[1]
    found = data.arguments(workload, 3)
    assert [(array.shape, str(array.dtype)) for array in found] == list(argument_specs(workload))
    assert not data.disagreement(workload, *(data.reference_result(workload, 3) for _ in range(2)))
    sizes = (workload.height, workload.width, workload.channels, workload.out_channels)
    assert sizes == (15, 17, 16, 12)


def test_an_inverted_residual_waits_little_for_memory(kernel_cycles):
    """Layer by layer its kernels take the sum of theirs; what lies between is 6 MB written and read."""
    workload = chain((56, 56), 24, 144, 24, last=(ADD, RESIDUAL))
    together = kernel_cycles(
        depth_first.emit(workload, depth_first.default(workload, RASP3B), RASP3B), example(workload), RASP3B
    )
    apart = sum(
        kernel_cycles(conv2d.emit(layer, conv2d.default(layer, RASP3B), RASP3B), example(layer), RASP3B)
        for layer in workload.layers
    )
    assert together < 0.85 * apart
