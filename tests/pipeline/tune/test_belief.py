"""Answers that cannot be true, and boards that are not the target's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.answers import Measurement
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.tune.belief import compare_identity, doubt, floor_cycles
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import Conv2d

RASP3B = targets.load("rasp3b")
TASK = Task(Conv2d(56, 56, 64, 64, (3, 3), padding=(1, 1, 1, 1)), RASP3B)
DIRECT, WINOGRAD = {"algorithm": "direct"}, {"algorithm": "winograd 4x4"}
#: 56 * 56 * 64 * 64 * 9 MACs, 4 a cycle.
ROOF = 28_901_376


def simulated(cycles: float, **changes) -> Measurement:
    return Measurement("cycles", cycles, "simulated", "simulated, v2", 1200, **changes)


def real(seconds: float, mhz: float | None = 1200, cpu: str = "Cortex-A53") -> Measurement:
    return Measurement("seconds", seconds, "board", f"Pi, {cpu}", mhz, cpu=cpu)


def test_the_floor_is_that_of_the_algorithm():
    assert floor_cycles(TASK, DIRECT) == pytest.approx(ROOF)
    assert floor_cycles(TASK, WINOGRAD) == pytest.approx(ROOF / 4)  # 16 products for 36 outputs' worth of 144.
    assert floor_cycles(TASK, {"algorithm": "winograd 4x4 lean"}) == pytest.approx(ROOF / 4)
    assert floor_cycles(TASK, {"algorithm": "winograd 1x2"}) == pytest.approx(ROOF / 1.5)
    binary = Task(Conv2d(14, 14, 256, 256, (3, 3), binary=True), RASP3B)
    assert floor_cycles(binary, {}) == pytest.approx(binary.workload.macs / 42.67)


@pytest.mark.parametrize(
    ("knobs", "found", "threads", "word"),
    [
        (DIRECT, simulated(0.9 * ROOF), 1, "less than"),
        (DIRECT, simulated(1.0 * ROOF), 1, ""),
        (WINOGRAD, simulated(0.5 * ROOF), 1, ""),
        (WINOGRAD, simulated(0.2 * ROOF), 1, "less than"),
        (DIRECT, simulated(0.3 * ROOF), 4, ""),
        (DIRECT, real(1e-9), 1, "less than"),
        (DIRECT, real(1.02 * ROOF / 1.2e9), 1, ""),
        (DIRECT, real(0.5 * ROOF / 1.2e9, mhz=None), 1, "less than"),
        (DIRECT, real(1.0, mhz=3100), 1, "3100 MHz"),
        (DIRECT, real(1.0, cpu="Cortex-A72"), 1, "Cortex-A72"),
        (DIRECT, simulated(2 * ROOF, complete=False), 1, "incomplete"),
    ],
)
def test_what_cannot_be_true_is_doubted(knobs, found, threads, word):
    problem = doubt(replace(TASK, threads=threads), knobs, found)
    assert word in problem
    assert bool(problem) == bool(word)


def identity(**changes) -> dict:
    return {
        "kind": "board",
        "measured_by": "Pi, Cortex-A53",
        "cpu": "Cortex-A53",
        "max_mhz": 1200,
        "caches": {},
        **changes,
    }


def test_a_board_of_the_target_s_kind_is_taken():
    assert compare_identity(identity(), RASP3B) == ""
    assert compare_identity({"kind": "simulated", "measured_by": "m", "cpu": "Cortex-A53"}, RASP3B) == ""


@pytest.mark.parametrize("changes", [{"cpu": "Cortex-A72"}, {"cpu": ""}, {"kind": "emulated"}])
def test_another_cpu_is_refused_before_anything_is_measured(changes):
    with pytest.raises(BoardError, match="rasp3b"):
        compare_identity(identity(**changes), RASP3B)


def test_differences_are_worth_a_warning():
    assert "3000 MHz" in compare_identity(identity(max_mhz=3000), RASP3B)
    assert "L2 has 1024 KiB" in compare_identity(identity(caches={"l2_kib": 1024}), RASP3B)
