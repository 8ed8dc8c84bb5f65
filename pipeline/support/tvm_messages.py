"""What TVM says, made fit for users: its exceptions on one line, its warnings not at all."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def reason_of(error: Exception) -> str:
    """What an exception of TVM's says, on one line and without its dumps of IR."""
    if isinstance(error, KeyError):
        return f"attribute {error} is missing"
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, instead in _IR_DUMPS:
        text = re.sub(pattern, instead, text)
    return text[:200]


#: Parts of TVM's messages that say nothing to a user, and what stands for them.
_IR_DUMPS = (
    (r"In ir\.Op\(.*?support_level=\d+\), ", ""),
    (r"T\.int64\((-?\d+)\)", r"\1"),
    (r"R\.shape\((\[.*?\])\)", r"\1"),
    (r'metadata\["ir\.GenericConst"\]\[\d+\]', "constant"),
    (r"# Metadata omitted\. .*? to show it\. ", ""),
)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what is written to this process's standard error meanwhile.

    TVM's C++ side prints warnings about its own ways there (types it casts, builders it drops), which no setting turns off.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
