"""The cache of what is built or downloaded once, and how one process at a time builds a part of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import discard, scratch_beside

#: A build that takes longer is stuck.
BUILD_SECONDS = 900.0


def cache_directory() -> Path:
    """Where it is: ``$XDG_CACHE_HOME/bitkiln``, else ``~/.cache/bitkiln``. Raises Missing where this user has no home."""
    return user_directory("XDG_CACHE_HOME", ".cache") / "bitkiln"


def user_directory(variable: str, name: str) -> Path:
    """The folder that ``variable`` names, else ``name`` in this user's home. Raises Missing where there is none."""
    given = os.environ.get(variable, "")
    # The XDG base directory specification: relative paths are invalid and ignored.
    if Path(given).is_absolute():
        return Path(given)
    try:
        return Path.home() / name
    except RuntimeError:
        raise Missing("this user has no home folder", f"set HOME, or {variable} to an absolute path") from None


def made_once(destination: Path, make: Callable[[Path], Path]) -> Path:
    """``destination``, which ``make`` makes on first use in an empty folder beside it, giving the path to move there.

    A build that is interrupted leaves nothing behind that counts. Raises Missing, and what ``make`` raises.
    """
    if not destination.exists():
        with _lock(destination):
            if not destination.exists():
                with aside(destination) as scratch:
                    make(scratch).rename(destination)
    return destination


def is_whole(file: Path) -> bool:
    """Whether a file is in the cache as it was put there: a disk that was full, or a copy that ended early, leaves less."""
    try:
        return _stamp(file).read_text(encoding="ascii", errors="replace") == _digest(file)
    except OSError:
        return False


def stamp(file: Path) -> None:
    """Say that ``file`` is whole; the last step of putting it there."""
    with aside(file) as scratch:
        text = scratch / "stamp"
        text.write_text(_digest(file), encoding="ascii")
        text.replace(_stamp(file))


def _stamp(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def aside(destination: Path) -> Iterator[Path]:
    """A scratch folder on the file system of ``destination``, removed at the end."""
    scratch = scratch_beside(destination.parent, f".{destination.name}.")
    try:
        yield scratch
    finally:
        discard(scratch)


@contextmanager
def _lock(destination: Path) -> Iterator[None]:
    """Let one process at a time build ``destination``; the system releases the lock of a killed one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (destination.parent / f".{destination.name}.lock").open("w") as file:
        deadline = time.monotonic() + BUILD_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Missing(f"another process has been building {destination} for too long", "is it stuck?")
                time.sleep(0.2)
        yield
