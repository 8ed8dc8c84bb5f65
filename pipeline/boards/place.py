"""Where a bundle runs, as ``--board`` says it: here, on a host of ssh, or on a tracker's board."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitkiln.pipeline.boards.access import INSECURE
from bitkiln.pipeline.errors import InputError

#: What stands for a board of this machine.
HERE = "sim"


@dataclass(frozen=True)
class Here:
    """A simulated or emulated board of this machine."""


@dataclass(frozen=True)
class OverSsh:
    """A board that is logged into; ``host`` is what one would type after ``ssh``."""

    host: str


@dataclass(frozen=True)
class AtTracker:
    """Any board with ``key`` at the tracker whose address is ``tracker``."""

    tracker: str
    key: str


Place = Here | OverSsh | AtTracker


def parse(text: str) -> Place:
    """``sim``, ``HOST`` or ``HOST:PORT/KEY``, the last perhaps behind ``insecure://``. Raises InputError."""
    if text == HERE:
        return Here()
    bare = text.removeprefix(INSECURE)
    tracker, slash, key = bare.rpartition("/")
    if tracker and key:
        return AtTracker(text.removesuffix(f"/{key}"), key)
    if slash or not text or re.fullmatch(r"(.*\]|[^@:]*):\d+", bare):
        # ssh would take the address of a tracker for the name of a host.
        raise InputError(
            f"board {text!r} is neither {HERE} nor a host of ssh, which has its port in ~/.ssh/config, nor a board of a "
            "tracker, which is HOST:PORT/KEY, for instance 127.0.0.1:9190/rasp3b"
        )
    return OverSsh(text)
