"""Where Debian packages come from, and what is said when they do not come."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitkiln.targets import debian
from bitkiln.targets.cache import made_once
from bitkiln.targets.needs import Missing


def apt_that_prints(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """An apt-get in PATH, before all others, that answers with ``lines``."""
    (folder / "apt-get").write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


SECURITY = "'http://mirror.example/debian-security/dists/bookworm-security/InRelease' a 0"
TRIXIE = "'http://mirror.example/debian/dists/trixie/InRelease' b 0"
BOOKWORM = "'mirror+file:/etc/mirrors/dists/bookworm/InRelease' c 0"
TOOLS = "'https://tools.example/apt/dists/stable/InRelease' d 0"


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((TOOLS, SECURITY, TRIXIE, BOOKWORM), "mirror+file:/etc/mirrors"),
        ((TOOLS, SECURITY, TRIXIE), "http://mirror.example/debian"),
        ((TOOLS,), ""),
    ],
    ids=["the release", "another release", "no Debian"],
)
def test_the_archive_is_that_of_apt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: tuple[str, ...], address: str
) -> None:
    apt_that_prints(monkeypatch, tmp_path, *lines)
    assert debian.archive_address() == address


def test_without_apt_there_is_no_archive_to_ask_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian.archive_address() == ""
    with pytest.raises(Missing, match="mmdebstrap is missing"):
        debian.unpack("arm64", ["libc6"], tmp_path)


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "pacman"])
def test_the_command_of_the_machines_own_package_manager_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manager: str
) -> None:
    (tmp_path / manager).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    from bitkiln.targets import needs

    assert needs.remedy("mmdebstrap").startswith(f"sudo {manager} ")
    assert "pip install" in needs.remedy("gcc")


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(scratch: Path) -> Path:
        (scratch / "half").touch()
        raise Missing("it", "try again")

    with pytest.raises(Missing):
        made_once(tmp_path / "cache" / "made", fail)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".made.lock"]
