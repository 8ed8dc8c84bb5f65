"""Every command ends within a second of Ctrl-C and of SIGTERM, with the status of that signal, and leaves nothing."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import click
import pytest
from PIL import Image

from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.cli import bitkiln
from fuzzing import kills
from tests.ssh_board import Device

#: Each command with arguments.
COMMANDS: Mapping[str, str] = {
    "boards doctor": "",
    "boards kinds": "",
    "boards list": "--tracker {tracker}",
    "boards measure": "{board} --port {port} -o out.json",
    "boards setup": "{board} --port {port} --tracker {tracker} --tunnel",
    "boards start-sim": "--count 1 --tracker {tracker} --key other",
    "boards tracker": "--port 19290",
    "build": "{model} -o built --trials 4",
    "card": "{bundle} -o cards/net",
    "compare": "{bundle} {model}",
    "compile": "{model} -o compiled",
    "deploy": "{bundle} {board}:net --port {port}",
    "doctor": "",
    "evaluate": "{bundle} --images photos --results results.jsonl",
    "fetch": "--to stick",
    "gallery": "cards -o cards/index.html",
    "inspect": "{model}",
    "logs best": "",
    "logs check": "{records}",
    "logs merge": "{records} -o merged.jsonl",
    "profile": "{bundle}",
    "run": "{bundle}",
    "sign": "{bundle} --key key",
    "tune": "{model} --trials 8 --threads 1 --logs logs",
    "verify": "{bundle} {model}",
}
#: Seconds after which commands hear signals on an idle machine.
BEGUN = 0.25
#: Signals come within these seconds, or as many as the command takes.
MOST_SECONDS = 12.0
#: What may pass between a signal and the end on a machine with a core to spare; on others, times the processes to a core.
SECONDS = 1.0


def leaves(group: click.Group, name: str = "") -> Iterator[str]:
    """The commands that do something."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{name}{word} ")
        else:
            yield name + word


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) == set(leaves(bitkiln))


def limit() -> float:
    """Seconds for a command to end now."""
    return SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def signal_all(
    field: kills.Field, commands: Mapping[str, Sequence[str]], rounds: int, seed: str, timed: bool = True
) -> list[float]:
    """Signal each command ``rounds`` times with each signal; gives the seconds to the end of those not over before."""
    random, took = Random(seed), []
    for name, arguments in commands.items():
        slowest, whole = 0.0, field.length(arguments, MOST_SECONDS)
        for number in (signal.SIGINT, signal.SIGTERM) * rounds:
            # Before that Python itself answers.
            after = random.uniform(BEGUN, max(whole, BEGUN))
            ended = field.killed(arguments, after, number)
            if ended is None:
                continue
            where = f"{name}, {number.name} after {after:.2f} s"
            # The signal may have come when all was done, or when Python itself was still beginning.
            assert ended.status in (0, 128 + number, -number), f"{where}: status {ended.status}: {field.said()[-500:]}"
            assert not timed or ended.seconds < limit(), f"{where}: {ended.seconds:.2f} s"
            assert field.leftovers() == [], where
            took.append(ended.seconds)
            slowest = max(slowest, ended.seconds)
        print(f"{name}: {slowest:.2f} s after the signal, {whole:.1f} s whole", flush=True)
    return took


@pytest.fixture
def field(network: Path, device: Device, farm: tuple[Address, str], tmp_path: Path) -> Iterator[kills.Field]:
    """With what commands need: a bundle, records, a card, photos, a key."""
    field = kills.Field(tmp_path / "field")
    (field.folder / "labels.txt").write_text("".join(f"class{number}\n" for number in range(16)))
    for number in range(40):
        photo = field.folder / f"photos/class{number % 4}/{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (6 * number, 90, 200)).save(photo)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", field.folder / "key"], check=True)
    field.whole(["compile", str(network), "-o", "bundle", "--labels", "labels.txt", "--normalize", "0..1"])
    field.whole(["tune", str(network), "--trials", "2", "--threads", "1", "--logs", "records"])
    field.whole(["card", "bundle", "-o", "cards/net"])
    yield field
    field.whole(["boards", "setup", device.address, "--port", str(device.port), "--remove"])


@pytest.fixture
def commands(
    field: kills.Field, network: Path, device: Device, farm: tuple[Address, str]
) -> Mapping[str, Sequence[str]]:
    """The command lines."""
    places = {"model": network, "bundle": "bundle", "records": "records", "board": device.address, "port": device.port}
    lines = {name: line.format(**places, tracker=farm[0]) for name, line in COMMANDS.items()}
    return {name: [*name.split(), *line.split()] for name, line in lines.items()}


def test_a_slice(network: Path, tmp_path: Path) -> None:
    signal_all(kills.Field(tmp_path / "field"), {"inspect": ["inspect", str(network)]}, 1, "suite", timed=False)


@pytest.mark.kills
def test_every_command(field: kills.Field, commands: Mapping[str, Sequence[str]]) -> None:
    took = signal_all(
        field,
        commands,
        int(os.environ.get("BITKILN_SIGNALS", "4")),
        os.environ.get("BITKILN_SEED", "kills"),
    )
    print(f"{len(took)} signals: median {statistics.median(took):.2f} s, slowest {max(took):.2f} s")
