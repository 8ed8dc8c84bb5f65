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


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def count(number: int) -> str:
    """A count for people: 1.83 G, 118 M."""
    for factor, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return str(number)
