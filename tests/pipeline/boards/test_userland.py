"""The ARM userland in the cache, and where its packages come from."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards import apt_sources
from bitkiln.pipeline.boards.apt_sources import Source, archive_for
from bitkiln.pipeline.boards.userland import find_emulator, runtime_libraries, userland
from bitkiln.pipeline.errors import SetupError


def apt_folder(folder: Path, **files: str) -> Path:
    """An /etc/apt with the given files of sources.list.d."""
    (folder / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        (folder / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return folder


DEB822 = """\
# The mirror of this house.
Types: deb deb-src
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm
  bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/house.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_deb822_sources_are_read(tmp_path):
    etc = apt_folder(tmp_path, house_sources=DEB822)
    keyring = "/usr/share/keyrings/house.gpg"
    suites, components = ("bookworm", "bookworm-updates"), ("main", "contrib")
    assert apt_sources.sources(etc) == [
        Source("http://mirror.example/debian", suites, components, keyring),
        Source("http://second.example/debian", suites, components, keyring),
    ]
    line = archive_for("bookworm", etc).line("bookworm")
    assert line == f"deb [signed-by={keyring}] http://mirror.example/debian bookworm main"


def test_one_line_sources_are_read(tmp_path):
    text = "# comment\ndeb-src http://a.example/debian bookworm main\n"
    text += "deb [arch=amd64 signed-by=/k.gpg] mirror+file:/etc/mirrors bookworm main contrib # here\n"
    etc = apt_folder(tmp_path, house_list=text)
    assert apt_sources.sources(etc) == [
        Source("mirror+file:/etc/mirrors", ("bookworm",), ("main", "contrib"), "/k.gpg")
    ]


def test_a_debian_archive_of_another_suite_serves(tmp_path):
    text = "deb https://tools.example/apt stable main\ndeb http://mirror.example/debian/ trixie main\n"
    assert archive_for("bookworm", apt_folder(tmp_path, house_list=text)).uri == "http://mirror.example/debian/"


def test_a_machine_without_debian_is_told(tmp_path):
    text = "deb https://tools.example/apt stable main\n"
    with pytest.raises(SetupError, match="names no Debian archive"):
        archive_for("bookworm", apt_folder(tmp_path, house_list=text))


@pytest.mark.parametrize(("target", "machine"), [("rasp3b", "aarch64"), ("rasp3b32", "armv7l")])
def test_its_python_runs(target, machine):
    if shutil.which("mmdebstrap") is None or shutil.which("qemu-arm") is None:
        pytest.skip("needs mmdebstrap and qemu-user")
    system = userland(targets.load(target))
    code = "import ctypes, platform, ssl, sqlite3; print(platform.machine(), platform.python_version())"
    command = system.command(["python3", "-c", code])
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[0] == machine, done.stderr
    assert done.stdout.split()[1].startswith("3.11")


def test_it_shows_a_cortex_a53():
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    assert "0xd03" in (userland(targets.load("rasp3b")).root / "proc/cpuinfo").read_text()


def test_missing_tools_are_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="apt-get install qemu-user"):
        find_emulator(targets.load("rasp3b"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "qemu-aarch64").write_text("#!/bin/sh\n")
    (tmp_path / "qemu-aarch64").chmod(0o755)
    with pytest.raises(SetupError, match="apt-get install mmdebstrap"):
        userland(targets.load("rasp3b"))


def test_a_build_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("qemu-aarch64", "mmdebstrap"):
        (tools / name).write_text("#!/bin/sh\necho 'I: working' >&2\necho 'E: no such suite' >&2\nexit 25\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(SetupError, match="building the arm64 userland failed: E: no such suite"):
        userland(targets.load("rasp3b"))
    left = [path.name for path in (tmp_path / "cache" / "bitkiln" / "userland").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_the_runtime_for_boards_is_the_pinned_pair():
    if platform.machine() == "aarch64":
        pytest.skip("fetched for boards on other machines")
    folder = runtime_libraries()
    assert {path.name for path in folder.iterdir()} == {"libtvm_ffi.so", "libtvm_runtime.so"}
    for path in folder.iterdir():
        assert path.read_bytes()[:20].startswith(b"\x7fELF\x02\x01\x01"), "64-bit"
        assert path.read_bytes()[18] == 183, "aarch64"
