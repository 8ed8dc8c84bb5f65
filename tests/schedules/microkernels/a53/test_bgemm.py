"""What the generated assembly of the binary product promises without being run."""

from __future__ import annotations

import re

import pytest

from bitkiln import targets
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53 import bgemm as bgemm_a53
from bitkiln.schedules.microkernels.a53 import bgemm_tile as bgemm_tile_a53
from bitkiln.schedules.microkernels.a53 import bpack as bpack_a53


@pytest.mark.parametrize("tile", kernel_set(targets.load("rasp3b")).bgemm)
def test_tiles_fit_the_registers(tile):
    pixels, channels = tile
    assert bgemm_tile_a53.fits(pixels, channels // 8)


def test_a_tile_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="registers"):
        bgemm_a53.Counts(8, 4, 10).assembly()


@pytest.mark.parametrize("words", [1, 31, 32, 36, 72, 144, 288, 4095])
def test_byte_accumulators_never_overflow(words):
    body = bgemm_tile_a53.Tile(6, 4, words)
    assert sum(body.lengths) == words
    assert max(body.lengths) <= bgemm_tile_a53.MAX_SEGMENT


def test_a_step_issues_three_operations_for_each_accumulator():
    text = bgemm_a53.Counts(6, 4, 36).assembly()
    step = text.split("1:\n")[1].split("b.ne 1b")[0]
    operations = re.findall(r"^\s*(\w+)", step, re.MULTILINE)
    assert [operations.count(name) for name in ("eor", "cnt", "add")] == [24, 24, 25]  # one add moves the pointer
    assert [operations.count(name) for name in ("ld2r", "ldr", "ins", "prfm")] == [3, 8, 4, 1]


def test_symbols_tell_kernels_apart():
    kernels = [
        *(bgemm_a53.Counts(pixels, vectors, words) for pixels in (2, 6) for vectors in (2, 4) for words in (36, 72)),
        *(bgemm_a53.Bits(6, 4, 36, rows) for rows in ("one", "some", "each")),
        *(bpack_a53.PackPairs(runs, size) for runs in (1, 3) for size in (24, 48)),
    ]
    assert len({kernel.symbol for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        assert f".hidden {kernel.symbol}" in kernel.assembly()


def test_code_does_not_grow_with_the_product():
    """Segments between the first and the last are one loop."""
    short, long = (bgemm_a53.Counts(6, 4, words).assembly().count("\n") for words in (31 * 3, 31 * 60))
    assert long - short < 10
