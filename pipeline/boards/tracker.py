"""TVM's RPC tracker as its clients see it: which boards there are, and getting one. What it says is checked."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bitkiln.pipeline.boards.access import INSECURE, Address
from bitkiln.pipeline.device import board_wire as wire
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.checked import Count, Malformed, Name, Port, decode

MAGIC = struct.pack("<i", 0x2F271)
REQUEST, SUMMARY = 4, 6
#: Seconds a tracker has to answer what it can answer at once.
PATIENCE = 10.0
#: Bytes of an answer: some ten thousand boards.
MOST_BYTES = 1 << 20


class NoBoard(BoardError):
    """There is no board to be had: no tracker, none with the key, none free. Waiting may help."""


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
    """A board the tracker gave us: where it is, and the name by which it accepts whom the tracker sent."""

    address: Address
    secret: str


# --- What a tracker answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    key: Name
    addr: tuple[Name, Port]


@dataclass(frozen=True)
class _Queue:
    free: Count
    pending: Count


@dataclass(frozen=True)
class _Summary:
    server_info: list[_Server]
    queue_info: dict[Name, _Queue]


_SUMMARY = tuple[int, _Summary]
_OFFER = tuple[int, tuple[Name, Port, Name]]


class TrackerClient:
    """A tracker as its clients see it. Every call opens a connection of its own; all raise NoBoard."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def boards(self) -> list[Boards]:
        """All boards by key."""
        summary: _Summary = self._ask([SUMMARY], _SUMMARY, PATIENCE)[1]
        addresses: dict[str, dict[str, None]] = {}
        for server in summary.server_info:
            key = server.key.removeprefix("server:")
            addresses.setdefault(key, {})[str(Address(*server.addr))] = None
        queues = summary.queue_info
        idle = _Queue(0, 0)
        return [
            Boards(key, len(found), queues.get(key, idle).free, queues.get(key, idle).pending, tuple(found))
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
        try:
            _, (host, port, secret) = self._ask([REQUEST, key, f"uid {os.getuid()}", 1], _OFFER, wait)
        except TimeoutError:
            raise NoBoard(f"no board {key!r} of the tracker {self.address} became free within {wait:g} s") from None
        return Offer(Address(host, port, self.address.secret), secret)

    def _ask(self, message: list[Any], answer: Any, seconds: float) -> Any:
        """The tracker's answer as a value of the type ``answer``."""
        with self._connect() as connection:
            try:
                deadline = time.monotonic() + seconds
                wire.send_json(connection, message, deadline)
                return decode(wire.receive_message(connection, MOST_BYTES, deadline), answer, MOST_BYTES)
            except TimeoutError:
                if message[0] == REQUEST:
                    raise
                raise NoBoard(f"the tracker at {self.address} gives no answer in {seconds:g} s") from None
            except OSError as error:
                raise NoBoard(f"lost the tracker at {self.address} ({error})") from None
            except Malformed as problem:
                raise NoBoard(f"the tracker at {self.address} answers nonsense: {problem}") from None

    @contextmanager
    def _connect(self) -> Iterator[wire.Connection]:
        deadline = time.monotonic() + PATIENCE
        try:
            connection = socket.create_connection((self.address.host, self.address.port), timeout=PATIENCE)
        except OSError as error:
            raise NoBoard(
                f"no tracker at {self.address} ({error.strerror or error}): start one with "
                f"`bitkiln boards tracker --host {self.address.host} --port {self.address.port}`"
            ) from None
        with connection:
            yield self._greet(connection, deadline)

    def _greet(self, bare: socket.socket, deadline: float) -> wire.Connection:
        """The connection, signed where there is a secret."""
        secret = self.address.secret
        try:
            wire.keep_alive(bare)
            connection = bare if secret is None else wire.prove(bare, secret, b"tracker", deadline)
            connection.sendall(MAGIC)
            if wire.receive(connection, len(MAGIC), deadline) != MAGIC:
                raise OSError("it speaks another protocol")
            return connection
        except wire.Refused as error:
            raise NoBoard(f"what listens at {self.address} is no tracker of yours: {error}") from None
        except OSError as error:
            hint = f"; {INSECURE}{self.address} uses a tracker without a secret, and trusts everybody who reaches it"
            raise NoBoard(
                f"what listens at {self.address} is no RPC tracker, or none that shares your secret ({error})"
                + (hint if self.address.secret is not None else "")
            ) from None
