"""A board that lies: the real board_server.py with false answers. The library that it is to measure names the lie."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline/device"))

import board_server

DATA = b"\0" * 16
OUTPUT = {
    "name": "y",
    "shape": [1, 4],
    "dtype": "float32",
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "file": "output-0",
}
GOOD: dict[str, Any] = {
    **{"status": "ok", "unit": "cycles", "value": 120000.0, "kind": "simulated", "measured_by": "a board"},
    **{
        "clock_mhz": 1200.0,
        "samples": [],
        "steps": [],
        "complete": True,
        "steady": True,
        "health": {},
        "outputs": [OUTPUT],
    },
}
#: What is said in place of ``GOOD``: what changes in it, or the whole text.
LIES: dict[str, dict[str, Any] | str] = {
    **{"no JSON": "hello", "too deep": "[" * 200_000, "a list": "[1]", "nothing": "", "null": "null"},
    **{
        "no time": {"value": None},
        "negative": {"value": -5.0},
        "endless": {"value": float("inf")},
        "huge": {"value": 10**400},
    },
    **{"another unit": {"unit": "furlongs"}, "another kind": {"kind": "x"}, "no clock": {"clock_mhz": "fast"}},
    **{
        "a terminal's words": {"measured_by": "a\x1b]0;owned\x07"},
        "a failure": {"status": "\x1b[2J", "message": "[/b]\x1b[31m" * 999},
    },
    "other bytes": {"outputs": [{**OUTPUT, "sha256": "0" * 64}]},
    "another's file": {"outputs": [{**OUTPUT, "file": "/etc/hostname"}]},
    "a missing file": {"outputs": [{**OUTPUT, "file": "output-7"}]},
    "a type that is none": {"outputs": [{**OUTPUT, "dtype": "object"}]},
}


def measure(path: str, _request: str) -> str:
    """The lie that the library names; "leaves" ends the session in the middle."""
    lie = Path(path).read_text()
    if lie == "leaves":
        os._exit(1)
    Path("output-0").write_bytes(DATA)
    said = LIES.get(lie, {})
    return said if isinstance(said, str) else json.dumps({**GOOD, **said})


def offer_functions(offered: Any, board: Any) -> None:
    """As board_server's, with our answers."""
    offered.offer("bitkiln.identity", lambda: json.dumps({**board.identity(), "measured_by": "a board"}))
    offered.offer("bitkiln.health", lambda: json.dumps(board.health()))
    offered.offer("bitkiln.measure", measure)


if __name__ == "__main__":
    board_server.offer_functions = offer_functions
    board_server.main()
