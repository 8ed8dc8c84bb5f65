"""The emulator of simulated boards: our own copy, beside this machine's C library or its own."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import emulator


@pytest.mark.parametrize("glibc", [(2, 99), ()], ids=["the machine's C library", "its own C library"])
def test_it_takes_plugins(glibc: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_host_glibc", lambda: glibc)
    made = emulator.emulator()
    for program in emulator.PROGRAMS:
        done = subprocess.run([*made.command(program), "-h"], capture_output=True, text=True, timeout=60)
        assert "-plugin" in done.stdout, done.stderr


def test_nothing_else_of_the_packages_is_kept() -> None:
    folder = emulator.emulator().folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 60e6
    assert not list(folder.parent.glob(".*-*.tmp"))


def test_other_systems_are_told_what_works_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulator.sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(Missing, match="inspect and compile work here"):
        emulator.emulator()
