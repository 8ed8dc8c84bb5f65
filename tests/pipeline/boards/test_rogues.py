"""Rogue boards end to end: a real tracker, a real session, false answers. Each is one line that names the board."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitkiln.pipeline.boards import session
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.board import Request, TrackerBoard
from bitkiln.pipeline.boards.session import Relay
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.text import printable
from tests import rogue_board


@pytest.fixture(scope="module")
def rogue(secret: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackerBoard]:
    folder = tmp_path_factory.mktemp("rogue")
    tracker = TrackerProcess(secret=secret)
    shared = folder / "secret"
    shared.touch(mode=0o600)
    shared.write_bytes(secret)
    options = ["--tracker", str(tracker.address), "--key", "rogue", "--port", "0", "--secret", str(shared)]
    command = [sys.executable, str(Path(rogue_board.__file__)), *options, "--stop-with-stdin"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    board = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=folder)
    try:
        client = TrackerClient(tracker.address)
        deadline = time.monotonic() + 120
        while not any(found.key == "rogue" and found.free for found in client.boards()):
            assert time.monotonic() < deadline and board.poll() is None, "it does not register"
            time.sleep(0.1)
        yield TrackerBoard(client, "rogue", wait=120)
    finally:
        board.kill()
        board.wait()
        tracker.stop()


def named(lie: str, folder: Path) -> Path:
    (folder / "library").write_text(lie)
    return folder / "library"


def test_one_that_does_not_lie_is_believed(rogue: TrackerBoard, tmp_path: Path) -> None:
    found = rogue.measure(named("the truth", tmp_path), Request(outputs=True))
    assert found.value == 120000 and found.outputs[0].data == rogue_board.DATA


@pytest.mark.parametrize("lie", [*rogue_board.LIES, "leaves"])
def test_each_lie_is_one_line(rogue: TrackerBoard, tmp_path: Path, lie: str) -> None:
    with pytest.raises(BoardError) as caught:
        rogue.measure(named(lie, tmp_path), Request(outputs=True))
    text = str(caught.value)
    assert "rogue at 127.0.0.1" in text or lie == "a failure"
    assert text == printable(text) and len(text) < 2500
    # The next session is none the worse.
    assert rogue.measure(named("the truth", tmp_path), Request(outputs=True)).value == 120000


def test_a_board_that_sends_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_BYTES", 1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def flood() -> None:
            board, _ = listener.accept()
            with board:
                try:
                    while True:
                        board.sendall(bytes(1 << 16))
                except OSError:
                    return

        threading.Thread(target=flood, daemon=True).start()
        relay = Relay(Address("127.0.0.1", listener.getsockname()[1], None), 600)
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as client:
            received = 0
            while data := client.recv(1 << 18):
                received += len(data)
        relay.close()
    assert relay.flooded and received <= 1 << 21
