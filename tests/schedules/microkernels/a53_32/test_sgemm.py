"""The A32 loops by the rules that they are ordered with; their answers are tested with the convolutions."""

from __future__ import annotations

import re

import pytest

from bitkiln.schedules.microkernels.a53_32 import SET
from bitkiln.schedules.microkernels.a53_32.sgemm import Sgemm

TILES = [(rest, tile_n) for tile_m, tile_n in SET.sgemm for rest in range(3, tile_m + 1)]


@pytest.mark.parametrize(("tile_m", "tile_n"), TILES)
def test_scalars_are_lanes_of_the_lower_half(tile_m, tile_n):
    """The encoding of a product by lane has room for d0..d15 alone."""
    lanes = re.findall(r"vmla\.f32 .*, d(\d+)\[", Sgemm(tile_m, tile_n).assembly())
    assert lanes
    assert max(map(int, lanes)) < 16


@pytest.mark.parametrize(("tile_m", "tile_n"), TILES)
def test_the_last_step_of_a_row_reads_nothing_behind_it(tile_m, tile_n):
    """A step is 16 bytes of each pixel, whose pointers are r0, r1, ..."""
    for line in Sgemm(tile_m, tile_n).loop.iteration(last=True):
        for pointer, offset in re.findall(r"ldr \w+, \[r(\d), #(\d+)\]", line):
            assert int(pointer) >= tile_m or int(offset) < 16, line
