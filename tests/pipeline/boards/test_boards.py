"""Boards behind a tracker: measuring, and everything that boards do wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline.boards import farm as farms
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.board import KernelFailed, LocalBoard, Request, TrackerBoard
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.boards.session import Relay, Session
from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards
from bitkiln.pipeline.boards.tracker import NoBoard, TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.device.board_wire import new_secret
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.tune.sample import sample_kernel

RASP3B = targets.load("rasp3b")


@pytest.fixture
def board(farm) -> TrackerBoard:
    """A board of the farm."""
    address, key = farm
    return TrackerBoard(TrackerClient(address), key, wait=60)


def until(condition, seconds: float = 30.0) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_identity_says_what_measures(board):
    identity = board.identity()
    assert identity["kind"] == "simulated"
    assert identity["measured_by"].startswith("simulated Cortex-A53, 1 core, model v")
    assert identity["cores"] == 4
    assert identity["simulator"]["mhz"] == 1200
    assert identity["machine"] == "aarch64"
    assert "load" in board.health()


def test_measurement_in_cycles_and_outputs(board, kernels):
    x = b"\0\0\x80\x3f" * 1024  # 1.0f
    found = board.measure(kernels["good"], Request(outputs=True), {"x": x})
    assert (found.unit, found.kind, found.clock_mhz) == ("cycles", "simulated", 1200)
    assert found.outputs[0].data == b"\0\0\0\x40" * 1024  # 2.0f
    assert found.seconds == pytest.approx(found.value / 1.2e9)
    assert found.complete
    assert sum(found.report["where"].values()) == pytest.approx(found.value, abs=2)
    again = board.measure(kernels["good"], Request(outputs=True), {"x": x}, known={found.outputs[0].sha256})
    assert again.outputs[0].data is None


def test_cycles_are_the_same_directly_and_over_the_tracker(board, kernels):
    direct = LocalBoard(RASP3B).measure(kernels["slow"], Request())
    remote = board.measure(kernels["slow"], Request())
    by_step = board.measure(kernels["slow"], Request(per_step=True))
    assert direct.value == pytest.approx(remote.value, rel=0.005)
    assert by_step.value == pytest.approx(remote.value, rel=0.005)
    assert [row["name"] for row in by_step.steps] == ["double"]
    assert direct.measured_by == remote.measured_by


def test_cold_caches_cost_more(board, kernels):
    warm = board.measure(kernels["good"], Request())
    cold = board.measure(kernels["good"], Request(cold=True))
    assert cold.value > 1.2 * warm.value


def test_a_clock_of_another_target(kernels):
    slow = LocalBoard(targets.load("rasp3b-700")).measure(kernels["good"], Request())
    assert slow.clock_mhz == 700
    assert "700 MHz" in slow.measured_by


def test_emulated_time_is_labelled(kernels):
    found = LocalBoard(RASP3B, timing=False).measure(kernels["good"], Request())
    assert (found.unit, found.kind, found.clock_mhz) == ("seconds", "emulated", None)
    assert "not a Cortex-A53" in found.measured_by
    assert found.cycles is None


@pytest.mark.parametrize(
    ("kernel", "request_", "status"),
    [
        ("crash", Request(), "crashed"),
        ("hang", Request(limit_seconds=1), "timeout"),
        ("slow", Request(limit_cycles=1000), "stopped"),
    ],
)
def test_a_kernel_that_fails_takes_nothing_with_it(board, kernels, kernel, request_, status):
    with pytest.raises(KernelFailed) as caught:
        board.measure(kernels[kernel], request_)
    assert caught.value.status == status
    assert board.measure(kernels["good"], Request()).value > 0


def test_a_library_that_does_not_load_is_an_error(board, tmp_path):
    (tmp_path / "bad.so").write_bytes(b"no library")
    with pytest.raises(KernelFailed, match="not a shared library"):
        board.measure(tmp_path / "bad.so", Request())


def test_boards_are_shared(board, kernels):
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda _: board.measure(kernels["good"], Request()).value, range(10)))
    assert max(found) <= 1.005 * min(found)


def test_a_session_that_outlives_its_time_is_ended(farm, kernels):
    address, key = farm
    with Session(TrackerClient(address), key, seconds=1, wait=60) as session:
        session.upload("model.so", kernels["hang"])
        start = time.monotonic()
        with pytest.raises(BoardError, match="session"):
            session.call("bitkiln.measure", "model.so", "{}")
        assert time.monotonic() - start < 10


def test_a_board_that_never_answers_is_given_up():
    """A board that takes our session and then goes silent, as behind a network that broke."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        relay = Relay(Address("127.0.0.1", silent.getsockname()[1]), 0.5)
        with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as client:
            client.sendall(b"x")
            assert client.recv(1) == b""
        assert relay.expired


