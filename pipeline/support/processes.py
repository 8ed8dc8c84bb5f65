"""Programs that we run: they end when we do, however that happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bitkiln.pipeline.support import interrupts

#: Leaders of sessions that run now; see ``kill_all``.
_running: set[int] = set()


#: Whoever started us may have died before the system was asked to kill us with it: then we begin nothing.
_STILL_THERE = 'test "$PPID" = "$0" && exec "$@"'


def bound_to_us(command: Sequence[str | Path]) -> list[str]:
    """``command`` as one that the system kills when the thread that started it is no more, where the system can."""
    # util-linux has it on every Linux of ours; macOS has no such thing.
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _STILL_THERE, str(os.getpid())] if setpriv else []
    return [*bound, *map(str, command)]


def run(
    command: Sequence[str | Path],
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[Any] | int = subprocess.DEVNULL,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and give what it says. Raises FileNotFoundError, OSError, subprocess.TimeoutExpired.

    It has a session of its own: a terminal's Ctrl-C is for us, and whatever it started is killed with it.
    """
    with start(command, env=env, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            with interrupts.waiting():
                out, err = process.communicate(timeout=timeout)
        except BaseException:
            kill(process)
            raise
        finally:
            _running.discard(process.pid)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(command: Sequence[str | Path], **settings: Any) -> subprocess.Popen[Any]:
    """Start a program in a session of its own; ``settings`` are subprocess.Popen's. ``kill`` ends it."""
    program = str(command[0])
    if shutil.which(program) is None:
        raise FileNotFoundError(2, os.strerror(2), program)
    process = subprocess.Popen(bound_to_us(command), start_new_session=True, **settings)
    _running.add(process.pid)
    return process


def kill(process: subprocess.Popen[Any]) -> None:
    """End a program and what it started, now; nothing where that was done."""
    if process.pid in _running:  # Afterwards the number may be somebody else's.
        _kill_session(process.pid)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    _running.discard(process.pid)


def kill_all() -> None:
    """End all programs that run: for a process that is ended in the middle of its work."""
    for leader in list(_running):
        _kill_session(leader)


def _kill_session(leader: int) -> None:
    """Kill the session that ``leader`` began: its own group, and others that were made in it."""
    _kill(-leader)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # man 5 proc: the session is the fourth field after the command's name, which stands in brackets.
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(leader):
            _kill(int(entry.parent.name))


def _kill(number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(number, signal.SIGKILL)


interrupts.at_the_end(kill_all, 0)
