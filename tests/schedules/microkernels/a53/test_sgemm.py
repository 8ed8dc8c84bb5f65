"""The float micro-kernels' loops by the rules that they are ordered with; their answers are tested with the convolutions."""

from __future__ import annotations

import re

import pytest

from bitkiln.schedules.microkernels.a53 import SET
from bitkiln.schedules.microkernels.a53.sgemm import STEP, Finish, Sgemm, inner_loop
from bitkiln.schedules.microkernels.a53.sgemm_stack import SgemmStack

OFFERED = SET.sgemm


@pytest.mark.parametrize(("tile_m", "tile_n"), OFFERED)
def test_what_is_left_over_of_a_tile_has_a_kernel_too(tile_m, tile_n):
    for rest_m in range(3, tile_m + 1):
        for rest_n in range(4, tile_n + 1, 4):
            assert f"bk_sgemm_{rest_m}x{rest_n}_a53:" in Sgemm(rest_m, rest_n).assembly()


@pytest.mark.parametrize(("tile_m", "tile_n"), OFFERED)
def test_offered_tiles_come_near_the_peak(tile_m, tile_n):
    """Of 4 multiply-adds a cycle; a 64-bit load and its other half cost a cycle for each vector."""
    cycles = Sgemm(tile_m, tile_n).cycles_per_step
    assert 4 * tile_m * tile_n / cycles > 2.9
    assert cycles >= tile_m * tile_n + tile_n + 2 * (-(-tile_m // 2))


@pytest.mark.parametrize(("tile_m", "tile_n"), SET.sgemm_halves)
def test_weights_in_halves_cost_an_operation_for_each_vector(tile_m, tile_n):
    whole, halves = Sgemm(tile_m, tile_n).cycles_per_step, Sgemm(tile_m, tile_n, halves=True).cycles_per_step
    assert whole < halves <= whole + STEP * tile_n / 4
    for rest_m in range(3, tile_m + 1):
        for rest_n in range(4, tile_n + 1, 4):
            assert "shll" in Sgemm(rest_m, rest_n, halves=True).assembly()


@pytest.mark.parametrize(("tile_m", "tile_n"), [(8, 8), (8, 12), (7, 12), (11, 8), (6, 12)])
def test_no_vector_load_four_cycles_after_a_multiply_add(tile_m, tile_n):
    """Counted in the order of the text, where an instruction that pairs takes no cycle."""
    cycle, multiplied, wrong, previous = -1, set(), 0, ""
    for line in inner_loop(Sgemm(tile_m, tile_n, reach=True)).iteration() * 2:
        name = line.split()[0]
        vector_load = re.match(r"ldr d", line) is not None
        if name in ("fmla", "fmov") or vector_load or (name == "ins" and previous != "ldr d"):
            cycle += 1
        if vector_load and cycle - 4 in multiplied:
            wrong += 1
        if name == "fmla":
            multiplied.add(cycle)
        previous = "ldr d" if vector_load else name
    assert not wrong


@pytest.mark.parametrize("halves", [False, True])
def test_what_is_fetched_beside_products_takes_no_cycle_of_theirs(halves):
    for tile_m, tile_n in ((8, 8), (8, 12)) if not halves else ((8, 8), (6, 12)):
        plain = Sgemm(tile_m, tile_n, reach=True, halves=halves)
        fetching = Sgemm(tile_m, tile_n, reach=True, following=120, halves=halves, turns=4, stored=8)
        assert fetching.cycles_per_step == plain.cycles_per_step
        loop = "\n".join(fetching.loop.iteration())
        # A line of each pixel, two of weights for later, those of this tile, and one of the results.
        lines = tile_m * fetching.fetches_image + 2 + -(-fetching.step_bytes // 64) + 1
        assert loop.count("prfm pldl1keep") + loop.count("prfm pstl1keep") == lines


def test_kernels_that_differ_have_different_names():
    finishes = [
        Finish(),
        Finish(True),
        Finish(True, "relu"),
        Finish(True, "clip", (0.0, 6.0)),
        Finish(True, "clip", (0.0, 1.0)),
        Finish(True, "leaky", (0.1,)),
        Finish(True, "leaky", (0.1,), 4),
    ]
    kernels = [Sgemm(8, 8, finish, reach) for finish in finishes for reach in (False, True)]
    kernels += [Sgemm(8, 8, finish, reach, halves=True) for finish in finishes for reach in (False, True)]
    kernels += [Sgemm(8, 8, reach=True, following=200, turns=turns, stored=4 * turns) for turns in (2, 4)]
    kernels += [SgemmStack(8, 8, depth) for depth in (16, 32)]
    assert len({kernel.symbol for kernel in kernels}) == len(kernels)
    assert len({kernel.assembly() for kernel in kernels}) == len(kernels)
    for kernel in kernels:
        assert f".hidden {kernel.symbol}\n" in kernel.assembly()