def test_list_and_its_table(farm, capsys):
    address, key = farm
    rows = farms.list_boards(str(address))
    (row,) = [row for row in rows if row["key"] == key]
    assert row["count"] == 2
    farms.print_boards(rows, Console(width=200))
    assert key in capsys.readouterr().out


def test_unreachable_tracker_and_unknown_key(farm):
    address, _ = farm
    with pytest.raises(NoBoard, match="no tracker at"):
        TrackerBoard(TrackerClient(Address("127.0.0.1", 1)), "any").identity()
    with pytest.raises(NoBoard, match="no board with the key 'rasp9'"):
        TrackerBoard(TrackerClient(address), "rasp9").identity()
    with pytest.raises(BoardError, match="HOST:PORT"):
        Address.parse("localhost")


def test_something_else_at_the_tracker_s_address():
    other = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.1 400"), daemon=True).start()
    with pytest.raises(NoBoard, match="is no RPC tracker"):
        TrackerClient(Address("127.0.0.1", other.getsockname()[1])).boards()
    other.close()


def test_no_free_board_within_the_wait(farm):
    address, key = farm
    client = TrackerClient(address)
    with (
        Session(client, key, 120, 120),
        Session(client, key, 120, 120),
        pytest.raises(NoBoard, match="became free within 1 s"),
    ):
        client.request(key, wait=1)


def test_killed_boards_and_trackers_come_back(kernels):
    tracker = TrackerProcess(secret=new_secret())
    try:
        client = TrackerClient(tracker.address)
        with SimulatedBoards(Machine(RASP3B), tracker.address, "phoenix", 1) as farm:
            board = TrackerBoard(client, "phoenix", wait=60)
            hanging = ThreadPoolExecutor(1).submit(board.measure, kernels["hang"], Request(limit_seconds=60))
            until(lambda: client.require("phoenix").free == 0)
            time.sleep(0.5)
            os.kill(farm.boards[0].process.pid, signal.SIGKILL)
            with pytest.raises(BoardError, match="phoenix"):
                hanging.result(timeout=20)
            until(lambda: any(found.free for found in client.boards() if found.key == "phoenix"))
            assert board.measure(kernels["good"], Request()).value > 0

            killed = tracker.pid
            os.kill(killed, signal.SIGKILL)
            until(lambda: tracker.pid != killed)

            def registered() -> bool:
                try:
                    return client.require("phoenix").free == 1
                except NoBoard:
                    return False

            until(registered)
            assert board.measure(kernels["good"], Request()).value > 0
    finally:
        tracker.stop()


def test_a_farm_ends_with_whoever_started_it():
    code = "import time; from bitkiln import targets; from bitkiln.pipeline.boards.farm import simulated_farm\n"
    code += "from bitkiln.pipeline.boards.access import user_secret; rasp3b = targets.load('rasp3b')\n"
    code += "with simulated_farm(rasp3b, 1, secret=user_secret()) as (address, key): print(address, flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    address = Address.parse(process.stdout.readline().strip())
    (server,) = TrackerClient(address).require("rasp3b").addresses
    process.kill()
    process.communicate(timeout=10)

    def gone(where: Address) -> bool:
        try:
            socket.create_connection((where.host, where.port), timeout=1).close()
            return False
        except OSError:
            return True

    until(lambda: gone(address) and gone(Address.bare(server)), 10)


def test_a_32_bit_board_measures_over_the_tracker():
    target = targets.load("rasp3b32")
    with simulated_farm(target, 1, timing=False) as (tracker, key), sample_kernel(target) as kernel:
        measured = TrackerBoard(TrackerClient(tracker), key).measure(kernel.library, Request(), kernel.inputs())
    assert measured.kind == "emulated"
    assert measured.value > 0


def test_a_simulated_32_bit_board_measures_the_same_cycles_twice():
    target = targets.load("rasp3b32")
    with simulated_farm(target, 1) as (tracker, key), sample_kernel(target) as kernel:
        board = TrackerBoard(TrackerClient(tracker), key)
        first, second = (board.measure(kernel.library, Request(), kernel.inputs()) for _ in range(2))
    assert first.kind == "simulated"
    assert first.value == second.value > 0


def test_hanging_up_cuts_the_calls_of_one_board_alone(farm, kernels):
    """The last test here: the board goes on for the rest of the time that it was given."""
    address, key = farm
    hung, other = (TrackerBoard(TrackerClient(address), key, wait=60) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(hung.measure, kernels["hang"], Request(limit_seconds=300))
        while not hung._lines._open and not lost.done():
            time.sleep(0.02)
        other.hang_up()
        with pytest.raises(BoardError):
            other.identity()
        assert not lost.done()
        hung.hang_up()
        with pytest.raises(BoardError):
            lost.result(60)
