"""The A32 binary product by the cycles that it takes; its answers are tested with the convolutions."""

from __future__ import annotations

from bitkiln import targets
from bitkiln.schedules import bconv2d
from bitkiln.schedules.workload import Conv2d
from tests.schedules.kernels import example

#: The bound of the datapath is 42.7.
LEAST_MAC_PER_CYCLE = 28


def test_a_layer_of_bits_comes_near_the_bound(kernel_cycles):
    target = targets.load("rasp3b32")
    work = Conv2d(
        28, 28, 64, 64, (3, 3), padding=(1, 1, 1, 1), binary=True, pad_value=-1, threshold="channel", out="bits"
    )
    kernel = bconv2d.emit(work, {"tile": "4x16", "chunk": 2}, target)
    assert work.macs / kernel_cycles(kernel, example(work), target) > LEAST_MAC_PER_CYCLE
