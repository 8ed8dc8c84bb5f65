"""Commands that are killed at any moment: nothing acknowledged is lost, nothing is left, no traceback is printed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from bitkiln.pipeline.bundle import open_bundle
from fuzzing import kills
from tests.ssh_board import Device

#: Kills of the suite, one of each command: a kill takes as long as half a compilation.
SLICE = 3


def killing(network: Path, device: Device, tmp_path: Path, count: int, seed: str) -> None:
    field = kills.Field(tmp_path / "field")
    field.environment["BITKILN_SECRET_FILE"] = str(tmp_path / "secret")
    bundle, logs = field.folder / "bundle", field.folder / "logs"
    compiling = ["compile", str(network), "-o", str(bundle), "--target", "rasp3b"]
    tuning = ["tune", str(network), "--logs", str(logs), "--trials", "4", "--boards", "1", "--threads", "1"]
    seconds = field.whole(compiling)
    commands = {
        "compile": compiling,
        "tune": tuning,
        "deploy": ["deploy", str(bundle), f"{device.address}:net", "--port", str(device.port)],
        "boards": ["boards", "start-sim", "--count", "1"],
        "tracker": ["boards", "tracker", "--port", "19190"],
    }
    known = [0]

    def look() -> None:
        kills.whole_bundle(bundle)
        kills.whole_bundle(device.home / "net")
        found = kills.whole_records(logs)
        assert found >= known[0], "records were lost"
        known[0] = found

    kills.kill_many(field, commands, 1.3 * seconds, count, seed, look)
    # Whoever comes next sweeps what is left, and can go on.
    field.whole(compiling)
    field.whole(tuning)
    assert open_bundle(bundle) and kills.whole_records(logs) >= max(known[0], 1)
    assert field.leftovers() == []


def test_a_slice(network: Path, device: Device, tmp_path: Path) -> None:
    killing(network, device, tmp_path, SLICE, "suite")


@pytest.mark.kills
def test_a_thousand(network: Path, device: Device, tmp_path: Path) -> None:
    killing(
        network, device, tmp_path, int(os.environ.get("BITKILN_KILLS", "1000")), os.environ.get("BITKILN_SEED", "kills")
    )


def losing_processes(network: Path, tmp_path: Path, kills_wanted: int, trials: int, seed: str) -> None:
    """Two runs of ``tune`` on one log while processes of theirs are killed, and others compile from it and check it."""
    random = Random(seed)
    field = kills.Field(tmp_path / "field")
    logs = field.folder / "logs"
    threads = {"one": "1", "other": "1,4"}
    tuning = {
        name: field.start(
            ["tune", str(network), "--logs", str(logs), "--trials", str(trials), "--boards", "1", "--threads", count]
        )
        for name, count in threads.items()
    }
    known = killed = 0
    reader = None
    while any(process.poll() is None for process in tuning.values()):
        time.sleep(random.uniform(0.1, 2.0))
        running = [child for each in tuning.values() if each.poll() is None for child in kills.descendants(each.pid)]
        # A worker takes some seconds to begin: one that never gets so far builds nothing.
        if running and killed < kills_wanted and random.random() < 0.3:
            with suppress(ProcessLookupError):
                os.kill(random.choice(running), signal.SIGKILL)
                killed += 1
        if logs.exists() and (reader is None or reader.poll() is not None):
            assert reader is None or reader.returncode == 0, field.said()[-1000:]
            target = ["--target", "rasp3b", "--logs", str(logs)]
            reader = field.start(["compile", str(network), *target, "-o", str(field.folder / "bundle")])
        found = kills.whole_records(logs)
        assert found >= known, "records were lost"
        known = found
    assert reader is None or reader.wait(kills.GONE_SECONDS) == 0
    assert [process.returncode for process in tuning.values()] == [0, 0], field.said()[-2000:]
    assert "Traceback" not in field.said()
    assert kills.whole_records(logs) >= 2 * trials or "nothing improves" in field.said()
    field.whole(["logs", "check", str(logs)])
    field.whole(["tune", str(network), "--logs", str(logs), "--trials", "1", "--boards", "1"])
    assert field.orphans() == [] and field.leftovers() == []


@pytest.mark.kills
def test_two_tunes_of_one_log_outlive_the_death_of_their_processes(network: Path, tmp_path: Path) -> None:
    losing_processes(network, tmp_path, int(os.environ.get("BITKILN_KILLS", "100")), 40, "processes")
