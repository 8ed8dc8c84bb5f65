"""The board's server: what it does by itself; test_boards.py has it at work behind a tracker."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.session import Session
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.device import board_server
from bitkiln.pipeline.device.board_server import in_child
from bitkiln.pipeline.errors import SetupError

SERVER = Path(board_server.__file__)


def test_it_needs_nothing_but_the_standard_library():
    code = f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); import board_server; print(sorted(sys.modules))"
    done = subprocess.run(["python3", "-S", "-I", "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "numpy" not in done.stdout
    assert "tvm" not in done.stdout


def test_it_is_written_for_python_3_9():
    ast.parse(SERVER.read_text(), feature_version=(3, 9))


def hang() -> dict:
    time.sleep(60)
    return {}


def test_a_trial_s_end_is_told_apart():
    assert in_child(lambda: {"status": "ok", "data": "x" * 200_000}, 10)["status"] == "ok"
    assert in_child(lambda: 1 / 0, 10)["message"].startswith("ZeroDivisionError")
    assert in_child(lambda: os.kill(os.getpid(), signal.SIGSEGV), 10) == {
        "status": "crashed",
        "message": "the kernel died of SIGSEGV",
    }
    assert in_child(lambda: os.kill(os.getpid(), signal.SIGXCPU), 10)["status"] == "stopped"
    assert in_child(lambda: os._exit(3), 10)["message"].endswith("status 3")
    assert in_child(lambda: os.closerange(3, 4096), 10)["status"] == "crashed"
    start = time.monotonic()
    assert in_child(hang, 0.3)["status"] == "timeout"
    assert in_child(lambda: os.closerange(3, 4096) or hang(), 0.3)["status"] == "timeout"
    assert time.monotonic() - start < 5


class OneStep:
    """A network that has been loaded, as far as a simulated trial looks at it."""

    threads, step_names, outputs = 1, ("a", "b"), ()

    def __init__(self, reports: Path, lines: bytes) -> None:
        self.reports, self.lines = reports, lines

    def run_marked(self, per_step: bool) -> None:
        with self.reports.open("ab") as file:
            file.write(self.lines if per_step else b"")


def simulated_trial(monkeypatch, folder: Path, report: object, lines: bytes = b"", **request: object) -> dict:
    """The answer of a simulated board whose simulator says ``report`` of the run, and appends ``lines`` to its reports."""
    answers = {board_server.IDENTIFY: {"model": "v2", "mhz": 1200, "cpus": 4}, board_server.READ: report}
    monkeypatch.setattr(board_server, "ask_simulator", lambda what, size=0: answers[what])
    trial = board_server.Trial.__new__(board_server.Trial)
    trial.board = board_server.Board(True, str(folder / "reports"))
    trial.request, trial.per_step = {"cold": True, **request}, bool(request.get("per_step"))
    trial.model = OneStep(folder / "reports", lines)
    return in_child(trial.measure, 20)


WHOLE = {"cycles": 5, "complete": True}
#: What comes of a simulator that was interrupted, ended, or short of memory or disk.
NO_REPORTS = (
    None,
    {},
    {"error": "no region ended yet", "size": 0},
    *({"cycles": x} for x in (None, "5", -5, 5.0, True, [5])),
)
NO_STEPS = (
    b"",
    b'{"cycles": 5}\n',
    b'{"cycles": 5}\n{"cyc',
    b"5\n5\n",
    b'{"cycles": 5}\n{}\n',
    b"\xff\n",
    b"[" * 100_000,
)


@pytest.mark.parametrize("report", NO_REPORTS, ids=str)
def test_a_simulator_without_cycles_is_the_board_s_fault(monkeypatch, tmp_path, report):
    assert simulated_trial(monkeypatch, tmp_path, WHOLE)["value"] == 5
    found = simulated_trial(monkeypatch, tmp_path, report)
    assert found["status"] == "unfit"
    assert "simulator" in found["message"]


@pytest.mark.parametrize("lines", NO_STEPS, ids=range(len(NO_STEPS)))
def test_steps_that_are_not_all_there_are_no_measurement(monkeypatch, tmp_path, lines):
    whole = simulated_trial(monkeypatch, tmp_path, WHOLE, b'{"cycles": 5}\n{"cycles": 6}\n', per_step=True)
    assert whole["value"] == 11
    assert simulated_trial(monkeypatch, tmp_path, WHOLE, lines, per_step=True)["status"] == "unfit"


def test_folders_of_killed_servers_are_swept(monkeypatch, tmp_path):
    monkeypatch.setattr(board_server.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = tmp_path / f"{board_server.FOLDER_PREFIX}{os.getpid()}-a"
    dead = tmp_path / f"{board_server.FOLDER_PREFIX}{2**22 + 1}-b"
    mine.mkdir()
    dead.mkdir()
    board_server.sweep_folders()
    assert mine.exists()
    assert not dead.exists()


def run(*arguments: str, code: str = "", target: str = "rasp3b") -> subprocess.CompletedProcess[str]:
    """board_server.py, or Python code beside it, in a target's userland without the timing model."""
    try:
        system = userland(targets.load(target))
    except SetupError as problem:
        pytest.skip(str(problem))
    program = ["-c", f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); {code}"] if code else [str(SERVER)]
    command = system.command(["python3", *program, *arguments])
    return subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("target", ["rasp3b", "rasp3b32"])
