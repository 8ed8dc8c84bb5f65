"""What others on this machine or network may try with boards and trackers, and what rogue ones answer."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from bitkiln.pipeline.boards import access
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.board import Request, TrackerBoard
from bitkiln.pipeline.boards.farm import list_boards
from bitkiln.pipeline.boards.session import Relay, Session
from bitkiln.pipeline.boards.tracker import MAGIC, NoBoard, Offer, TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.device import board_wire as wire
from bitkiln.pipeline.errors import BoardError


def board_of(farm: tuple[Address, str]) -> Address:
    """Where a board of the farm listens."""
    address, key = farm
    return Address.bare(TrackerClient(address).require(key).addresses[0])


def connect(where: Address) -> socket.socket:
    return socket.create_connection((where.host, where.port), timeout=10)


def hangs_up(connection: socket.socket, seconds: float = 10.0) -> bool:
    """Whether the other end closes the connection, whatever it says before."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


# --- Strangers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", [None, wire.new_secret()], ids=["none", "another"])
def test_without_the_secret_there_is_no_tracker_and_no_board(farm, theirs):
    address, _ = farm
    stranger = Address(address.host, address.port, theirs)
    with pytest.raises(NoBoard):
        TrackerClient(stranger).boards()
    with pytest.raises(NoBoard):
        TrackerClient(stranger).request("farm", 1)
    board = board_of(farm)
    with connect(board) as connection:
        connection.sendall(struct.pack("<ii", 0xFF271, 5) + b"hello")
        assert hangs_up(connection)
    if theirs:
        with pytest.raises(NoBoard, match="no board of yours"):
            Relay(Address(board.host, board.port, theirs), 5)


def test_anybody_may_ask_what_a_board_is(farm):
    with connect(board_of(farm)) as connection:
        connection.sendall(wire.IDENTIFY)
        identity = json.loads(wire.receive_message(connection, 1 << 16, time.monotonic() + 10))
    assert identity["kind"] == "simulated"


def test_a_board_without_a_secret_serves_nobody():
    from bitkiln import targets
    from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards

    tracker = TrackerProcess()
    try:
        machine = Machine(targets.load("rasp3b"), timing=False)
        boards = SimulatedBoards(machine, tracker.address, "silent", 1)
        boards.boards[0]._command.remove("--open")
        with boards, pytest.raises(NoBoard, match="does not take our session"):
            Session(TrackerClient(tracker.address), "silent", 10, 3)
    finally:
        tracker.stop()


def test_a_board_s_files_are_those_of_the_session(farm, tmp_path):
    address, key = farm
    (tmp_path / "private").write_text("private")
    with Session(TrackerClient(address), key, 60, 60) as session:
        session.upload("mine", b"mine")
        assert session.download("mine") == b"mine"
        for path in (str(tmp_path / "private"), "../x", "a/../../x", "/etc/passwd", "", "."):
            with pytest.raises(BoardError):
                session.upload(path, b"written")
        for path in (str(tmp_path / "private"), "/etc/passwd", "../secret"):
            with pytest.raises(BoardError):
                session.download(path)
        request = json.dumps({"inputs": {"x": str(tmp_path / "private")}})
        with pytest.raises(BoardError, match="session's folder"):
            session.call("bitkiln.measure", "mine", request)
    assert (tmp_path / "private").read_text() == "private"


def test_strangers_that_are_slow_silent_or_talk_garbage_delay_nobody(farm, kernels):
    address, key = farm
    places = [board_of(farm), address]
    idle = [connect(place) for place in places for _ in range(80)]
    for place in places:
        for data in (os.urandom(300), wire.PROVE, wire.PROVE + bytes(10), struct.pack("<ii", 0xFF271, 4000), MAGIC):
            idle.append(connect(place))
            idle[-1].sendall(data)
    start = time.monotonic()
    assert TrackerBoard(TrackerClient(address), key, 60).measure(kernels["good"], Request()).value > 0
    taken = time.monotonic() - start
    assert all(hangs_up(connection) for connection in idle), "each has but so much time"
    for connection in idle:
        connection.close()
    assert taken < 30


