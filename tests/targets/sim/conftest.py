"""The timing model and small guest programs for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitkiln import targets
from bitkiln.targets.sim import Reports, doctor, qemu_command
from bitkiln.targets.toolchain import toolchain

GUEST = Path(__file__).parent / "guest.c"


@pytest.fixture(scope="session", autouse=True)
def _model() -> None:
    missing = [check for check in doctor() if not check.ok]
    if missing:
        pytest.skip(f"the simulated Cortex-A53 cannot run here: {missing[0].explanation}")


@dataclass
class Ran:
    """A finished guest program: its reports, what it printed, how it ended."""

    reports: list[dict[str, Any]]
    stdout: str
    stderr: str
    returncode: int


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's guest program, compiled once."""
    program = tmp_path_factory.mktemp("guest") / "guest"
    cross = toolchain(targets.load("rasp3b"))
    flags = ["-mcpu=cortex-a53+crypto", "-O2", "-static", "-pthread"]
    command = [*cross.command, *flags, str(GUEST), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120, env=cross.environment)
    return program


@pytest.fixture
def run_guest(guest: Path, tmp_path: Path) -> Callable[..., Ran]:
    """Runs the guest program with arguments under the model and returns what came of it."""

    def run(*arguments: str, options: Sequence[str] = (), params: dict[str, Any] | None = None, **env: str) -> Ran:
        out = tmp_path / "reports"
        out.unlink(missing_ok=True)
        command, environment = qemu_command(params or {}, [str(guest), *arguments], options=[f"out={out}", *options])
        done = subprocess.run(command, env=environment | env, capture_output=True, text=True, timeout=120)
        return Ran(Reports(out).new(), done.stdout, done.stderr, done.returncode)

    return run
