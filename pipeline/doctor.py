"""What every command needs of this machine, and what to type where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bitkiln import targets
from bitkiln.pipeline.boards.userland import userland, userland_folder
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import debian, needs
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import doctor as simulator
from bitkiln.targets.sim import emulator
from bitkiln.targets.toolchain import toolchain


class Check(NamedTuple):
    """One thing that commands need: ``explanation`` says what was found, or how to get it; ``serves`` names the commands."""

    name: str
    ok: bool
    explanation: str
    serves: str


def doctor() -> list[Check]:
    """Everything that commands need on this machine, in the order they need it. Builds what can be built."""
    board, board32 = targets.load("rasp3b"), targets.load("rasp3b32")
    measuring = "tune, run, profile, verify"
    return [
        _check("compiler for 64-bit boards", "compile, tune", lambda: toolchain(board).name),
        _check("compiler for 32-bit boards", "compile --target rasp3b32", lambda: toolchain(board32).name),
        _check("mmdebstrap", measuring, _mmdebstrap),
        *(Check(check.name, check.ok, check.explanation, measuring) for check in simulator()),
        _check("arm64 userland", measuring, lambda: str(userland(board).root)),
        _check("armhf userland", "run, verify of 32-bit bundles", lambda: str(userland(board32).root)),
        _check("ssh", "deploy, boards setup", lambda: needs.find("ssh")),
    ]


def _check(name: str, serves: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look(), serves)
    except (Missing, SetupError) as problem:
        return Check(name, False, str(problem), serves)


def _mmdebstrap() -> str:
    made = (userland_folder(targets.load(name)) for name in ("rasp3b", "rasp3b32"))
    if all(folder.exists() for folder in (emulator.folder(), *made)):
        return "not needed any more: what it makes is in the cache"
    path = needs.find("mmdebstrap")
    address = debian.archive_address() or "its own default, for this machine's apt names no Debian archive"
    return f"{path}; packages come from {address}"
