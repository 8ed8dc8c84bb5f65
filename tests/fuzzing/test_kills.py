"""Commands that are killed at any moment: nothing acknowledged is lost, nothing is left, no traceback is printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitkiln.pipeline.bundle import open_bundle
from fuzzing import kills
from tests.ssh_board import Device

#: Kills of the suite, one of each command: a kill takes as long as half a compilation.
SLICE = 5


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
