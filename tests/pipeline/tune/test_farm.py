"""A farm in which not every board is what it should be: a simulated one and an emulated one under one key."""

from __future__ import annotations

from contextlib import ExitStack

from bitkiln import targets
from bitkiln.pipeline.boards import farm
from bitkiln.pipeline.boards.board import Request, TrackerBoard
from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.tune.builder import Builder
from bitkiln.pipeline.tune.farm import CheckedBoards
from bitkiln.pipeline.tune.sample import sample_task

RASP3B = targets.load("rasp3b")


def test_the_board_that_does_not_fit_is_set_aside_and_the_other_measures(monkeypatch, tmp_path, secret) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    said: list[str] = []
    builder = Builder(workers=1)
    try:
        with ExitStack() as stack:
            address, key = stack.enter_context(farm.simulated_farm(RASP3B, 1, key="mixed", secret=secret))
            stack.enter_context(SimulatedBoards(Machine(RASP3B, timing=False), address, key, 1))
            boards = CheckedBoards(TrackerBoard(TrackerClient(address), key), RASP3B, builder, said.append)
            fits = boards.identity()
            task = sample_task(RASP3B)
            artifact = builder.build(task.workload, task.default, RASP3B)
            found = [boards.measure(artifact.library, Request(), artifact.inputs()) for _ in range(3)]
            rows = farm.list_boards(str(address))
    finally:
        builder.close()
    assert [each.kind for each in found] == ["simulated"] * 3
    assert len({each.value for each in found}) == 1
    assert fits["kind"] == "simulated"
    assert said and all("emulated" in line for line in said if "set aside" in line)
    (row,) = rows
    assert row["count"] == 2
    states = {member["board"].split(",")[0]: member["state"] for member in row["members"]}
    assert states["simulated Cortex-A53"] in ("free", "busy")
