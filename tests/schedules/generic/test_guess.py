"""First tiles fit the registers."""

from __future__ import annotations

from bitkiln import targets
from bitkiln.schedules.generic import guess
from bitkiln.schedules.generic.sketches import UNROLL, sketches
from tests.schedules.generic.test_sketches import workload_of

RASP3B = targets.load("rasp3b")


def test_the_first_tiles_of_a_product_fill_the_registers_with_vectors() -> None:
    found = {each.name: each for each in sketches(workload_of("products").function, RASP3B)}
    points = guess.points(found, RASP3B, 6, seed=1)
    assert len(points) == 6
    for name, point in points:
        rows, columns = (int(str(point[knob]).split("x")[-1]) for knob in found[name].steps[1:3])
        assert columns % 4 == 0
        assert 8 <= rows * columns // 4 <= 24


def test_programs_that_are_not_one_sum_have_none() -> None:
    found = {each.name: each for each in sketches(workload_of("softmax").function, RASP3B)}
    assert guess.points(found, RASP3B, 6, seed=1) == []


def test_only_the_rows_of_a_tile_are_unrolled() -> None:
    found = {each.name: each for each in sketches(workload_of("products").function, RASP3B)}
    for name, point in guess.points(found, RASP3B, 6, seed=1):
        rows = int(str(point[found[name].steps[1]]).split("x")[-1])
        assert rows <= int(point[UNROLL]) <= max(16, 4 * rows)


def test_a_large_tensor_is_not_read_for_each_half_of_a_narrow_one() -> None:
    """784 x 784 floats do not fit the cache: the 16 columns they are multiplied by are not split outside of them."""
    point = guess.points(
        {each.name: each for each in sketches(workload_of("tall").function, RASP3B)}, RASP3B, 1, seed=1
    )[0][1]
    assert str(point["16 in 4"]).startswith("1x")
