"""What boards, trackers and their clients say to each other before TVM's RPC begins: who they are, and bounded messages.

Two ends that share a secret prove it to each other first. Neither sends the secret: each signs a number that the other has
just drawn (HMAC-SHA256), so nothing that was overheard is of use later. What follows is not encrypted.

    client              server
    PROVE, number  -->
                   <--  ASKS, number, proof
    proof          -->
                   <--  WELCOME

It runs on boards too: Python 3.9 or later, nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

#: First words of a connection: prove that we share a secret; say what you are, which anybody may ask.
PROVE, IDENTIFY = b"BKP1", b"BKI1"
#: A server's answers to PROVE. It has no secret; it takes everybody; it asks for the proof; it is content with it.
REFUSES, OPEN, ASKS, WELCOME = b"R", b"O", b"A", b"W"
NUMBER_BYTES = PROOF_BYTES = 32
#: Seconds for all that comes before TVM's RPC.
GREETING_SECONDS = 5.0

_SECRET = re.compile(rb"[0-9a-f]{64}\n?")


class Refused(OSError):
    """The other end does not share our secret, or has none."""


# --- Secrets -------------------------------------------------------------------------------------------------------------


def new_secret() -> bytes:
    """A secret as its file holds it: 256 random bits in hexadecimal digits."""
    return os.urandom(32).hex().encode()


def read_secret(path: Path) -> bytes:
    """The secret in a file that nobody else can read. Raises OSError, and ValueError for a file that will not do."""
    # Opening a pipe waits for whoever writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077:
            raise ValueError(f"{path}: others can read this secret; make a new one where they cannot (mode 0600)")
        content = os.read(descriptor, 80)
    finally:
        os.close(descriptor)
    if not _SECRET.fullmatch(content):
        raise ValueError(f"{path}: holds no secret of 64 hexadecimal digits")
    return content.strip()


def write_secret(path: Path) -> bytes:
    """Make a secret and its file, which only this user can read. Raises OSError; FileExistsError where there is one."""
    secret = new_secret()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret + b"\n")
    return secret


# --- Proofs --------------------------------------------------------------------------------------------------------------

#: A conversation that is read as it comes: yields how many bytes it needs next, is sent them.
Conversation = Generator[int, bytes, Any]


def prove(connection: socket.socket, secret: bytes, service: bytes, deadline: float) -> None:
    """A client's part; ``service`` is what it takes the server for. Raises Refused, OSError."""
    ours = os.urandom(NUMBER_BYTES)
    connection.settimeout(_left(deadline))
    connection.sendall(PROVE + ours)
    answer = receive(connection, 1, deadline)
    if answer == OPEN:
        raise Refused("it takes everybody and asks for no secret")
    if answer != ASKS:
        raise Refused("it has no secret to share" if answer == REFUSES else "it speaks another protocol")
    theirs = receive(connection, NUMBER_BYTES, deadline)
    if not hmac.compare_digest(
        receive(connection, PROOF_BYTES, deadline), _proof(secret, service, b"server", ours, theirs)
    ):
        raise Refused("it has another secret than we")
    connection.sendall(_proof(secret, service, b"client", ours, theirs))
    if receive(connection, 1, deadline) != WELCOME:
        raise Refused("it does not take our proof")


def demand_proof(send: Callable[[bytes], Any], secret: bytes | None, service: bytes, is_open: bool) -> Conversation:
    """A server's part, after PROVE. Raises Refused."""
    theirs = yield NUMBER_BYTES
    if secret is None:
        send(OPEN if is_open else REFUSES)
        raise Refused("there is no secret here")
    ours = os.urandom(NUMBER_BYTES)
    send(ASKS + ours + _proof(secret, service, b"server", theirs, ours))
    proof = yield PROOF_BYTES
    if not hmac.compare_digest(proof, _proof(secret, service, b"client", theirs, ours)):
        raise Refused("it has another secret")
    send(WELCOME)


def _proof(secret: bytes, service: bytes, role: bytes, client: bytes, server: bytes) -> bytes:
    return hmac.new(secret, b"bitkiln " + service + b" " + role + client + server, hashlib.sha256).digest()


class Visitor:
    """A connection in its first seconds, read without ever waiting for it. ``begin`` starts the conversation with it."""

    def __init__(self, connection: socket.socket, peer: str, begin: Callable[[Visitor], Conversation]) -> None:
        self.connection, self.peer = connection, peer
        self.deadline = time.monotonic() + GREETING_SECONDS
        self._buffer = b""
        self._conversation = begin(self)
        self._needed = next(self._conversation)
        connection.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send a few bytes, which a connection that has said little yet always takes."""
        self.connection.sendall(data)

    def read(self) -> tuple[bool, Any]:
        """Take what has come: whether the conversation is over, and what it came to. Raises OSError, ValueError."""
        while True:
            try:
                chunk = self.connection.recv(self._needed - len(self._buffer))
            except BlockingIOError:
                return False, None
            if not chunk:
                raise OSError("it hung up")
            self._buffer += chunk
            if len(self._buffer) == self._needed:
                try:
                    self._needed = self._conversation.send(self._buffer)
                except StopIteration as over:
                    return True, over.value
                self._buffer = b""

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


# --- Messages ------------------------------------------------------------------------------------------------------------


def keep_alive(connection: socket.socket) -> None:
    """Have the system notice within 15 seconds that the other end's power or network is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 14_000)):
        with suppress(OSError, AttributeError):  # Not every system has all of them.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes before ``deadline`` (of time.monotonic); raises OSError, TimeoutError among them."""
    data = bytearray()
    while len(data) < size:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(min(size - len(data), 1 << 16))
        if not chunk:
            raise ConnectionError("it closed the connection")
        data += chunk
    return bytes(data)


def send_json(connection: socket.socket, message: Any, deadline: float) -> None:
    """One message: its length, then JSON."""
    data = json.dumps(message).encode()
    connection.settimeout(_left(deadline))
    connection.sendall(struct.pack("<i", len(data)) + data)


def receive_message(connection: socket.socket, most: int, deadline: float) -> bytes:
    """The bytes of one message. Raises OSError, also where it is longer than ``most``."""
    (size,) = struct.unpack("<i", receive(connection, 4, deadline))
    if not 0 <= size <= most:
        raise OSError(f"it sends a message of {size} bytes")
    return receive(connection, size, deadline)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
