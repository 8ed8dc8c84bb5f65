"""A conversation with one board over TVM's RPC, with a time limit that holds on this side too."""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bitkiln.pipeline.boards import answers
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.tracker import NoBoard, Offer, TrackerClient
from bitkiln.pipeline.device import board_wire as wire
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.text import printable

_log = logging.getLogger(__name__)

#: With which TVM's clients begin.
RPC_MAGIC = 0xFF271
#: How often a session is asked for. The process that a board forks for it may die before the first answer: memory, a signal.
OPENINGS = 3
#: More than any network's results; a board that sends more in a session sends without end.
MOST_BYTES = 1 << 30
#: Seconds by which the board may pass its session's limit before we hang up.
GRACE = 5.0


class Session:
    """An exclusive session on a board; ``close`` releases it.

    Raises NoBoard when there is none; calls raise BoardError when it is lost or its
    time is over.
    """

    def __init__(
        self, tracker: TrackerClient, key: str, seconds: float, wait: float, lines: Lines | None = None
    ) -> None:
        """``lines`` may cut it, also while it is being opened."""
        self._lines = lines or Lines()
        self._functions: dict[str, Any] = {}
        deadline = time.monotonic() + wait
        refusals: list[NoBoard] = []
        while len(refusals) < OPENINGS:
            self._lines.check()
            try:
                offer = tracker.request(key, max(0.0, deadline - time.monotonic()))
            except NoBoard as error:
                raise refusals[-1] if refusals else error
            try:
                self._open(offer, key, seconds)
                return
            except NoBoard as refusal:
                refusals.append(refusal)
        raise refusals[-1]

    def _open(self, offer: Offer, key: str, seconds: float) -> None:
        from tvm import rpc  # Takes a second: commands that talk to no board do without.

        self.address = offer.address
        self.board = f"{key} at {offer.address}"
        key_words = f"client:{offer.secret} -timeout={int(seconds + 1)}".encode()
        greeting = struct.pack("<ii", RPC_MAGIC, len(key_words)) + key_words
        self._relay = Relay(offer.address, seconds + GRACE, greeting)
        self._lines.add(self._relay)
        try:
            self._remote = rpc.connect("127.0.0.1", self._relay.port, offer.secret, session_timeout=int(seconds + 1))
        except Exception as error:
            self._hang_up()
            raise NoBoard(f"board {self.board} does not take our session: {self._relay.altered or _reason(error)}")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hang_up(self) -> None:
        self._relay.close()
        self._lines.remove(self._relay)

    def close(self) -> None:
        """Give the board back."""
        # Dropping a remote function tells the board and waits for its answer with Python's lock held, which the relay
        # needs; on a connection that is cut already it does neither.
        self._hang_up()
        self._functions.clear()
        self._remote = None

    def call(self, function: str, *arguments: str) -> Any:
        """Call ``function`` on the board and parse the JSON it gives."""

        def run() -> str:
            if function not in self._functions:
                self._functions[function] = self._remote.get_function(function)
            return self._functions[function](*arguments)

        return answers.parsed(self._guard(run), f"board {self.board}")

    def upload(self, name: str, content: Path | bytes) -> None:
        """Put a file into the session's folder."""
        data = bytearray(content.read_bytes() if isinstance(content, Path) else content)
        self._guard(lambda: self._remote.upload(data, name))

    def download(self, name: str) -> bytes:
        """Get a file from the session's folder."""
        return bytes(self._guard(lambda: self._remote.download(name)))

    def _guard(self, action: Any) -> Any:
        try:
            return action()
        except Exception as error:
            if self._relay.expired:
                raise BoardError(f"board {self.board} gave no answer in {self._relay.seconds:g} s")
            if self._relay.flooded:
                raise BoardError(f"board {self.board} sent more than {MOST_BYTES >> 20} MiB: it was cut off")
            raise BoardError(f"board {self.board} failed: {self._relay.altered or _reason(error)}")


#: Bytes in which a board says what it is.
MOST_IDENTITY = 1 << 18


def ask(address: Address) -> dict[str, Any]:
    """Identity and health of the board at ``address``, which it tells everybody. Raises NoBoard, BoardError."""
    deadline = time.monotonic() + wire.GREETING_SECONDS
    try:
        with socket.create_connection((address.host, address.port), timeout=wire.GREETING_SECONDS) as board:
            board.sendall(wire.IDENTIFY)
            text = wire.receive_message(board, MOST_IDENTITY, deadline)
    except OSError as error:
        raise NoBoard(f"the board at {address} gives no answer ({error.strerror or error})") from None
    return answers.identity(answers.parsed(text, f"board {address}"), f"board {address}")


