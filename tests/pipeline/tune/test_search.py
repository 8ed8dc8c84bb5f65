"""Which points of a space are proposed, and when."""

from __future__ import annotations

import math
import random

import pytest

from bitkiln import targets
from bitkiln.pipeline.records import Record
from bitkiln.pipeline.tune.features import Layout
from bitkiln.pipeline.tune.search import Search, cost_models
from bitkiln.pipeline.tune.space import Space
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import Conv2d

SMALL = {"tile": ["4x16", "8x8"], "block": [1, 2, 4]}
LARGE = {"tile": ["4x16", "8x8", "6x32"], "block": [1, 2, 4, 8], "order": ["a", "b"], "unroll": [1, 2, 3, 4, 5]}


def task_with(knobs: dict, size: int = 8) -> Task:
    """A task whose space is ``knobs``."""
    task = Task(Conv2d(size, size, 8, 8, (3, 3)), targets.load("rasp3b"), occurrences=1)
    task.space = Space(knobs)
    task.default = {name: values[0] for name, values in knobs.items()}
    return task


def search_of(task: Task, seed: int = 1) -> Search:
    return Search(task, cost_models([task])[task.family], seed)


def trial(task: Task, point: dict, seconds: float) -> Record:
    return Record(task.key, task.target.name, point, unit="seconds", value=seconds)


def identity(point: dict) -> tuple:
    return tuple(sorted(point.items()))


def test_a_small_space_is_tried_point_by_point_nearest_to_the_default_first():
    search = search_of(task_with(SMALL))
    search.learn([trial(search.task, search.task.default, 1.0)])
    points = search.propose(4) + search.propose(100)
    assert len({identity(point) for point in points}) == len(points) == 5
    changes = [sum(point[name] != search.task.default[name] for name in SMALL) for point in points]
    assert changes == sorted(changes)
    assert search.exhausted
    assert search.propose(1) == []


def test_suggestions_come_first_if_the_space_has_them():
    search = search_of(task_with(SMALL))
    known = {"tile": "8x8", "block": 4}
    search.suggest([{"tile": "8x8", "block": 3}, {"other": 1}, known])
    assert search.propose(1) == [known]


def test_what_timed_out_is_tried_once_more():
    """A host may have been busy; twice is the point's own fault."""
    search = search_of(task_with(SMALL))
    slow = {"tile": "8x8", "block": 4}
    late = Record(search.task.key, search.task.target.name, slow, status="timeout")
    search.learn([late])
    assert search.propose(1) == [slow]
    search.learn([late])
    assert slow not in search.propose(100)
    assert search.exhausted


def test_a_large_space_is_searched_without_repeats_until_it_is_exhausted():
    task = task_with({**LARGE, "unroll": [1], "block": [1, 2, 4, 8, 16]})
    search = search_of(task)
    seen = []
    while not search.exhausted:
        points = search.propose(8)
        assert points
        seen += points
        search.learn([trial(task, point, 1.0 + point["block"]) for point in points])
    assert len({identity(point) for point in seen}) == len(seen) == task.space.size


def cost(point: dict) -> float:
    """A landscape with one valley."""
    return (
        1 + abs(math.log2(point["block"]) - 2) + ["6x32", "8x8", "4x16"].index(point["tile"]) + abs(point["unroll"] - 4)
    )


def test_it_learns_where_the_valley_is():
    task = task_with(LARGE)
    search = search_of(task)
    found = []
    for _ in range(5):
        points = search.propose(8)
        found += [cost(point) for point in points]
        search.learn([trial(task, point, cost(point)) for point in points])
    every = [cost(search.task.space.point(search.task.space.schedule(search._function, p).trace)) for p in points]
    assert every == [cost(point) for point in points], "a schedule carries its point"
    luck = random.Random(1)
    random_best = [min(luck.uniform(1, 8) for _ in range(8)) for _ in range(5)]
    assert min(found) <= min(random_best) + 0.5
    assert sum(found[-16:]) < sum(found[:16]), "later batches are better than the first"


def test_earlier_trials_are_not_proposed_again():
    task = task_with(LARGE)
    first = search_of(task)
    points = [point for _ in range(4) for point in first.propose(8)]
    second = search_of(task, seed=2)
    second.learn([trial(task, point, cost(point)) for point in points])
    again = {identity(point) for point in second.propose(16)}
    assert again.isdisjoint(map(identity, points))


def test_records_outside_of_the_space_are_ignored():
    search = search_of(task_with(SMALL))
    search.learn([trial(search.task, {"tile": "old", "block": 1}, 1.0), trial(search.task, {}, 1.0)])
    assert len(search.propose(100)) == 6


def test_features_of_a_family_have_the_same_columns():
    tasks = [task_with(SMALL), task_with(LARGE, 16)]
    layout = Layout.of(tasks)
    rows = [layout.row(task, task.default) for task in tasks]
    assert len(rows[0]) == len(rows[1])
    assert math.isnan(rows[0][-1]), "a knob the first task does not have"


@pytest.mark.parametrize("knobs", [SMALL, LARGE])
def test_points_and_traces_say_the_same(knobs):
    task = task_with(knobs)
    function = task.operator.reference(task.workload)
    point = {name: values[-1] for name, values in knobs.items()}
    schedule = task.space.schedule(function, point)
    assert task.space.point(schedule.trace) == point
    assert "bitkiln.knob.tile" in schedule.mod.script()
