"""The ARM userland in the cache."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.errors import SetupError


@pytest.mark.parametrize(("target", "machine"), [("rasp3b", "aarch64"), ("rasp3b32", "armv7l")])
def test_its_python_runs(target, machine):
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    system = userland(targets.load(target))
    code = "import ctypes, platform, ssl, sqlite3; print(platform.machine(), platform.python_version())"
    command = system.command(["python3", "-c", code])
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[0] == machine, done.stderr
    assert done.stdout.split()[1].startswith("3.11")


@pytest.mark.parametrize("target", ["rasp3b", "rasp3b32"])
def test_it_shows_a_cortex_a53(target):
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    assert "0xd03" in (userland(targets.load(target)).root / "proc/cpuinfo").read_text()


def test_missing_tools_are_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SetupError, match="mmdebstrap is missing"):
        userland(targets.load("rasp3b"))


def test_a_build_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mmdebstrap").write_text("#!/bin/sh\necho 'I: working' >&2\necho 'E: no such suite' >&2\nexit 25\n")
    (tools / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(SetupError, match="E: no such suite"):
        userland(targets.load("rasp3b"))
    left = [path.name for path in (tmp_path / "cache" / "bitkiln").rglob("*") if path.is_file()]
    assert [name for name in left if not name.endswith(".lock")] == []