class Lines:
    """The connections of some sessions, which ``end`` cuts from any thread: whoever waits in one gets a BoardError."""

    def __init__(self) -> None:
        self._open: set[Relay] = set()
        self._ended = False

    def check(self) -> None:
        """Raise BoardError after the end."""
        if self._ended:
            raise BoardError("the sessions with the boards were ended")

    def add(self, relay: Relay) -> None:
        """A connection that was opened; it is cut at once after the end."""
        self._open.add(relay)
        if self._ended:
            relay.close()

    def remove(self, relay: Relay) -> None:
        """One that was closed."""
        self._open.discard(relay)

    def end(self) -> None:
        """Cut all connections, and those opened later."""
        self._ended = True
        for relay in list(self._open):
            relay.cut()


def _reach(address: Address) -> wire.Connection:
    """A connection to a board that has proved to share our secret, where there is one. Raises NoBoard."""
    try:
        board = socket.create_connection((address.host, address.port), timeout=wire.GREETING_SECONDS)
    except OSError as error:
        raise NoBoard(
            f"cannot reach the board at {address} that the tracker named ({error.strerror or error})"
        ) from None
    try:
        wire.keep_alive(board)
        if address.secret is not None:
            return wire.prove(board, address.secret, b"board", time.monotonic() + wire.GREETING_SECONDS)
        return board
    except OSError as error:
        board.close()
        what = "is no board of yours" if isinstance(error, wire.Refused) else "takes no session"
        older = "; what an older bitkiln set up has to be set up again (bitkiln boards setup)"
        raise NoBoard(f"what listens at {address} {what}: {error}{older if address.secret else ''}") from None


class Relay:
    """Hands a connection on to a board and cuts it when its time is over: TVM's client itself waits for ever.

    The board has proved who it is, and we who we are, when this is made. ``port`` on loopback takes one connection, which has
    to begin with ``greeting``: others on this machine may be faster.
    """

    def __init__(self, address: Address, seconds: float, greeting: bytes = b"") -> None:
        self.seconds = seconds
        self.expired = self.flooded = False
        #: Why what the board said was not believed, where it was not.
        self.altered = ""
        self._greeting = greeting
        self._board = _reach(address)
        self._board.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closer, self._closed = socket.socketpair()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="board-relay", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Have the relay's thread hang up, without waiting for it."""
        self._closer.close()

    def close(self) -> None:
        """Hang up."""
        self.cut()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            with self._expected() as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._board.sendall(self._greeting)
                self._hand_on(client)
        except OSError as error:
            self.altered = str(error) if isinstance(error, wire.Refused) else ""
            _log.debug("relay ended: %s", error)
        finally:
            for end in (self._listener, self._board, self._closed):
                end.close()

    def _expected(self) -> socket.socket:
        """The connection that begins as ours does; its first bytes are taken. Raises OSError when it does not come."""
        deadline = time.monotonic() + 10
        while True:
            self._listener.settimeout(max(0.01, deadline - time.monotonic()))
            client, _ = self._listener.accept()
            try:
                soon = min(deadline, time.monotonic() + 2)
                if wire.receive(client, len(self._greeting), soon) == self._greeting:
                    return client
            except OSError:
                pass
            client.close()

    def _hand_on(self, client: socket.socket) -> None:
        deadline = time.monotonic() + self.seconds
        other: dict[wire.Connection, wire.Connection] = {client: self._board, self._board: client}
        sent = 0
        for end in other:
            end.settimeout(30)
        while True:
            ready = select.select([*other, self._closed], [], [], max(0.0, deadline - time.monotonic()))[0]
            self.expired = not ready
            if self.expired or self._closed in ready:
                return
            for end in ready:
                # A message that is not whole yet is waited for above, where the time limit and ``cut`` are seen.
                data = end.pull() if isinstance(end, wire.Signed) else end.recv(1 << 18) or None
                sent += len(data or b"") if end is self._board else 0
                self.flooded = sent > MOST_BYTES
                if data is None or self.flooded:
                    return
                other[end].sendall(data)


def _reason(error: Exception) -> str:
    """The line of an error of TVM's, or of a board's, that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("RPCError: Error caught", "File ", "Traceback"))]
    return printable((useful or lines or [type(error).__name__])[-1], 400)
