"""Farms in which not every board is what it should be, over a real tracker: simulated boards, an emulated one, sick ones."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline import schema
from bitkiln.pipeline.boards import farm, roster, simulated
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.board import Measurement, Request, TrackerBoard
from bitkiln.pipeline.boards.roster import Roster, standings_file
from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.tune.builder import Artifact, Builder
from bitkiln.pipeline.tune.farm import CheckedBoards
from bitkiln.pipeline.tune.sample import sample_task
from tests import sick_board
from tests.ssh_board import free_port

RASP3B = targets.load("rasp3b")
#: Seconds for what a loaded machine does at last.
PATIENCE = 300.0


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Builder]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    builder = Builder(workers=1)
    yield builder
    builder.close()


@pytest.fixture
def artifact(builder: Builder) -> Artifact:
    task = sample_task(RASP3B)
    return builder.build(task.workload, task.default, RASP3B)


def members(tracker: Address) -> dict[str, schema.TrackedBoard]:
    """The boards at a tracker by their addresses."""
    return {member["address"]: member for row in farm.list_boards(str(tracker)) for member in row["members"]}


def test_the_board_that_does_not_fit_is_set_aside_and_the_other_measures(
    builder: Builder, artifact: Artifact, secret: bytes
) -> None:
    said: list[str] = []
    with ExitStack() as stack:
        address, key = stack.enter_context(farm.simulated_farm(RASP3B, 1, key="mixed", secret=secret))
        stack.enter_context(SimulatedBoards(Machine(RASP3B, timing=False), address, key, 1))
        boards = CheckedBoards(TrackerBoard(TrackerClient(address), key), RASP3B, builder, said.append)
        fits = boards.identity()
        found = [boards.measure(artifact.library, Request(), artifact.inputs()) for _ in range(3)]
        rows = members(address)
    assert [each.kind for each in found] == ["simulated"] * 3
    assert len({each.value for each in found}) == 1
    assert fits["kind"] == "simulated"
    assert said and all("emulated" in line for line in said if "set aside" in line)
    assert len(rows) == 2
    states = {member["board"].split(",")[0]: member["state"] for member in rows.values()}
    assert states["simulated Cortex-A53"] in ("free", "busy")


@contextmanager
def sick(tracker: Address, key: str, folder: Path, sickness: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A board at a port of its own that is started again when it dies, as a service is: its address, and what heals it."""
    folder.mkdir()
    (folder / "sickness").write_text(sickness)
    (folder / "secret").touch(mode=0o600)
    (folder / "secret").write_bytes(tracker.secret or b"")
    port = free_port()
    arguments = ["--tracker", str(tracker), "--key", key, "--port", str(port), "--secret", str(folder / "secret")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simulated, "SERVER", Path(sick_board.__file__))
        command, environment = Machine(RASP3B).command([*arguments, "--stop-with-stdin"], folder / "report")
    environment = {**environment, "SICKNESS": str(folder / "sickness"), "TMPDIR": str(folder)}
    over = threading.Event()

    def serve() -> None:
        while not over.wait(0.2):
            with (folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=folder
                )
            while process.poll() is None and not over.wait(0.1):
                pass
            process.kill()
            process.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{port}", (folder / "sickness").unlink
    finally:
        over.set()
        thread.join(60)


@pytest.mark.kills
def test_sick_boards_are_set_aside_with_their_reasons_and_come_back(
    builder: Builder, artifact: Artifact, secret: bytes, tmp_path: Path
) -> None:
    said: list[str] = []
    now = [1000.0]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        tracker, key = stack.enter_context(farm.simulated_farm(RASP3B, 1, key="sick", secret=secret))
        names = ("throttled", "dies", "crashes")
        places = {name: stack.enter_context(sick(tracker, key, tmp_path / name, name)) for name in names}
        client = TrackerClient(tracker)
        wait_for(lambda: client.require(key).count == 4)
        boards = CheckedBoards(TrackerBoard(client, key), RASP3B, builder, said.append)
        # Who is set aside stays there until we say that the time is over, however loaded the machine is.
        boards.roster = Roster(said.append, lambda: now[0], standings_file())

        def measure(count: int) -> list[Measurement]:
            asked = [
                pool.submit(boards.measure, artifact.library, Request(outputs=True), artifact.inputs())
                for _ in range(count)
            ]
            return [each.result(PATIENCE) for each in asked]

        found = []
        wait_for(lambda: found.extend(measure(2)) or all(boards.roster.aside(place) for place, _ in places.values()))
        reasons = {name: boards.roster.aside(place) for name, (place, _) in places.items()}
        assert (
            "throttled" in reasons["throttled"] and "lost 3 times" in reasons["dies"] and "SIGILL" in reasons["crashes"]
        )
        # A board's fault is none of the kernel's: all were measured, on whatever board was well.
        assert len({each.value for each in found}) == 1 and all(each.complete for each in found)
        assert not any(each.health.get("throttled") for each in measure(2))
        wait_for(lambda: client.require(key).count == 4)
        rows = members(tracker)
        for name, (place, _) in places.items():
            assert rows[place]["state"] == "set aside" and rows[place]["aside"] == reasons[name]

        for _, heal in places.values():
            heal()
        now[0] += roster.LONGEST_ASIDE
        wait_for(lambda: measure(2) and not any(map(boards.roster.must_check, (place for place, _ in places.values()))))
        for name, (place, _) in places.items():
            assert any(f"{place} is back" in line for line in said), name
        rows = members(tracker)
        assert all(rows[place]["state"] in ("free", "busy") for place, _ in places.values())


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
