"""What simulated boards need on this machine, and how to get what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import NamedTuple

from bitkiln import targets
from bitkiln.pipeline.boards.apt_sources import archive_for
from bitkiln.pipeline.boards.userland import SUITE, find_emulator, runtime_libraries, userland, userland_folder
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target


class Check(NamedTuple):
    """One thing that simulated boards need: ``explanation`` says what was found, or how to get it."""

    name: str
    ok: bool
    explanation: str


def doctor() -> list[Check]:
    """Everything simulated boards need on this machine, in the order they need it."""
    from bitkiln.targets.sim.doctor import doctor as simulator

    target = targets.load("rasp3b")
    return [
        *(Check(check.name, check.ok, check.explanation) for check in simulator()),
        _check("mmdebstrap", lambda: _mmdebstrap(target)),
        _check("Debian archive", lambda: archive_for(SUITE).uri),
        _check("arm64 userland", lambda: str(userland(target).root)),
        _check("TVM's runtime for boards", lambda: str(runtime_libraries())),
        _check("32-bit emulator", lambda: find_emulator(targets.load("rasp3b32"))),
        _check("32-bit cross compiler", lambda: _which("arm-linux-gnueabihf-gcc", "gcc-arm-linux-gnueabihf")),
    ]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except SetupError as problem:
        return Check(name, False, str(problem))


def _mmdebstrap(target: Target) -> str:
    if userland_folder(target).exists():
        return "not needed any more: the userland is built"
    return _which("mmdebstrap", "mmdebstrap")


def _which(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SetupError(f"install it with `sudo apt-get install {package}`")
    return path
