"""What boards, trackers and their clients say to each other before TVM's RPC begins: who they are, and bounded messages.

Two ends that share a secret prove it to each other first. Neither sends the secret: each signs a number that the other has
just drawn (HMAC-SHA256), so nothing that was overheard is of use later.

    client              server
    PROVE, number  -->
                   <--  ASKS, number, proof
    proof          -->
                   <--  WELCOME

All that follows goes in messages that are numbered and signed, by a key of each direction that is made of the secret and of
both numbers: what somebody on the way alters, repeats, leaves out or adds ends the connection. It is not encrypted.

    length, signature of (number of the message, length, data), data

It runs on boards too: Python 3.9 or later, nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, Union

#: First words of a connection: prove that we share a secret; say what you are, which anybody may ask.
PROVE, IDENTIFY = b"BKP2", b"BKI1"
#: A server's answers to PROVE. It has no secret; it takes everybody; it asks for the proof; it is content with it.
REFUSES, OPEN, ASKS, WELCOME = b"R", b"O", b"A", b"W"
NUMBER_BYTES = PROOF_BYTES = 32
#: Bytes before the data of a signed message, and of the longest data.
HEAD_BYTES, MOST_DATA = 4 + PROOF_BYTES, 1 << 16
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


def prove(connection: socket.socket, secret: bytes, service: bytes, deadline: float) -> Signed:
    """A client's part; ``service`` is what it takes the server for. Gives the signed connection. Raises Refused, OSError."""
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
    return Signed(connection, *_keys(secret, service, ours, theirs))


def demand_proof(send: Callable[[bytes], Any], secret: bytes | None, service: bytes, is_open: bool) -> Conversation:
    """A server's part, after PROVE; comes to the keys of its Sealer and of its Opener. Raises Refused."""
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
    of_client, of_server = _keys(secret, service, theirs, ours)
    return of_server, of_client


def _keys(secret: bytes, service: bytes, client: bytes, server: bytes) -> tuple[bytes, bytes]:
    """With what the client's messages are signed, and the server's."""
    return _proof(secret, service, b"client signs", client, server), _proof(
        secret, service, b"server signs", client, server
    )


def _proof(secret: bytes, service: bytes, role: bytes, client: bytes, server: bytes) -> bytes:
    return hmac.new(secret, b"bitkiln " + service + b" " + role + client + server, hashlib.sha256).digest()


class Visitor:
    """A connection in its first seconds, read without ever waiting for it. ``begin`` starts the conversation with it."""

    def __init__(self, connection: socket.socket, peer: str, begin: Callable[[Visitor], Conversation]) -> None:
        self.connection: Connection = connection
        self.peer = peer
        self.deadline = time.monotonic() + GREETING_SECONDS
        self._buffer = b""
        self._conversation = begin(self)
        self._needed = next(self._conversation)
        connection.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send a few bytes, which a connection that has said little yet always takes."""
        self.connection.sendall(data)

    def sign(self, keys: tuple[bytes, bytes]) -> None:
        """What follows is signed with what ``demand_proof`` came to."""
        self.connection = Signed(self.connection, *keys)

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


# --- Signed connections --------------------------------------------------------------------------------------------------


class Sealer:
    """Signs what is sent. Processes that fork share the number of messages, so that each may have the last word."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = mmap.mmap(-1, 8)

    def seal(self, data: bytes) -> bytes:
        """``data`` as messages."""
        return b"".join(self._message(data[at : at + MOST_DATA]) for at in range(0, len(data), MOST_DATA))

    def _message(self, data: bytes) -> bytes:
        (number,) = struct.unpack_from("<Q", self._count)
        struct.pack_into("<Q", self._count, 0, number + 1)
        return struct.pack("<I", len(data)) + _signature(self._key, number, data) + data


