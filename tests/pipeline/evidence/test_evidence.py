"""Evidence of a board: the simulated one, which must give the model's own figures, alone and behind an sshd."""

from __future__ import annotations

import getpass
import json
import platform
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bitkiln import targets
from bitkiln.pipeline import evidence
from bitkiln.pipeline.boards.simulated import Machine
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.errors import BoardError, InputError
from bitkiln.pipeline.evidence.file import Evidence, read_evidence, write_evidence
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.profile import profile_bundle
from bitkiln.targets import Target
from bitkiln.targets.sim import evidence as program
from bitkiln.targets.sim import microbench
from bitkiln.targets.sim.build import qemu_command
from tests.ssh_board import Device, script

RASP3B = targets.load("rasp3b")


def quiet(text: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "evidence"
    program.build(path, RASP3B)
    return path


def test_sequences_take_what_the_model_says(built: Path) -> None:
    _, mhz, rows = evidence.read_part("facts", program.on_model(built, "facts", RASP3B), "sim")
    known = program.sequences()[1:]
    assert mhz == RASP3B.mhz
    assert [row.name for row in rows] == [fact.name for fact in known]
    assert [row.shot for row in rows] == microbench.run(known)
    # Neighbours outside of a loop's sequence share a cycle with its ends, no more.
    assert all(abs(row.loop - row.shot) < 4 for row in rows)


def wanted(toy: Model, toy_bundle: Bundle, *parts: str) -> evidence.Wanted:
    def build(model: Model, target: Target, folder: Path) -> Path:
        return toy_bundle.folder / "model.so"

    return evidence.Wanted([toy], build, parts)


@pytest.fixture
def here(toy: Model, toy_bundle: Bundle) -> Evidence:
    """What the simulated board of this machine says."""
    return evidence.measure("sim", wanted(toy, toy_bundle, "memory"), None, None, quiet)


@pytest.fixture
def simulated_device(device: Device, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host of ssh whose Python, and whose programs, run under the timing model: gives what to type after ssh."""
    python = device.log.parent / "bin" / "python3"
    former = python.read_text()
    command, _ = Machine(RASP3B).command([], Path("report"))
    server = next(index for index, word in enumerate(command) if word.endswith("board_server.py"))
    argv = shlex.join([*command[:server], "board_server.py", *command[server + 1 :]])
    script(python, f'case "$1" in board_server.py) shift; rm -f report; exec {argv} "$@";; esac\n{former}')

    def wrapped(path: Path, target: Target) -> None:
        emulator, _ = qemu_command({"cpu": RASP3B.cpu, "dram": RASP3B.dram}, [str(built)], options=["marks=1"])
        script(path, f'exec {shlex.join(emulator)} "$@"')

    monkeypatch.setattr(evidence.program, "build", wrapped)
    monkeypatch.setenv("BITKILN_SSH", f"ssh -F {device.log.parent}/ssh_config -p {device.port}")
    try:
        yield device.address
    finally:
        python.write_text(former)


def test_a_board_behind_ssh_gives_the_models_own_figures(
    here: Evidence, simulated_device: str, device: Device, toy: Model, toy_bundle: Bundle, tmp_path: Path
) -> None:
    found = evidence.measure(simulated_device, wanted(toy, toy_bundle, "memory"), None, None, quiet)
    assert found.timing == "simulator" and found.target == "rasp3b"
    assert [row.name for row in found.memory] == [row.name for row in here.memory]
    for there, own in zip(found.memory, here.memory, strict=True):
        # Its path's length moves the stack, which shifts what chases find in the caches.
        assert there.cycles == pytest.approx(own.cycles, rel=0.02), own.name
    assert [(each.name, each.threads, each.ms) for each in found.networks] == [
        (each.name, each.threads, pytest.approx(each.ms, rel=0.02)) for each in here.networks
    ]
    assert [each.threads for each in here.networks] == [1, 4]
    assert not list(device.home.iterdir()), "nothing is left on the board"
    _holds_no_names(found, tmp_path)


def _holds_no_names(found: Evidence, folder: Path) -> None:
    write_evidence(folder / "evidence.json", found)
    text = (folder / "evidence.json").read_text()
    for name in (platform.node(), socket.gethostname(), f'"{getpass.getuser()}', "127.0.0.1", str(Path.home())):
        assert name not in text
    assert read_evidence(folder / "evidence.json") == found


def test_a_profile_over_ssh_is_the_simulators(simulated_device: str, toy_bundle: Bundle) -> None:
    there, here = profile_bundle(toy_bundle.folder, simulated_device), profile_bundle(toy_bundle.folder)
    assert there.measured_by == here.measured_by
    assert [layer.cycles for layer in there.layers] == pytest.approx([layer.cycles for layer in here.layers], rel=0.02)


def test_a_profile_of_what_takes_itself_for_a_board(device: Device, toy_bundle: Bundle, monkeypatch) -> None:
    monkeypatch.setenv("BITKILN_SSH", f"ssh -F {device.log.parent}/ssh_config -p {device.port}")
    found = profile_bundle(toy_bundle.folder, device.address)
    assert found.ms > 0 and "Cortex-A53" in found.measured_by
    assert not list(device.home.iterdir())
    with pytest.raises(InputError, match="caches"):
        profile_bundle(toy_bundle.folder, device.address, cold=True)


@pytest.mark.parametrize(
    "text", ["", "x", "[]", '{"timing": 1}', "[" * 100_000, '{"timing": "clock", "mhz": 1}\n{"row": 5}']
)
@pytest.mark.parametrize("part", program.PARTS)
def test_answers_that_are_none(part: str, text: str) -> None:
    if part == "facts" or not text.startswith('{"timing": 1'):
        with pytest.raises(BoardError, match="pi@board: our program gives no sensible answer"):
            evidence.read_part(part, text, "pi@board")


@pytest.mark.parametrize(
    "change",
    [{"schema": "bitkiln.evidence/9"}, {"timing": "guess"}, {"mhz": 1e9}, {"facts": None}, {"day": "yesterday"}],
)
def test_files_of_others_are_checked(tmp_path: Path, change: dict[str, object]) -> None:
    good = {
        **{"schema": "bitkiln.evidence/1", "bitkiln": "0.2.0", "model_version": "v2", "day": "2026-01-01"},
        **{"target": "rasp3b", "board": {"kind": "board", "model": "a Pi", "cpu": "Cortex-A53"}, "timing": "clock"},
        **{"mhz": 1200.0, "health": [], "facts": [], "memory": [], "probes": [], "networks": []},
    }
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps(good))
    assert msgspec.to_builtins(read_evidence(path))["mhz"] == 1200
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(InputError, match="evidence"):
        read_evidence(path)
