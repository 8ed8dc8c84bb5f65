"""What simulated boards need, packed on one machine and unpacked on another."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline import fetch
from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.errors import SetupError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of archives."""
    folder = tmp_path_factory.mktemp("stick")
    list(fetch.pack(folder))
    return folder


def test_a_machine_without_a_network_gets_all_of_it(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Whoever would download fails.
    monkeypatch.setattr("bitkiln.targets.debian.unpack", None)
    list(fetch.unpack(packed))
    assert all(part.folder.is_dir() for part in fetch.parts())
    for name, machine in (("rasp3b", "aarch64"), ("rasp3b32", "armv7l")):
        system = userland(targets.load(name))
        command = system.command(["python3", "-c", "import platform; print(platform.machine())"])
        done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == machine, done.stderr
    assert all("already" in line for line in fetch.unpack(packed))


def test_a_damaged_archive_is_named(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stick = tmp_path / "stick"
    stick.mkdir()
    for file in packed.iterdir():
        (stick / file.name).symlink_to(file)
    (stick / "emulator.tar").unlink()
    (stick / "emulator.tar").write_bytes(b"torn")
    with pytest.raises(SetupError, match=r"emulator\.tar: missing or damaged"):
        list(fetch.unpack(stick))


@pytest.mark.parametrize("text", ["", "{}", '{"archives": [{"file": 1}]}', '{"archives": []}'])
def test_other_folders_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / fetch.LIST).write_text(text)
    with pytest.raises(SetupError, match=str(tmp_path)):
        list(fetch.unpack(tmp_path))
    with pytest.raises(SetupError, match="no folder that"):
        list(fetch.unpack(tmp_path / "nowhere"))
