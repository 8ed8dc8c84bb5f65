"""A board that is ill for a while: the real board_server.py, and what the file named by SICKNESS says, read at each session.

"throttled": its figures are right, and it says that heat lowers its clock. "dies": its process is killed when a kernel runs.
"crashes": every kernel dies there. Anything else, or no file: it is well.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline/device"))

import board_server

measure = board_server.Trial.measure


def measure_sick(trial: board_server.Trial) -> dict[str, Any]:
    """As board_server's, as far as the sickness lets it; this runs in the trial's process, whose parent serves the session."""
    file = Path(os.environ["SICKNESS"])
    sickness = file.read_text() if file.exists() else ""
    if sickness == "dies":
        os.kill(board, signal.SIGKILL)
    if sickness == "crashes":
        os.kill(os.getpid(), signal.SIGILL)
    found = measure(trial)
    return {**found, "health": {"throttled": True, "temperature": 85.0}} if sickness == "throttled" else found


if __name__ == "__main__":
    board = os.getpid()
    board_server.Trial.measure = measure_sick
    board_server.main()
