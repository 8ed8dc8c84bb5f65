"""TVM's RPC tracker: asking one for boards, and running one.

``python -m bitkiln.pipeline.boards.tracker`` runs a tracker until its standard input closes, so it never outlives whoever
started it; the port it took is the first line it prints.
"""

from __future__ import annotations

import getpass
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bitkiln.pipeline.errors import BoardError

MAGIC = 0x2F271
SUCCESS, REQUEST, SUMMARY = 0, 4, 6


class NoBoard(BoardError):
    """There is no board to be had: no tracker, none with the key, none free. Waiting may help."""


#: Seconds a tracker has to answer what it can answer at once.
PATIENCE = 10.0


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """``HOST:PORT``; raises BoardError."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise BoardError(f"{text!r} is not an address of the form HOST:PORT")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Boards:
    """The boards of one key at a tracker: how many there are, how many are free now, how many clients wait."""

    key: str
    count: int
    free: int
    waiting: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """A board the tracker gave us: where it is, and the secret that makes it accept us."""

    address: Address
    secret: str


class TrackerClient:
    """A tracker as its clients see it. Every call opens a connection of its own; all raise NoBoard."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def boards(self) -> list[Boards]:
        """All boards by key."""
        with self._connect() as connection:
            code, summary = _call(connection, [SUMMARY], self.address)
        if code != SUCCESS:
            raise NoBoard(f"the tracker at {self.address} answered {code} to a question for its boards")
        addresses: dict[str, list[str]] = {}
        for server in summary["server_info"]:
            key = server["key"].removeprefix("server:")
            addresses.setdefault(key, []).append(":".join(map(str, server["addr"])))
        queues = summary["queue_info"]
        return [
            Boards(
                key, len(found), queues.get(key, {}).get("free", 0), queues.get(key, {}).get("pending", 0), tuple(found)
            )
            for key, found in sorted(addresses.items())
        ]

    def require(self, key: str) -> Boards:
        """The boards of ``key``; raises NoBoard where there are none, naming the keys there are."""
        boards = self.boards()
        for found in boards:
            if found.key == key:
                return found
        there = f"it has {', '.join(found.key for found in boards)}" if boards else "it has no boards at all"
        raise NoBoard(f"no board with the key {key!r} at the tracker {self.address}: {there}")

    def request(self, key: str, wait: float) -> Offer:
        """A board of ``key``, as soon as one is free, within ``wait`` seconds."""
        self.require(key)
        with self._connect() as connection:
            connection.settimeout(wait)
            try:
                _, offer = _call(connection, [REQUEST, key, getpass.getuser(), 1], self.address)
            except TimeoutError:
                raise NoBoard(f"no board {key!r} of the tracker {self.address} became free within {wait:g} s")
        return Offer(Address(offer[0], offer[1]), offer[2])

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection((self.address.host, self.address.port), timeout=PATIENCE)
        except OSError as error:
            start = f"python -m tvm.exec.rpc_tracker --host {self.address.host} --port {self.address.port}"
            raise NoBoard(
                f"no tracker at {self.address} ({error.strerror or error}): start one with "
                f"`{start} --port-end {self.address.port + 10}`"
            )
        try:
            connection.sendall(struct.pack("<i", MAGIC))
            if _receive(connection, 4) != struct.pack("<i", MAGIC):
                raise OSError("it speaks another protocol")
        except OSError as error:
            connection.close()
            raise NoBoard(f"what listens at {self.address} is no RPC tracker ({error})")
        return connection


def _call(connection: socket.socket, message: list[Any], address: Address) -> Any:
    data = json.dumps(message).encode()
    try:
        connection.sendall(struct.pack("<i", len(data)) + data)
        (size,) = struct.unpack("<i", _receive(connection, 4))
        return json.loads(_receive(connection, size))
    except TimeoutError:
        raise
    except OSError as error:
        raise NoBoard(f"lost the tracker at {address} ({error})")


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("it closed the connection")
        data += chunk
    return data


class TrackerProcess:
    """A tracker of our own, in a process that ends with this one and is started again, at the same port, if it dies."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._process, taken = _start(host, port)
        self.address = Address(host, taken)
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
        self._keeper.join(90)
        _end(self._process)

    def _keep(self) -> None:
        while not self._stopping.wait(0.5):
            if self._process.poll() is not None:
                _end(self._process)
                with suppress(BoardError):  # Tried again at the next look.
                    self._process, _ = _start(self.address.host, self.address.port)


def _start(host: str, port: int) -> tuple[subprocess.Popen[str], int]:
    """A process that serves as tracker, and the port it took."""
    command = [sys.executable, "-m", "bitkiln.pipeline.boards.tracker", host, str(port)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    assert process.stdout and process.stderr
    ready = select.select([process.stdout], [], [], 60)[0]
    line = process.stdout.readline().strip() if ready else ""
    if line.isdigit():
        return process, int(line)
    process.kill()
    complaint = process.stderr.read().strip().splitlines()
    _end(process)
    raise BoardError(f"cannot start a tracker on {host}: {complaint[-1] if complaint else 'it gives no sign'}")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def main(host: str, port: int) -> None:
    """Serve as a tracker on the first free port from ``port`` on (0 takes any) until standard input closes."""
    import asyncio

    from tvm.rpc.tracker import TrackerServerHandler

    listener = _listen(host, port)
    print(listener.getsockname()[1], flush=True)
    # Nobody reads the log: a full pipe would stop the tracker.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.set_event_loop(asyncio.new_event_loop())
    TrackerServerHandler(listener, "").run()


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