def test_the_secret_is_found_where_it_should_be(monkeypatch, tmp_path):
    monkeypatch.setenv(access.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BoardError, match=r"none: there is no secret .*insecure://"):
        Address.parse("pi-lab:9190")
    assert Address.parse("insecure://pi-lab:9190").secret is None
    made = access.user_secret(create=True)
    assert Address.parse("[::1]:9190") == Address("::1", 9190)
    assert Address.parse("[::1]:9190").secret == made
    assert made.decode() not in repr(Address.parse("pi-lab:9190"))
    for text in ("::1:9190", "pi-lab", "pi-lab:99999", "pi-lab:-1", ":9190", "[::1:9190", "pi:²"):
        with pytest.raises(BoardError, match="HOST:PORT"):
            Address.parse(text)
    (tmp_path / "none").chmod(0o644)
    with pytest.raises(BoardError, match="others can read"):
        Address.parse("pi-lab:9190")


# --- Rogue trackers and boards -----------------------------------------------------------------------------------------------


def framed(value: object) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<i", len(data)) + data


@contextmanager
def rogue(answer: Callable[[socket.socket], object]) -> Iterator[Address]:
    """A tracker that greets as one and then does as it likes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.sendall(connection.recv(4))
                    connection.recv(1 << 10)
                    answer(connection)
                    connection.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Address("127.0.0.1", server.getsockname()[1])
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def summary(**changes: object) -> bytes:
    server = {"key": "server:k", "addr": ["h", 1]}
    return framed([0, {"server_info": [{**server, **changes}], "queue_info": {}}])


ANSWERS = {
    "negative size": struct.pack("<i", -5),
    "huge size": struct.pack("<i", 2**31 - 1) + b"x" * 100_000,
    "no json": struct.pack("<i", 5) + b"hello",
    "bad utf-8": struct.pack("<i", 4) + b'"\xff\xfe"',
    "no fields": framed([0, {}]),
    "short": framed([0]),
    "types": framed([0, {"server_info": [{"key": 5, "addr": None}], "queue_info": []}]),
    "deep": struct.pack("<i", 100_000) + b"[" * 100_000,
    "escape": summary(key="server:\x1b[2J\x1b]0;gone\x07"),
    "escape in an address": summary(addr=["\x1b[2J", 1]),
    "port": summary(addr=["h", 10**30]),
    "nan": struct.pack("<i", 8) + b"[0, NaN]",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_tracker_s_nonsense_is_one_line(name):
    with rogue(lambda connection: connection.sendall(ANSWERS[name])) as address, pytest.raises(NoBoard) as caught:
        TrackerClient(address).boards()
    assert str(address) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_tracker_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr("bitkiln.pipeline.boards.tracker.PATIENCE", 1.0)

    def drip(connection: socket.socket) -> None:
        connection.sendall(struct.pack("<i", 1000))
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.1)

    start = time.monotonic()
    with rogue(drip) as address, pytest.raises(NoBoard, match="no answer in 1 s"):
        TrackerClient(address).boards()
    assert time.monotonic() - start < 5


def test_markup_in_a_key_is_text():
    with rogue(lambda connection: connection.sendall(summary(key="server:a[/b][red]"))) as address:
        done = subprocess.run(
            [sys.executable, "-m", "bitkiln", "boards", "list", "--tracker", f"insecure://{address}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert "a[/b][red]" in done.stdout


# --- Boards that come and go -------------------------------------------------------------------------------------------------


def proved(bare: socket.socket, tracker: Address) -> wire.Signed:
    """The signed connection to ``tracker``, opened."""
    deadline = time.monotonic() + 10
    assert tracker.secret is not None
    connection = wire.prove(bare, tracker.secret, b"tracker", deadline)
    connection.sendall(MAGIC)
    assert wire.receive(connection, 4, deadline) == MAGIC
    return connection


def register(tracker: Address, key: str, where: tuple[str, int]) -> socket.socket:
    """A connection on which a board has registered as being at ``where``."""
    deadline = time.monotonic() + 10
    bare = connect(tracker)
    connection = proved(bare, tracker)
    for message in ([5, {"key": f"server:{key}", "addr": where}], [3, key, [where[1], f"{key}:0.5"], where[0]]):
        wire.send_json(connection, message, deadline)
        wire.receive_message(connection, 100, deadline)
    return bare


@pytest.fixture(scope="module")
def tracker(secret: bytes) -> Iterator[Address]:
    process = TrackerProcess(secret=secret)
    yield process.address
    process.stop()


def test_a_board_that_comes_back_has_no_ghost(tracker):
    with register(tracker, "pi", ("10.0.0.7", 1)), register(tracker, "pi", ("10.0.0.8", 1)):
        assert TrackerClient(tracker).require("pi").count == 2
        with register(tracker, "pi", ("10.0.0.7", 1)):  # After a power cut: the old connection hangs.
            (row,) = [row for row in list_boards(str(tracker)) if row["key"] == "pi"]
            assert (row["count"], row["free"]) == (2, 2)


def test_boards_at_ipv6_addresses_are_spelled_in_brackets(tracker):
    with register(tracker, "pi6", ("fd00::7", 9090)):
        assert TrackerClient(tracker).require("pi6").addresses == ("[fd00::7]:9090",)


@pytest.mark.parametrize("message", [[], {}, None, [4], [3, "k"], [3, "k", ["x", 1], None], [99], [5, {"key": 1}], "x"])
def test_a_tracker_hangs_up_on_nonsense_and_lives(tracker, message):
    connection = connect(tracker)
    wire.send_json(proved(connection, tracker), message, time.monotonic() + 10)
    assert hangs_up(connection)
    assert not [found for found in TrackerClient(tracker).boards() if found.key == "k"]


def test_whoever_took_the_trackers_port_is_pointed_out():
    """He could hand on to the real tracker what he hears."""
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        command = [sys.executable, "-m", "bitkiln", "boards", "tracker", "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            warning, told = process.stdout.readline(), process.stdout.readline()
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
    assert "warning" in warning and f"127.0.0.1:{port}" in warning
    assert "tracker at 127.0.0.1:" in told and f":{port};" not in told


# --- Somebody on the way -----------------------------------------------------------------------------------------------------


class Between:
    """Listens where a tracker or a board is believed to be, and hands on what he hears; ``alter`` may change it.

    ``alter`` is told the direction (whether from the client), how many bytes went that way before, and what comes.
    """

    def __init__(self, real: Address, alter: Callable[[bool, int, bytes], bytes]) -> None:
        self._real, self._alter = real, alter
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], real.secret)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                real = socket.create_connection((self._real.host, self._real.port), 10)
                for ends in ((client, real, True), (real, client, False)):
                    threading.Thread(target=self._hand_on, args=ends, daemon=True).start()

    def _hand_on(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(self._alter(from_client, passed, data))
                passed += len(data)
        for end in (source, sink):
            with suppress(OSError):  # The other direction did so.
                end.shutdown(socket.SHUT_RDWR)


#: Bytes of the proof, in both directions.
PROOF = {True: 4 + 2 * 32, False: 1 + 2 * 32 + 1}


def flipped(from_client: bool, passed: int, data: bytes) -> bytes:
    """The last byte of what the server says behind the proof is another."""
    behind = not from_client and passed + len(data) > PROOF[False]
    return data[:-1] + bytes([data[-1] ^ 1]) if behind else data


def doubled(from_client: bool, passed: int, data: bytes) -> bytes:
    """What the client says behind the proof arrives twice."""
    return 2 * data if from_client and passed >= PROOF[True] else data


def added(from_client: bool, passed: int, data: bytes) -> bytes:
    """Behind what the client says comes a message of ours."""
    return data + b"\x0c" + bytes(50) if from_client and passed >= PROOF[True] else data


def unchanged(from_client: bool, passed: int, data: bytes) -> bytes:
    return data


@pytest.mark.parametrize("alter", [flipped, doubled, added])
def test_a_tracker_whose_words_are_changed_on_the_way_is_not_believed(tracker, alter):
    honest, liar = Between(tracker, unchanged), Between(tracker, alter)
    with register(tracker, "pi", ("10.0.0.7", 1)):
        assert TrackerClient(honest.address).require("pi").count == 1
        with pytest.raises(NoBoard):
            TrackerClient(liar.address).require("pi")
    honest.close()
    liar.close()


@pytest.mark.parametrize("alter", [unchanged, flipped, doubled, added])
def test_a_session_that_is_changed_on_the_way_ends(farm, alter, monkeypatch):
    """Whoever stands between may look on; what he says instead never reaches TVM's RPC."""
    address, key = farm
    client = TrackerClient(address)
    offer, between = client.request, []

    def altered(key: str, wait: float) -> Offer:
        found = offer(key, wait)
        between.append(Between(found.address, alter))
        return Offer(between[-1].address, found.secret)

    monkeypatch.setattr(client, "request", altered)

    def converse() -> bytes:
        with Session(client, key, 30, 60) as session:
            session.upload("x", bytes(200_000))
            return session.download("x")

    if alter is unchanged:
        assert converse() == bytes(200_000)
    else:
        with pytest.raises(BoardError) as caught:
            converse()
        assert str(caught.value).isprintable()
    for each in between:
        each.close()
