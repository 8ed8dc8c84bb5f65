"""A tracker of our own: TVM's, behind a proof of the secret, and without ghosts.

``python -m bitkiln.pipeline.boards.tracker_server`` runs one until its standard input closes, so it never outlives whoever
started it; the secret is the first line it reads, the port it took the first it prints.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.tracker import MAGIC
from bitkiln.pipeline.device import board_wire as wire
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support import interrupts, processes
from bitkiln.pipeline.support.checked import Malformed, Name, Port, convert

#: Connections at once; more are refused, so that an idle crowd does not use up this process's files.
MOST_CONNECTIONS = 512
#: Seconds for a tracker's process to begin.
STARTUP = 60.0
#: How often a tracker is started that is killed meanwhile, as the system does when memory is short.
ATTEMPTS = 3


@dataclass(frozen=True)
class _Info:
    key: Name
    addr: tuple[Name | None, Port]


#: What a tracker is told, by the message's first word, TVM's TrackerCode, and its length.
_MESSAGES: dict[tuple[int, int], Any] = {
    (1, 1): tuple[int],  # PING
    (3, 3): tuple[int, Name, tuple[Port, Name]],  # PUT
    (3, 4): tuple[int, Name, tuple[Port, Name], Name | None],
    (4, 4): tuple[int, Name, Name, int],  # REQUEST
    (5, 2): tuple[int, _Info],  # UPDATE_INFO
    (6, 1): tuple[int],  # SUMMARY
    (7, 1): tuple[int],  # GET_PENDING_MATCHKEYS
}
_UPDATE_INFO = 5


class _Killed(BoardError):
    """A tracker's process was ended by somebody else while it began."""


