"""Setting up a board over ssh: a real sshd on loopback, whose Python is an ARM one under qemu and which has no systemd."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bitkiln.pipeline.boards import setup as board_setup
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.setup import FOLDER, plan, probe
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.boards.tracker_server import TrackerProcess
from bitkiln.pipeline.errors import BoardError
from tests.ssh_board import Device

BITKILN = [sys.executable, "-m", "bitkiln"]
SCRIPT = Path(__file__).parents[3] / "scripts" / "setup_board"
PI = {"bits": 64, "machine": "aarch64", "python": [3, 9], "glibc": "2.31", "home": "/home/pi", "ssh": []}


@pytest.fixture(scope="module")
def tracker(secret: bytes) -> Iterator[TrackerProcess]:
    process = TrackerProcess(secret=secret)
    yield process
    process.stop()


@pytest.fixture
def clean(device: Device) -> Iterator[Device]:
    """The board; whatever was started there is stopped at the end."""
    yield device
    command(device, "--remove")


def command(device: Device, *options: str) -> subprocess.CompletedProcess[str]:
    """``bitkiln boards setup`` of the board."""
    argv = [*BITKILN, "boards", "setup", device.address, "--port", str(device.port), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


def test_a_board_joins_measures_and_leaves(clean, tracker):
    joining = ("--tracker", str(tracker.address), "--key", "pi")
    done = command(clean, *joining)
    assert done.returncode == 0, done.stderr
    assert "aarch64, 64 bits, Python 3.11, glibc 2.36" in done.stdout
    assert "background process (no systemd" in done.stdout
    assert "round trip through" in done.stdout
    assert " ms" in done.stdout.split("channels:")[1]
    assert f"ready: tune --tracker {tracker.address} --key pi" in done.stdout
    folder = clean.home / FOLDER
    there = {path.name for path in folder.iterdir()}
    assert there - {"__pycache__"} == {*board_setup.PROGRAMS, "start", "pid", "log", "secret"}
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert tracker.address.secret.decode() not in (folder / "start").read_text()

    # Again, as after an update: the old server makes way.
    done = command(clean, *joining)
    assert done.returncode == 0, done.stderr
    assert TrackerClient(tracker.address).require("pi").count == 1

    assert command(clean, "--remove").returncode == 0
    assert not folder.exists()


def test_a_tunnel_keeps_everything_on_loopback_and_ends_with_us(clean, tracker):
    key = "tunnelled"
    argv = [*BITKILN, "boards", "setup", clean.address, "--port", str(clean.port), "--tunnel"]
    argv += ["--tracker", str(tracker.address), "--key", key]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("holding the tunnel"):
                break
        else:
            pytest.fail("".join(lines))
        assert any(line.startswith("ready: tune") for line in lines)
        (address,) = TrackerClient(tracker.address).require(key).addresses
        assert address.startswith("127.0.0.1:")
        assert "--host 127.0.0.1" in (clean.home / FOLDER / "start").read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("ssh" in child.name() for child in children)
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    gone, _ = psutil.wait_procs(children, 5)
    assert len(gone) == len(children)


def test_a_tracker_that_is_not_there_is_known_before_anything_is_copied(device):
    done = command(device, "--tracker", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no tracker at 127.0.0.1:1" in done.stderr
    assert list(device.home.iterdir()) == []


def test_a_board_that_cannot_be_reached_is_one_line(device, tracker):
    argv = [*BITKILN, "boards", "setup", "nobody@127.0.0.1", "--port", "1", "--tracker", str(tracker.address)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


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
        ({"bits": 32, "machine": "armv6l"}, "armv6l"),
        ({"bits": 32, "machine": "armv7l", "armv7": True}, "ARMv7"),
        ({"machine": "x86_64"}, "x86_64, not an ARM board"),
        ({"python": [3, 7]}, "Python 3.7: 3.9 or later"),
        ({"glibc": "2.24"}, "glibc 2.24: 2.28 or later"),
    ],
)
def test_boards_that_will_not_do_are_told_why(facts, complaint):
    with pytest.raises(BoardError, match=complaint):
        probe(Answers(**facts))
    assert probe(Answers()) == PI


def test_a_board_in_a_network_listens_there():
    facts = {**PI, "ssh": ["10.0.0.2", "50000", "10.0.0.7", "22"]}
    way = plan(Remote("pi@lab"), facts, Address("10.0.0.2", 9190), "rasp3b", tunnel=False)
    assert "--host tracker" in " ".join(way.server), "the server listens where the tracker's network is"
    assert not way.forwards
    with pytest.raises(BoardError, match="--tunnel"):
        plan(Remote("pi@lab"), facts, Address("127.0.0.1", 9190), "rasp3b", tunnel=False)


def test_the_script_is_that_command():
    assert "boards setup" in SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run([*BITKILN, "boards", "setup", "--help"], capture_output=True, text=True)
    assert "--tunnel" in done.stdout
    assert "Example:" in done.stdout
