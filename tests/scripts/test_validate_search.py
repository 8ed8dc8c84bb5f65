"""The search held against random points: which tasks and points it takes, and what it says of them."""

from __future__ import annotations

import pytest

from benchmarks import search
from bitkiln import targets
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import Conv2d


@pytest.fixture(scope="module")
def task() -> Task:
    workload = Conv2d(height=8, width=8, channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1, 1, 1))
    return Task(workload, targets.load("rasp3b"))


def test_random_points_are_distinct_and_of_the_space(task: Task) -> None:
    points = search.random_points(task, 20)
    assert len({tuple(sorted(point.items())) for point in points}) == 20
    assert all(task.space.positions(point) is not None for point in points)


def test_a_small_space_is_taken_whole(task: Task) -> None:
    points = search.random_points(task, 10 * task.space.size)
    assert len({tuple(sorted(point.items())) for point in points}) == task.space.size


def test_only_spaces_that_leave_something_to_search(task: Task) -> None:
    assert search.chosen([task, task], task.space.size - 1, 1) == [task]
    assert search.chosen([task], task.space.size, 1) == []


def test_the_table_says_how_far_the_search_is_from_the_best_point(task: Task) -> None:
    found = search.Outcome(task, default=2.0, searched=1.03, random=1.0, points=task.space.size)
    assert found.ratio == pytest.approx(1.03)
    row = search.table([found], 40).splitlines()[-1]
    assert task.name in row and "1.030" in row
