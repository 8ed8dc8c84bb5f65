"""Names out of files as text that is safe to show: a file may call its layers anything."""

from __future__ import annotations


def printable(text: str, limit: int = 0) -> str:
    """``text`` on one line, without control, bidirectional and other unprintable characters.

    More than ``limit`` characters lose their middle; 0 is no limit.
    """
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if not limit or len(shown) <= limit:
        return shown
    tail = (limit - 1) // 2
    return f"{shown[: limit - 1 - tail]}…{shown[len(shown) - tail :]}"