class Opener:
    """Checks what arrives."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0
        self._buffer = bytearray()

    @property
    def lacking(self) -> int:
        """How many bytes the head, or the message, that is being received still needs."""
        return self._needed() - len(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """The data of the messages that ``data`` completes. Raises Refused for one that is not as the other end signed it."""
        self._buffer += data
        whole = bytearray()
        while len(self._buffer) > HEAD_BYTES and self.lacking <= 0:
            whole += self._open(self._needed())
        return bytes(whole)

    def _needed(self) -> int:
        if len(self._buffer) < HEAD_BYTES:
            return HEAD_BYTES
        (size,) = struct.unpack_from("<I", self._buffer)
        if not 0 < size <= MOST_DATA:
            raise Refused(f"a message of {size} bytes arrived: somebody on the way changes what is sent")
        return HEAD_BYTES + size

    def _open(self, end: int) -> bytes:
        signature, data = bytes(self._buffer[4:HEAD_BYTES]), bytes(self._buffer[HEAD_BYTES:end])
        if not hmac.compare_digest(signature, _signature(self._key, self._number, data)):
            raise Refused("a message's signature is wrong: somebody on the way changes what is sent")
        self._number += 1
        del self._buffer[:end]
        return data


def _signature(key: bytes, number: int, data: bytes) -> bytes:
    return hmac.digest(key, struct.pack("<QI", number, len(data)) + data, "sha256")


class Signed:
    """A connection whose bytes go in signed messages; as a socket to those who send and receive."""

    def __init__(self, connection: Any, sending: bytes, receiving: bytes) -> None:
        self._socket = connection
        self._sealer, self._opener = Sealer(sending), Opener(receiving)
        self._plain = b""
        self._seconds: float | None = None

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``. Raises OSError."""
        self._socket.sendall(self._sealer.seal(bytes(data)))

    def recv(self, size: int) -> bytes:
        """Up to ``size`` bytes, none where the connection has ended; within the time limit altogether. Raises OSError."""
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        while not self._plain:
            if deadline is not None:
                self._socket.settimeout(_left(deadline))
            found = self.pull()
            if found is None:
                return b""
            self._plain = found
        data, self._plain = self._plain[:size], self._plain[size:]
        return data

    def pull(self) -> bytes | None:
        """What one reading of the socket completes, None at the end. Raises OSError, Refused among them."""
        data = self._socket.recv(self._opener.lacking)
        return self._opener.feed(data) if data else None

    def settimeout(self, seconds: float | None) -> None:
        """As a socket's, for each call."""
        self._seconds = seconds
        self._socket.settimeout(seconds)

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._seconds = None
        self._socket.setblocking(flag)

    def setsockopt(self, *option: int) -> None:
        """As a socket's."""
        self._socket.setsockopt(*option)

    def fileno(self) -> int:
        """The socket's."""
        return int(self._socket.fileno())

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


#: What may be sent on and received from; the second where a proof was made.
Connection = Union[socket.socket, Signed]  # noqa: UP007 (Python 3.9 evaluates it)


# --- Messages ------------------------------------------------------------------------------------------------------------


def keep_alive(connection: socket.socket) -> None:
    """Have the system notice within 15 seconds that the other end's power or network is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 14_000)):
        with suppress(OSError, AttributeError):  # Not every system has all of them.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def receive(connection: Connection, size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes before ``deadline`` (of time.monotonic); raises OSError, TimeoutError among them."""
    data = bytearray()
    while len(data) < size:
        connection.settimeout(_left(deadline))
        chunk = connection.recv(min(size - len(data), 1 << 16))
        if not chunk:
            raise ConnectionError("it closed the connection")
        data += chunk
    return bytes(data)


def send_json(connection: Connection, message: Any, deadline: float) -> None:
    """One message: its length, then JSON."""
    data = json.dumps(message).encode()
    connection.settimeout(_left(deadline))
    connection.sendall(struct.pack("<i", len(data)) + data)


def receive_message(connection: Connection, most: int, deadline: float) -> bytes:
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
