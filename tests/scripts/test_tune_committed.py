"""Committed records of networks: which steps are tuned, and what is kept of their trials."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from bitkiln import targets
from bitkiln.pipeline.records import Record, Records
from bitkiln.pipeline.tune import TaskState
from bitkiln.pipeline.tune.search import Search, cost_models
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets.sim import MODEL_VERSION

RASP3B = targets.load("rasp3b")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("tune_committed", str(Path(__file__).parents[2] / "scripts" / "tune_committed"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_the_steps_that_take_most_are_tuned_for_each_number_of_threads(script):
    every, most = (script.tasks_of(["squeezenet-1.1"], RASP3B, [1, 4], share) for share in (0.0, 0.08))
    assert 0 < len(most) < len(every)
    assert {task.threads for task in most} == {1, 4}
    assert {task.name for task in most} < {task.name for task in every}


def test_only_gains_are_kept_and_decide(script, tmp_path):
    task = Task(Conv2d(8, 8, 64, 64, (3, 3), padding=(1, 1, 1, 1)), RASP3B, threads=4)
    tiles = task.operator.space(task.workload, RASP3B)["tile"]
    other = {**task.default, "tile": next(tile for tile in tiles if tile != task.default["tile"])}
    by = f"simulated Cortex-A53, 4 cores, model {MODEL_VERSION}, 1200 MHz"
    fields = {"clock_mhz": 1200.0, "kind": "simulated", "measured_by": by, "threads": 4}
    default = Record(task.key, "rasp3b", task.default, value=1000.0, default=True, **fields)
    state = TaskState(task, Search(task, cost_models([task])[task.family]), default=default)
    for cycles, kept in ((990.0, 0), (900.0, 1), (900.0, 0)):
        state.best = replace(default, knobs=other, value=cycles, default=False, time="2026-01-01T00:00:00Z")
        assert script.keep([state], tmp_path, 0.02) == kept
    records = Records([tmp_path])
    assert len(records.records) == 2
    assert records.best(task.key, RASP3B, 4).value == 900
    assert records.best(task.key, RASP3B, 1) is None
