"""Where the commands begin: Ctrl-C is honoured from here on, while all the rest is still being imported."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Entry point of ``bitkiln``."""
    _leave_quietly_until_heard()
    from bitkiln.pipeline import cli

    cli.main()


def tune_main() -> None:
    """Entry point of ``tune``, the same as ``bitkiln tune``."""
    _leave_quietly_until_heard()
    from bitkiln.pipeline import cli

    cli.tune_main()


def _leave_quietly_until_heard() -> None:
    """Python's own answer to Ctrl-C is a traceback; ``support.interrupts`` takes over when a command begins."""
    # What a shell started in the background ignores Ctrl-C, and so do we.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    # An exception in the midst of an import would become the importer's own error.
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
