"""Writing files so that a crash at any moment leaves the old file or the new one, never half of it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bitkiln.pipeline.errors import SetupError
from bitkiln.targets.cache import user_directory
from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import discard, scratch_file_beside, scratch_folder

#: How names of what is written aside begin, whatever it will be called.
ASIDE = ".bitkiln-"
#: What kernels and their objects take in a temporary folder while they are compiled.
ENOUGH_BYTES, ENOUGH_FILES = 16_000_000, 64
#: What systems say of a file for which there is no more room.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: As the kernel: so many links in a row are a loop.
_MOST_LINKS = 40


#: Bytes of a file that people or commands make: a list of photos, a profile, a log.
MOST_BYTES = 1 << 28


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file. Raises OSError, also beyond ``most`` bytes, and for pipes and devices, which may not end."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MiB", str(path))
    return content


def open_file(path: Path) -> BinaryIO:
    """A file to read from. Raises OSError, also for folders, pipes and devices."""
    # Opening a pipe waits for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        folder = stat.S_ISDIR(kind)
        raise OSError(errno.EISDIR if folder else errno.EINVAL, "is a folder" if folder else "is not a file", str(path))
    return os.fdopen(descriptor, "rb")


@contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it over ``path``.

    On any error the temporary file is removed and ``path`` keeps its old content. Links are followed: the file at their end is
    replaced, not the link. Devices, pipes and what else is no file are written into when everything has succeeded.
    ``mode`` are the permissions; unless given, those of the file that is replaced, else 0644.
    """
    end = _end_of_links(path)
    if end is None:
        with scratch_folder() as folder:
            temporary = Path(folder) / "content"
            temporary.touch()
            yield temporary
            with _named(path, temporary), temporary.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    end.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch_file_beside(end.parent, ASIDE)
    try:
        with _named(path, temporary):
            yield temporary
        temporary.chmod(_mode_of(end) if mode is None else mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(end)
        fsync_directory(end.parent)
    finally:
        discard(temporary)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Have a full disk named after ``path``: the system names no file, or the temporary one, which nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _end_of_links(path: Path) -> Path | None:
    """The file to replace for ``path``, which need not exist; None where something else than a file is to be written into.

    Raises OSError for folders and for links that lead in a circle.
    """
    end = path
    for _ in range(_MOST_LINKS):
        # A descriptor's name leads to an open file, which must stay the one that is open.
        if Path("/proc") in end.absolute().parents:
            return None
        if not end.is_symlink():
            break
        end = end.parent.resolve() / end.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if end.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return end if end.is_file() or not end.exists() else None


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644


def require_space(folder: Path, more: int = 0) -> None:
    """Raise SetupError where the disk of ``folder`` is so full that compilers would fail, or end this process.

    They need ``more`` bytes than kernels alone do.
    """
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < ENOUGH_BYTES + more or (found.f_files and found.f_favail < ENOUGH_FILES):
        raise SetupError(
            f"{folder.parent}: only {free / 1e6:.1f} MB left for temporary files; free some space, or set TMPDIR elsewhere"
        )


def fsync_directory(path: Path) -> None:
    """Make a rename inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """Where downloaded userlands and built tools are kept: ``$XDG_CACHE_HOME/bitkiln`` or ``~/.cache/bitkiln``.

    Raises SetupError where this user has no home.
    """
    return _base("XDG_CACHE_HOME", ".cache") / "bitkiln"


def config_directory() -> Path:
    """Where this user's settings are: ``$XDG_CONFIG_HOME/bitkiln`` or ``~/.config/bitkiln``. Raises SetupError."""
    return _base("XDG_CONFIG_HOME", ".config") / "bitkiln"


def state_directory() -> Path:
    """Where what was learned is kept for people to look at: ``$XDG_STATE_HOME/bitkiln`` or ``~/.local/state/bitkiln``.

    Raises SetupError where this user has no home.
    """
    return _base("XDG_STATE_HOME", ".local/state") / "bitkiln"


def _base(variable: str, name: str) -> Path:
    try:
        return user_directory(variable, name)
    except Missing as problem:
        raise SetupError(str(problem)) from None