class TrackerProcess:
    """A tracker of our own, in a process that ends with this one and is started again, at the same port, if it dies.

    ``secret`` is what clients and boards have to share with it; None lets everybody in.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, secret: bytes | None = None) -> None:
        self._secret = secret
        self._process, taken = _start(host, port, secret)
        self.address = Address(host, taken, secret)
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="tracker-keeper", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        """Of the process that serves now."""
        return self._process.pid

    def stop(self) -> None:
        """End the tracker."""
        self._stopping.set()
        self._keeper.join(STARTUP + 10)
        _end(self._process)

    def _keep(self) -> None:
        while not self._stopping.wait(0.5) and not interrupts.number():
            if self._process.poll() is not None:
                _end(self._process)
                with suppress(BoardError, OSError):  # Tried again at the next look.
                    self._process, _ = _start(self.address.host, self.address.port, self._secret)


def _start(host: str, port: int, secret: bytes | None) -> tuple[subprocess.Popen[str], int]:
    """A process that serves as tracker, and the port it took; one that is killed before it says so is started again."""
    for _ in range(ATTEMPTS - 1):
        with suppress(_Killed):
            return _try(host, port, secret)
    return _try(host, port, secret)


def _try(host: str, port: int, secret: bytes | None) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "bitkiln.pipeline.boards.tracker_server", host, str(port)]
    pipe = subprocess.PIPE
    process = processes.start(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin and process.stdout and process.stderr
    with suppress(BrokenPipeError):  # It is dead already; its complaint follows.
        process.stdin.write((secret or b"").decode() + "\n")
        process.stdin.flush()
    ready = select.select([process.stdout], [], [], STARTUP)[0]
    line = process.stdout.readline().strip() if ready else ""
    if line.isdigit():
        return process, int(line)
    with suppress(subprocess.TimeoutExpired):  # It may be about to end by itself: its own status says how.
        process.wait(1)
    killed = process.poll() == -signal.SIGKILL
    processes.kill(process)
    complaint = process.stderr.read().strip().splitlines()
    _end(process)
    what = f"cannot start a tracker on {host}: {complaint[-1] if complaint else 'it gives no sign'}"
    raise _Killed(what) if killed else BoardError(what)


def _end(process: subprocess.Popen[str]) -> None:
    processes.kill(process)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()


# --- In the process ------------------------------------------------------------------------------------------------------


def main(host: str, port: int) -> None:
    """Serve as a tracker on the first free port from ``port`` on (0 takes any) until standard input closes."""
    secret = sys.stdin.readline().strip().encode() or None
    listener = _listen(host, port)
    asyncio.set_event_loop(asyncio.new_event_loop())
    handler = _handler(listener, secret)
    print(listener.getsockname()[1], flush=True)
    # Nobody reads the log: a full pipe would stop the tracker.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    threading.Thread(target=_end_with_input, daemon=True).start()
    handler.run()


def _handler(listener: socket.socket, secret: bytes | None) -> Any:
    """TVM's tracker on ``listener``, in which each connection begins with a proof and only sensible messages count."""
    from tvm.rpc.tracker import TCPEventHandler, TrackerServerHandler  # Takes a second, which clients do without.

    class Connection(TCPEventHandler):
        """One client or board."""

        def __init__(self, tracker: Any, connection: socket.socket, address: tuple[str, int]) -> None:
            wire.keep_alive(connection)
            self._sealer: wire.Sealer | None = None
            self._opener: wire.Opener | None = None
            self._greeting: wire.Conversation | None = self._greet(connection)
            self._needed = next(self._greeting)
            self._early = b""
            super().__init__(tracker, connection, address)
            self._ioloop.call_later(wire.GREETING_SECONDS, self._hang_up_on_the_slow)

        def on_message(self, message: bytes) -> None:
            """Bytes have come."""
            try:
                message = self._opener.feed(message) if self._opener else message
            except OSError:
                self.close()
                return
            if self._greeting is None:
                super().on_message(message)
                return
            self._early += message
            while self._greeting is not None and len(self._early) >= self._needed:
                piece, self._early = self._early[: self._needed], self._early[self._needed :]
                try:
                    self._needed = self._greeting.send(piece)
                except StopIteration:
                    self._greeting = None
                    super().on_message(MAGIC)
                except OSError:
                    self.close()
                    return
            if self._greeting is None and self._early:
                super().on_message(self._early)

        def write_message(self, message: bytes, binary: bool = True) -> None:
            """Send ``message``."""
            super().write_message(self._sealer.seal(message) if self._sealer else message, binary)

        def call_handler(self, args: Any) -> None:
            """A message has come; one that makes no sense ends the connection."""
            if not isinstance(args, list) or not args or not isinstance(args[0], int):
                raise Malformed("no message")
            convert(args, _MESSAGES.get((args[0], len(args)), tuple[()]))
            if args[0] == _UPDATE_INFO:
                self._banish_ghosts(args[1]["addr"])
            super().call_handler(args)

        def _greet(self, connection: socket.socket) -> wire.Conversation:
            if secret is not None:
                if (yield 4) != wire.PROVE:
                    raise wire.Refused("it proves nothing")
                sending, receiving = yield from wire.demand_proof(connection.sendall, secret, b"tracker", is_open=False)
                self._sealer, self._opener = wire.Sealer(sending), wire.Opener(receiving)
                # What came with the proof is the beginning of what is signed.
                self._early = self._opener.feed(self._early)
            word = yield 4
            if word == wire.PROVE:
                connection.sendall(wire.OPEN)
            if word != MAGIC:
                raise OSError("it speaks another protocol")

        def _hang_up_on_the_slow(self) -> None:
            if self._greeting is not None:
                self.close()

        def _banish_ghosts(self, address: list[Any]) -> None:
            """A board that registers has no other connection, whatever the system still believes of an old one."""
            for other in list(self._tracker._connections):
                if other is not self and other.summary().get("addr") == address:
                    other.close()

    class Tracker(TrackerServerHandler):
        """The tracker."""

        def _on_event(self, _: Any) -> None:
            while True:
                try:
                    connection, address = self._sock.accept()
                except OSError:
                    return
                if len(self._connections) >= MOST_CONNECTIONS:
                    connection.close()
                    continue
                with suppress(OSError):  # It left already.
                    Connection(self, connection, address)

    return Tracker(listener, "")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + 10) if port else (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(64)
            return listener
        except OSError as error:
            listener.close()
            reason = error
    sys.exit(f"no port of {host} from {port} on is free ({reason})")


def _end_with_input() -> None:
    while sys.stdin.buffer.read(512):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