def test_the_clock_s_code_runs(target):
    done = run(code="import board_server; print(board_server.CycleLoop()._seconds(4000))", target=target)
    assert float(done.stdout) > 0, done.stderr


@pytest.mark.parametrize(("seconds", "mhz"), [(2e6 / 1.2e9, 1200), (1e-5, None), (0.0, None), (1.0, None)])
def test_a_clock_that_no_core_has_is_not_known(monkeypatch, seconds, mhz):
    monkeypatch.setattr(board_server.CycleLoop, "_seconds", lambda self, rounds: seconds)
    loop = board_server.CycleLoop.__new__(board_server.CycleLoop)
    assert loop.mhz() == (mhz and pytest.approx(mhz))


def test_a_real_board_answers_in_seconds_and_the_clock_it_ran_at(kernels):
    # Not told that qemu runs it, it takes itself for a board: all of that path but the silicon.
    done = run("--measure", str(kernels["slow"]), "--request", '{"repeats": 4, "per_step": true}')
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["kind"], answer["unit"]) == ("ok", "board", "seconds")
    assert len(answer["samples"]) >= 4
    assert min(answer["samples"]) <= answer["value"] <= max(answer["samples"])
    assert answer["clock_mhz"] is None or answer["clock_mhz"] > 10, "an emulator on a busy machine may have none"
    assert answer["steps"][0]["name"] == "double"
    assert "load" in answer["health"]
    assert "Cortex-A53" in answer["measured_by"]


def test_identity_of_an_emulated_board():
    identity = json.loads(run("--identity", "--emulated").stdout)
    assert identity["kind"] == "emulated"
    assert identity["simulator"] is None


def test_bad_command_lines_are_explained():
    assert "--tracker HOST:PORT" in run().stderr
    assert "'nowhere' is not HOST:PORT" in run("--tracker", "nowhere").stderr


def greet(where: Address, key: str) -> int | None:
    """Open a session as TVM's client does; the answer's first word, or None when the board hangs up."""
    with socket.create_connection((where.host, where.port), timeout=10) as connection:
        connection.sendall(struct.pack("<ii", board_server.RPC_MAGIC, len(key)) + key.encode())
        try:
            answer = connection.recv(4)
        except ConnectionResetError:
            return None
        return struct.unpack("<i", answer)[0] if len(answer) == 4 else None


def test_uninvited_clients_are_refused(farm):
    address, key = farm
    client = TrackerClient(address)
    where = Address.bare(client.require(key).addresses[0])
    assert greet(where, f"client:{key}:0.123") is None, "it proves nothing"
    with socket.create_connection((where.host, where.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert connection.recv(4) == b""
    with Session(client, key, 10, 30) as session:
        assert session.call("bitkiln.identity")["kind"] == "simulated"


def test_a_board_given_to_a_client_that_never_comes_is_offered_again(farm):
    address, key = farm
    client = TrackerClient(address)
    offers = [client.request(key, 30), client.request(key, 30)]
    start = time.monotonic()
    offers.append(client.request(key, 30))
    assert time.monotonic() - start > 4, "patience with slow clients"
    assert len({offer.secret for offer in offers}) == 3


@pytest.mark.parametrize(
    ("samples", "agree"), [([1.0, 1.01, 1.02, 9.0], True), ([9.0, 1.03, 1.0, 1.01], False), ([1.0, 1.0], False)]
)
def test_runs_agree_when_the_three_fastest_are_within_two_percent(samples, agree):
    assert board_server._agree(samples) == agree
