"""The committed tuning records: they cover the built-in networks on every target, and their kernels keep their cycles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.boards.simulated import Machine, measure_once
from bitkiln.pipeline.compile.single import build_kernel_library
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.records import COMMITTED, Records
from bitkiln.pipeline.tune.tasks import Task, extract_tasks

NETWORKS = ("card-binary", "card-float")
#: Kernels above this are left to the benchmark: they take long to simulate.
MOST_CYCLES, SOME_CYCLES, FEW_CYCLES = 9e6, 5e6, 3e6
#: How far cycles may be from their record. Where code and data lie differs from one path of the library to another. On one
#: thread that moves them by less than 0.5 %; on several it decides as well which threads meet in the shared L2 cache and in
#: memory, and kernels that did not change were measured up to 2.8 % apart.
APART, APART_ON_SEVERAL = 0.02, 0.04


@pytest.fixture(scope="module")
def models():
    return [load_model(name) for name in NETWORKS]


@pytest.fixture(scope="module")
def records() -> Records:
    return Records([COMMITTED])


def test_no_line_is_damaged(records, capsys):
    assert records.records
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in targets.known() if targets.load(name).kernels in ("a53", "a53_32")])
def test_every_layer_of_the_built_in_networks_is_covered(name, models, records):
    target = targets.load(name)
    for task in extract_tasks(models, target):
        best = records.best(task.key, target)
        assert best is not None, f"{task.key} has no record for {name}"
        assert all(best.knobs[knob] in values for knob, values in task.operator.space(task.workload, target).items())


@pytest.mark.parametrize(
    ("name", "threads", "most"), [("rasp3b", 1, MOST_CYCLES), ("rasp3b", 4, SOME_CYCLES), ("rasp3b32", 4, FEW_CYCLES)]
)
def test_kernels_keep_the_cycles_of_their_records(name, threads, most, models, records, tmp_path: Path):
    target = targets.load(name)
    changed = []
    for task in extract_tasks(models, target, [threads]):
        best = records.best(task.key, target, threads)
        assert best.threads == threads, f"{task.name} has no record of its own"
        expected = best.value
        # Cycles of another timing model compare with nothing; scripts/tune_committed renews the records.
        if expected <= most and not best.superseded:
            cycles = _cycles(task, records, tmp_path / "model.so")
            if abs(cycles / expected - 1) > (APART if threads == 1 else APART_ON_SEVERAL):
                changed.append(f"{task.name}: {cycles:,.0f} cycles, {expected:,.0f} recorded")
    assert not changed, "\n".join(changed)


def test_cycles_do_not_depend_on_where_the_stack_lies(models, records, tmp_path: Path):
    """The length of the library's path moves the stack of whoever loads it."""
    task = max(
        (
            task
            for task in extract_tasks(models, targets.load("rasp3b"))
            if "winograd" in str(_best_knobs(task, records))
        ),
        key=lambda task: task.workload.macs,
    )
    library = tmp_path / "model.so"
    build_kernel_library(task.workload, _best_knobs(task, records), task.target, library)
    cycles = []
    for length in (1, 200, 255):
        folder = tmp_path / ("x" * length) / ("y" * length) / ("z" * length)
        folder.mkdir(parents=True)
        shutil.copy(library, folder)
        cycles.append(measure_once(Machine(task.target), folder / library.name, {}, folder)["value"])
    assert max(cycles) <= 1.005 * min(cycles), cycles


def _best_knobs(task: Task, records: Records) -> Mapping[str, Any]:
    return records.best(task.key, task.target).knobs


def _cycles(task: Task, records: Records, library: Path) -> float:
    best = records.best(task.key, task.target, task.threads)
    build_kernel_library(task.workload, best.knobs, task.target, library, task.threads)
    return LocalBoard(task.target).measure(library, Request(task.threads)).value
