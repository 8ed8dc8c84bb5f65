"""Temporary files and folders that do not pile up: what a killed process leaves behind is removed by the next one.

Their names say who made them, in a way that neither a later process with the same number nor another machine with the same
disk can be taken for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "bitkiln-scratch-"

#: Folders and files of this process that exist now; see ``remove_all``.
_live: set[str] = set()


def scratch_folder() -> ScratchFolder:
    """A temporary folder, removed when its context ends, when this process does, or by the next process."""
    return ScratchFolder()


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder named after this process."""

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()), PREFIX)
        super().__init__(prefix=owned_prefix(PREFIX), ignore_cleanup_errors=True)
        _live.add(self.name)

    def cleanup(self) -> None:
        """Delete it now."""
        super().cleanup()
        _live.discard(self.name)


def scratch_beside(folder: Path, prefix: str) -> Path:
    """A new folder in ``folder``, on the same file system as what will stand there; ``discard`` removes it."""
    sweep(folder, prefix)
    made = tempfile.mkdtemp(prefix=owned_prefix(prefix), dir=folder)
    _live.add(made)
    return Path(made)


def scratch_file_beside(folder: Path, prefix: str) -> Path:
    """A new empty file in ``folder``; ``discard`` removes it."""
    sweep(folder, prefix)
    handle, made = tempfile.mkstemp(prefix=owned_prefix(prefix), dir=folder)
    os.close(handle)
    _live.add(made)
    return Path(made)


def discard(path: Path) -> None:
    """Delete a file or folder made here, where it still exists."""
    _delete(path)
    _live.discard(str(path))


def remove_all() -> None:
    """Delete all that this process made and has not deleted: for one that is ended in the middle of its work."""
    deadline = time.monotonic() + 0.3
    for path in list(_live):
        # What was just killed, or a thread of ours, may have made another file meanwhile.
        while os.path.lexists(path) and time.monotonic() < deadline:
            _delete(Path(path))


def owned_prefix(prefix: str) -> str:
    """``prefix`` and who makes it: process, its start, machine."""
    return f"{prefix}{os.getpid()}-{_start_of(os.getpid())}-{_machine()}-"


def sweep(folder: Path, prefix: str) -> None:
    """Delete what processes of this user on this machine that are no more have left in ``folder`` under ``prefix``."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(prefix)]  # noqa: PTH208  Thousands of names.
    except OSError:
        return
    for name in names:
        process, start, machine, *_ = [*name.removeprefix(prefix).split("-"), "", ""]
        gone = process.isdigit() and machine == _machine() and _start_of(int(process)) != start
        path = folder / name
        if gone and path.lstat().st_uid == os.geteuid():
            _delete(path)


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        # It goes with the next sweep, or its owner cares for it.
        return


def _start_of(process: int) -> str:
    """When a process began, in ticks since the machine did; "" where there is none, "0" where the system does not say."""
    try:
        # The command's name, in brackets, may hold spaces and brackets of its own. man 5 proc: starttime is field 22.
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "0"
    return "0" if not Path("/proc/self/stat").exists() else ""


def _machine() -> str:
    """This machine's name and, in a container, its own numbering of processes, as eight digits."""
    try:
        numbering = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{os.uname().nodename} {numbering}".encode()).hexdigest()[:8]
