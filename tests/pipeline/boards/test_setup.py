"""Setting up a board over ssh: a real sshd on loopback, whose Python is an ARM one under qemu and which has no systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitkiln.pipeline.boards import setup as board_setup
from bitkiln.pipeline.boards.board import Measurement
from bitkiln.pipeline.boards.setup import FOLDER, plan, probe
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.boards.tracker import Address, TrackerClient, TrackerProcess
from bitkiln.pipeline.errors import BoardError
from tests.ssh_board import Device

SCRIPT = Path(__file__).parents[3] / "scripts" / "setup_board"
PI = {"bits": 64, "machine": "aarch64", "python": [3, 9], "glibc": "2.31", "home": "/home/pi", "ssh": []}


@pytest.fixture(scope="module")
def tracker() -> Iterator[TrackerProcess]:
    process = TrackerProcess()
    yield process
    process.stop()


@pytest.fixture
def clean(device: Device) -> Iterator[Device]:
    """The board; whatever was started there is stopped at the end."""
    yield device
    board_setup.main([device.address, "--port", str(device.port), "--remove"])


def arguments(device: Device, tracker: TrackerProcess, key: str) -> list[str]:
    return [device.address, "--port", str(device.port), "--tracker", str(tracker.address), "--key", key]


def test_a_board_joins_measures_and_leaves(clean, tracker, capsys, monkeypatch):
    assert board_setup.main(arguments(clean, tracker, "pi")) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "aarch64, Python 3.11, glibc 2.36" in text
    assert "background process (no systemd" in text
    assert "round trip through" in text
    assert " ms at " in text
    assert f"ready: tune --tracker {tracker.address} --key pi" in text
    folder = clean.home / FOLDER
    there = {path.name for path in folder.iterdir()}
    assert there - {"__pycache__"} == {
        "board_server.py",
        "libtvm_ffi.so",
        "libtvm_runtime.so",
        "runner.py",
        "start",
        "pid",
        "log",
    }

    # Again, as after an update: the old server makes way.
    monkeypatch.setattr(board_setup, "_measure", lambda session: Measurement("seconds", 1e-3, "board", "told", 1200))
    assert board_setup.main(arguments(clean, tracker, "pi")) == 0, capsys.readouterr().err
    assert TrackerClient(tracker.address).require("pi").count == 1

    assert board_setup.main([clean.address, "--port", str(clean.port), "--remove"]) == 0
    assert not folder.exists()


def test_a_tunnel_keeps_everything_on_loopback(clean, tracker):
    command = [sys.executable, "-u", "-m", "bitkiln.pipeline.boards.setup", *arguments(clean, tracker, "tunnelled")]
    process = subprocess.Popen([*command, "--tunnel"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("holding the tunnel"):
                break
        else:
            pytest.fail("".join(lines))
        assert any(line.startswith("ready: tune") for line in lines)
        (address,) = TrackerClient(tracker.address).require("tunnelled").addresses
        assert address.startswith("127.0.0.1:")
        assert "--host 127.0.0.1" in (clean.home / FOLDER / "start").read_text()
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_tracker_that_is_not_there_is_known_before_anything_is_copied(device, capsys):
    assert board_setup.main([device.address, "--port", str(device.port), "--tracker", "127.0.0.1:1"]) == 2
    assert "no tracker at 127.0.0.1:1" in capsys.readouterr().err
    assert list(device.home.iterdir()) == []


def test_a_board_that_cannot_be_reached_is_one_line(device, tracker, capsys):
    assert board_setup.main(["nobody@127.0.0.1", "--port", "1", "--tracker", str(tracker.address)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


class Answers:
    """A board that answers what the test says."""

    host = "pi@lab"

    def __init__(self, **facts) -> None:
        self.facts = {**PI, **facts}

    def run(self, command: str) -> str:
        import json

        return json.dumps(self.facts)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"bits": 32, "machine": "armv7l"}, "32-bit system"),
        ({"machine": "x86_64"}, "not a 64-bit ARM board"),
        ({"python": [3, 7]}, "Python 3.7: 3.9 or later"),
        ({"glibc": "2.24"}, "glibc 2.24: 2.27 or later"),
    ],
)
def test_boards_that_will_not_do_are_told_why(facts, complaint):
    with pytest.raises(BoardError, match=complaint):
        probe(Answers(**facts))
    assert probe(Answers()) == PI


def test_a_board_in_a_network_listens_where_it_was_reached():
    facts = {**PI, "ssh": ["10.0.0.2", "50000", "10.0.0.7", "22"]}
    way = plan(Remote("pi@lab"), facts, Address("10.0.0.2", 9190), "rasp3b", tunnel=False)
    assert way.found_at.host == "10.0.0.7"
    assert "--host 10.0.0.7" in " ".join(way.server)
    assert not way.forwards
    with pytest.raises(BoardError, match="--tunnel"):
        plan(Remote("pi@lab"), facts, Address("127.0.0.1", 9190), "rasp3b", tunnel=False)


def test_the_script_explains_itself():
    text = SCRIPT.read_text()
    assert "bitkiln.pipeline.boards.setup" in text
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(
        [sys.executable, "-m", "bitkiln.pipeline.boards.setup", "--help"], capture_output=True, text=True
    )
    assert "--tunnel" in done.stdout
    assert "example:" in done.stdout
