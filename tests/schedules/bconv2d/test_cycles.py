"""The speed of binary kernels with their untuned defaults, on the simulated core. The model repeats itself: so do these."""

from __future__ import annotations

import pytest

from bitkiln import targets
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Binarize, Conv2d, Pool, Pool2d, Workload
from tests.schedules.kernels import example

SAME = (1, 1, 1, 1)
MUL, ADD, TENSOR, HALF = Step("mul", "channel"), Step("add", "channel"), Step("add", "tensor"), Step("add", "half")
PRELU = Step("prelu", "channel")


def bits(channels: int, out_channels: int, size: int) -> Conv2d:
    return Conv2d(
        size, size, channels, out_channels, (3, 3), padding=SAME, binary=True, out="bits", threshold="channel"
    )


#: Cycles, to be lowered whenever a kernel gets faster.
CYCLES: list[tuple[Workload, int]] = [
    (bits(64, 64, 56), 3_362_000),
    (bits(128, 128, 28), 3_249_000),
    (bits(256, 256, 14), 3_205_000),
    (bits(512, 512, 7), 3_229_000),
    (bits(512, 1024, 4), 2_158_000),
    (Conv2d(56, 56, 64, 64, (3, 3), (1, 1), SAME, binary=True, pad_value=1, epilogue=(MUL, ADD, TENSOR)), 3_874_000),
    (Conv2d(56, 56, 64, 64, (3, 3), (1, 1), SAME, binary=True, epilogue=(MUL, ADD, TENSOR)), 4_004_000),
    (Conv2d(56, 56, 64, 64, (1, 1), binary=True, epilogue=(MUL, ADD, TENSOR)), 1_385_000),
    (Conv2d(56, 56, 64, 128, (1, 1), binary=True, epilogue=(MUL, ADD, HALF, ADD, PRELU, ADD)), 3_117_000),
    (Binarize(28, 28, 128, (MUL, ADD)), 160_500),
    (Pool2d(56, 56, 64, Pool((3, 3), (2, 2), SAME), bits=True), 9_690),
]


@pytest.mark.parametrize(
    ("workload", "expected"), CYCLES, ids=lambda value: value.key() if hasattr(value, "key") else ""
)
def test_kernels_stay_as_fast_as_they_are(workload, expected, kernel_cycles):
    target = targets.load("rasp3b")
    operator = operator_for(workload)
    kernel = operator.emit(workload, operator.default(workload, target), target)
    cycles = kernel_cycles(kernel, example(workload), target)
    assert cycles < expected * 1.02, f"{workload.key()}: {cycles} cycles, {expected} before"
