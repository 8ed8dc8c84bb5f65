"""Runs ``bitkiln`` commands in forks of this process, which has imported TVM once, under limits of time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

from bitkiln.pipeline import cli
from fuzzing.case import Outcome

_TAIL = 20_000


@dataclass(frozen=True)
class Limits:
    """Wall-clock seconds, and MiB of writable private memory (mapped libraries do not count)."""

    seconds: float = 60.0
    memory_mib: int = 2048


def import_everything() -> None:
    """Import what the commands import when they are called, so that every fork has it."""
    from bitkiln.pipeline import compile, inspect, records  # noqa: F401
    from bitkiln.pipeline.importers import FORMATS
    from bitkiln.pipeline.passes import pipeline  # noqa: F401

    for module in set(FORMATS.values()):
        import_module(f"bitkiln.pipeline.importers.{module}")


def run(arguments: Sequence[str], folder: Path, limits: Limits) -> Outcome:
    """Run ``bitkiln ARGUMENTS`` in ``folder`` to its end, or stop it and what it started when its time is over."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(arguments, folder, limits, stdout, stderr)
        with _stopping(child):
            status, usage = _wait(child, limits.seconds)
        return Outcome(
            None if status is None else os.waitstatus_to_exitcode(status),
            _text(stdout),
            _text(stderr),
            time.monotonic() - start,
            usage.ru_maxrss / 1024,
        )


def _wait(child: int, seconds: float) -> tuple[int | None, resource.struct_rusage]:
    """(wait status, or None where the time was over; usage)."""
    handle = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        ended = bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status if ended else None, usage


@contextmanager
def _stopping(child: int) -> Iterator[None]:
    """End the child and its group when this process is interrupted."""
    try:
        yield
    except BaseException:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)
        raise


def _child(arguments: Sequence[str], folder: Path, limits: Limits, stdout: IO[bytes], stderr: IO[bytes]) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        size = limits.memory_mib << 20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        os.chdir(folder)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = ["bitkiln", *arguments]
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _text(file: IO[bytes]) -> str:
    """What was written to ``file``; of much, the end."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(size - _TAIL, 0))
    return file.read().decode("utf-8", "replace")
