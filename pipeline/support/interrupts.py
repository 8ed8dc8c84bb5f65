"""Ctrl-C and SIGTERM end a command within a second, whatever it is doing, and leave nothing behind.

An exception may not be raised anywhere: inside a compiler's callbacks it would become the compiler's own error, or a crash.
It is raised where we wait (``waiting``). Everywhere else the signal is only noted, and a thread of its own ends the process:
it kills the programs that run, deletes the temporary folders and leaves. The same happens to a command that takes too long
to unwind. Finished records and outputs are on disk by then, since those are written as a whole.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from bitkiln.targets import scratch

#: Seconds in which a command may unwind by itself, on a machine with a core to spare; on a loaded one, as many times as long
#: as it has processes to a core, up to the second figure.
GRACE, MOST_LOAD = 0.6, 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The user, or whoever runs us, wants us to end."""


@dataclass
class _State:
    number: int = 0
    #: Contexts of ``waiting`` that the main thread is in.
    waits: int = 0


_state = _State()
_leaving = threading.Lock()


#: What to do before this process ends, by when: programs are killed before their folders go.
_last_acts: list[tuple[int, Callable[[], None]]] = []


def at_the_end(function: Callable[[], None], order: int) -> None:
    """Call ``function`` when a signal ends this process; a smaller ``order`` comes first."""
    _last_acts.append((order, function))
    _last_acts.sort(key=lambda act: act[0])


def number() -> int:
    """The signal that has come, 0 where none has."""
    return _state.number


def exit_status() -> int:
    """What shells report of a program that a signal has ended."""
    return 128 + (_state.number or signal.SIGINT)


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Honour signals while the context lasts, from the main thread of a command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="interrupts", daemon=True)
    watcher.start()
    # Python writes the signal's number from the signal itself, while native code still runs; its handler comes after that.
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # What a shell started in the background ignores Ctrl-C, and so do we.
    heard = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    handlers = {each: signal.signal(each, _note) for each in heard}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(former)
        os.close(writer)
        watcher.join(5)
        os.close(reader)


@contextmanager
def waiting() -> Iterator[None]:
    """A signal that comes in this context, or came before it, raises Interrupted: nothing but Python runs in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.waits += 1
    try:
        if _state.number:
            raise Interrupted
        yield
        # What we waited for may have ended because it was killed.
        if _state.number:
            raise Interrupted
    finally:
        _state.waits -= 1


def _note(number: int, _frame: FrameType | None) -> None:
    again = bool(_state.number)
    _state.number = number
    if _state.waits and not again:
        raise Interrupted


def _watch(reader: int) -> None:
    """Wait for a signal, give the main thread its time or until a second one, and end the process."""
    if not _heard(reader, None):
        return
    if _heard(reader, _grace()) is not False:
        leave()


def _grace() -> float:
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return GRACE * min(MOST_LOAD, max(1.0, load))


def _heard(reader: int, seconds: float | None) -> bool | None:
    """True when a signal comes, None when none does in time, False when the command is over."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            return None
        word = os.read(reader, 1)
        if not word:
            return False
        if word[0] in SIGNALS:
            _state.number = _state.number or word[0]
            return True


def leave() -> NoReturn:
    """End this process and all it started, now, deleting what is temporary."""
    _leaving.acquire()  # Whoever comes second waits for the first to end it all.
    for _, act in _last_acts:
        act()
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\x1b[?25h")  # A live display hides the cursor.
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    # The interpreter's own way out waits for threads and runs other people's destructors.
    os._exit(exit_status())


at_the_end(scratch.remove_all, 1)
