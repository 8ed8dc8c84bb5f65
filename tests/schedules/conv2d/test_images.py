"""Convolutions of several images side by side: the same floats as of one image that is a copy of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitkiln import targets
from bitkiln.schedules import conv2d
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool, from_json, to_json
from tests.schedules.kernels import bound, defined, example, identical, on_host, same, without_set

BORDER = (1, 1, 1, 1)
BIAS, RESIDUAL, RELU, SILU = Step("add", "channel"), Step("add", "tensor"), Step("relu"), Step("silu")
POINTWISE = Conv2d(7, 9, 32, 24, (1, 1), epilogue=(BIAS, RELU), parts=(16, 16))
THREE = Conv2d(10, 9, 28, 24, (3, 3), padding=BORDER, epilogue=(BIAS, RESIDUAL), parts=(16, 4, 8))
#: Convolutions and points of their spaces: each algorithm, and pieces of larger images.
CASES: list[tuple[Conv2d, dict[str, Any]]] = [
    (POINTWISE, {"algorithm": "direct", "tile": "8x8", "block": 1}),
    (replace(POINTWISE, epilogue=(BIAS, SILU), strides=(2, 2)), {"algorithm": "direct", "tile": "4x16", "block": 0}),
    (replace(POINTWISE, begins=(4, 8), widths=(24, 24)), {"algorithm": "direct", "tile": "8x8", "block": 2}),
    (replace(POINTWISE, channels=48, parts=(16,) * 3), {"algorithm": "direct", "tile": "8x12", "block": 1}),
    (THREE, {"algorithm": "direct", "tile": "8x8", "block": 1}),
    (
        replace(THREE, padding=(0, 0, 0, 0), begins=(0, 4, 0), widths=(16, 20, 8)),
        {"algorithm": "direct", "tile": "8x8", "block": 1},
    ),
    (POINTWISE, {"algorithm": "strassen", "tile": "8x8", "block": 1}),
    (replace(POINTWISE, channels=48, parts=(16,) * 3), {"algorithm": "strassen", "tile": "8x8", "block": 2}),
    (replace(POINTWISE, channels=512, parts=(256,) * 2), {"algorithm": "panels", "tile": "8x8", "block": 0}),
    (THREE, {"algorithm": "winograd 4x4", "tile": "8x8", "block": 1}),
    (replace(THREE, begins=(0, 4, 0), widths=(16, 20, 8)), {"algorithm": "winograd 2x2", "tile": "8x8", "block": 0}),
    (
        replace(THREE, height=8, width=8, pool=Pool((2, 2), (2, 2)), epilogue=(BIAS,)),
        {"algorithm": "winograd 4x4", "tile": "8x8", "block": 1},
    ),
]
A32 = {"algorithm": "direct", "tile": "4x8", "block": 1}
IN_A32 = [
    (work, A32 if knobs["algorithm"] == "direct" else knobs | {"tile": "4x8"})
    for work, knobs in (*CASES[:6], *CASES[9:])
]
IN_A32 += [
    (work, {"algorithm": "packed", "tile": "4x8", "block": block % 3}) for block, (work, _) in enumerate(CASES[:6])
]


def side_by_side(workload: Conv2d, args: list[np.ndarray]) -> list[np.ndarray]:
    """The arguments of ``images.joined(workload)``."""
    pieces = images.pieces(workload)
    others = len(args) - len(pieces) + 1
    taken = zip([args[0], *args[others:]], pieces, strict=True)
    return [np.concatenate([data[..., p.first : p.first + p.count] for data, p in taken], axis=3), *args[1:others]]


@pytest.mark.parametrize(
    "board, cases, threads",
    [("rasp3b", CASES[::3], 1), ("rasp3b", CASES, 4), ("rasp3b32", IN_A32, 4)],
    ids=["a53-1", "a53-4", "a53_32-4"],
)
def test_kernels_read_several_images(board, cases, threads, run_kernels):
    target = targets.load(board)
    workloads, args, kernels = [], [], []
    for workload, knobs in cases:
        assert images.can_read(workload)
        arrays = example(workload)
        for each, own in ((workload, arrays), (images.joined(workload), side_by_side(workload, arrays))):
            workloads.append(each)
            args.append(own)
            kernels.append(conv2d.emit(each, knobs, target, threads))
    (results,) = run_kernels(workloads, kernels, args, target, [threads])
    for (workload, knobs), several, one in zip(cases, results[::2], results[1::2], strict=True):
        assert identical(several, one), f"{workload} {knobs}"


@pytest.mark.parametrize("workload", [POINTWISE, THREE, CASES[2][0]], ids=Conv2d.key)
def test_plain_kernels_and_the_definition_do(workload):
    target, args = without_set(), example(workload)
    kernel = conv2d.emit(workload, conv2d.default(workload, target), target)
    expected = defined(workload, args)
    assert same(on_host(kernel.func, bound(kernel, args), workload), expected)
    assert same(defined(images.joined(workload), side_by_side(workload, args)), expected)


def test_parts_are_no_part_of_the_task():
    for workload, _ in CASES:
        assert workload.key() == images.joined(workload).key()
        assert from_json(to_json(workload)) == workload


@pytest.mark.parametrize(
    "workload",
    [
        replace(POINTWISE, parts=(24, 8)),
        replace(POINTWISE, parts=(18, 14)),
        replace(POINTWISE, begins=(2, 0), widths=(20, 20)),
        replace(POINTWISE, groups=2),
        replace(THREE, whole=True),
    ],
    ids=str,
)
def test_what_kernels_cannot_read(workload):
    assert not images.can_read(workload)
