#!/usr/bin/env python3
"""Puts a new folder where an old one stands, so that a reader, or a crash at any moment, finds one of the two.

Linux and macOS exchange two folders in one step. Where the file system cannot, two renames do it under a lock, and whoever
comes between or after a crash finds the old folder beside its place and puts it back (``recover``).

The host uses it, and boards: ``python3 replace_folder.py NEW FOLDER``. Python 3.7 or later, nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator  # noqa: UP035  Python 3.7, where collections.abc has none that takes a type.

#: linux/fcntl.h and linux/fs.h; sys/stdio.h of macOS.
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
#: Seconds to wait for somebody else who replaces a folder at the same place.
PATIENCE = 10.0


def replace_folder(new: Path, folder: Path) -> None:
    """Give the folder ``new`` the name ``folder``; what stood there is deleted. Both are in one parent folder's file system.

    Raises OSError.
    """
    kept = kept_name(folder)
    with locked(folder):
        _put_back(folder)
        if not folder.is_dir():
            new.rename(folder)
        elif exchange(new, folder):
            shutil.rmtree(new, ignore_errors=True)
        else:
            folder.rename(kept)
            new.rename(folder)
            shutil.rmtree(kept, ignore_errors=True)
        _flush(folder.absolute().parent)


def recover(folder: Path) -> None:
    """Put the old folder back where somebody died between two renames. Raises OSError."""
    if not folder.is_dir() and kept_name(folder).is_dir():
        with locked(folder):
            _put_back(folder)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):
        code = library.renameat2(AT_FDCWD, first, AT_FDCWD, second, ctypes.c_uint(RENAME_EXCHANGE))
    elif hasattr(library, "renamex_np"):
        code = library.renamex_np(first, second, ctypes.c_uint(RENAME_SWAP))
    else:
        return False
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def kept_name(folder: Path) -> Path:
    """Where the old folder is between two renames."""
    return folder.absolute().parent / f".bitkiln-old.{folder.name}"[:200]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder that ``folder`` is in, where its file system has locks. Raises OSError after PATIENCE."""
    descriptor = os.open(folder.absolute().parent, os.O_RDONLY)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EAGAIN, "somebody else is replacing it", str(folder))
                time.sleep(0.02)
            except OSError:
                break  # Network file systems without locks: two writers at once are then the user's care.
        yield
    finally:
        os.close(descriptor)


def _put_back(folder: Path) -> None:
    kept = kept_name(folder)
    if not kept.is_dir():
        return
    if folder.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
    else:
        kept.rename(folder)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    try:
        replace_folder(Path(sys.argv[1]), Path(sys.argv[2]))
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
