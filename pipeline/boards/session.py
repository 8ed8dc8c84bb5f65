"""A conversation with one board over TVM's RPC, with a time limit that holds on this side too."""

from __future__ import annotations

import json
import logging
import select
import socket
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from bitkiln.pipeline.boards.tracker import Address, NoBoard, TrackerClient
from bitkiln.pipeline.errors import BoardError

#: Seconds by which the board may pass its session's limit before we hang up.
GRACE = 5.0


class Session:
    """A board that is ours until closed. Raises NoBoard when there is none; calls raise BoardError when it is lost or its
    time is over.
    """

    def __init__(self, tracker: TrackerClient, key: str, seconds: float, wait: float) -> None:
        from tvm import rpc  # Takes a second: commands that talk to no board do without.

        offer = tracker.request(key, wait)
        self.address = offer.address
        self.board = f"{key} at {offer.address}"
        self._functions: dict[str, Any] = {}
        self._relay = Relay(offer.address, seconds + GRACE)
        try:
            self._remote = rpc.connect("127.0.0.1", self._relay.port, offer.secret, session_timeout=int(seconds + 1))
        except Exception as error:
            self._relay.close()
            raise NoBoard(f"board {self.board} does not take our session: {_reason(error)}")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the board back."""
        # Dropping a remote function tells the board and waits for its answer with Python's lock held, which the relay
        # needs; on a connection that is cut already it does neither.
        self._relay.close()
        self._functions.clear()
        self._remote = None

    def call(self, function: str, *arguments: str) -> Any:
        """Call ``function`` on the board and parse the JSON it gives."""

        def run() -> str:
            if function not in self._functions:
                self._functions[function] = self._remote.get_function(function)
            return self._functions[function](*arguments)

        return json.loads(self._guard(run))

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
            raise BoardError(f"board {self.board} failed: {_reason(error)}")


_open: weakref.WeakSet[Relay] = weakref.WeakSet()


def hang_up_all() -> None:
    """Cut every session of this process: whoever waits in one gets a BoardError."""
    for relay in list(_open):
        relay.close()


class Relay:
    """Hands a connection on to a board and cuts it when its time is over: TVM's client itself waits for ever.

    ``port`` on loopback takes one connection.
    """

    def __init__(self, address: Address, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        try:
            self._board = socket.create_connection((address.host, address.port), timeout=10)
        except OSError as error:
            raise NoBoard(f"cannot reach the board at {address} that the tracker named ({error.strerror or error})")
        self._board.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self._closer, self._closed = socket.socketpair()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="board-relay", daemon=True)
        self._thread.start()
        _open.add(self)

    def close(self) -> None:
        """Hang up."""
        self._closer.close()
        self._thread.join(10)

    def _run(self) -> None:
        try:
            client, _ = self._listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                self._hand_on(client)
        except OSError as error:
            logging.getLogger(__name__).debug("relay ended: %s", error)
        finally:
            for end in (self._listener, self._board, self._closed):
                end.close()

    def _hand_on(self, client: socket.socket) -> None:
        deadline = time.monotonic() + self.seconds
        other = {client: self._board, self._board: client}
        for end in other:
            end.settimeout(30)
        while True:
            ready = select.select([*other, self._closed], [], [], max(0.0, deadline - time.monotonic()))[0]
            self.expired = not ready
            if self.expired or self._closed in ready:
                return
            for end in ready:
                data = end.recv(1 << 18)
                if not data:
                    return
                other[end].sendall(data)


def _reason(error: Exception) -> str:
    """The line of an error of TVM's that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("RPCError: Error caught", "File ", "Traceback"))]
    return (useful or lines or [type(error).__name__])[-1]
