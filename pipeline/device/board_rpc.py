"""TVM's RPC as a board's server needs it, in Python alone: no library of TVM's, so any Linux board of any width will do.

The protocol is that of TVM 0.27 (its version string is "0.8.0"), as stated by src/runtime/rpc/minrpc/rpc_reference.h and
rpc_endpoint.cc there. A packet is a 64-bit length, a 32-bit code and a body; a body holds values, each a 32-bit type and its
bytes, all little-endian. A client asks for a function by name, gets a handle, and calls it.

TVM's own server offers every function of its runtime, which runs whatever a client sends. This one offers the functions that
it is told, and files of one folder by plain names. Needs Python 3.7; imports nothing of ours.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: The protocol's version, as client and server compare it.
VERSION = "0.8.0"
#: The longest packet taken, bytes: no network that a board can hold needs more.
LONGEST_PACKET = 1 << 30
#: The most values of one call: TVM's clients send a handful.
MOST_VALUES = 64

# Codes of packets (RPCCode).
SHUTDOWN, INIT_SERVER, CALL, RETURN, EXCEPTION = 1, 2, 3, 4, 5
GET_FUNCTION, FREE_HANDLE = 9, 10

# Types of values (TVMFFITypeIndex).
NONE, INT, BOOL, FLOAT, POINTER, RAW_STRING, BYTE_ARRAY, SMALL_STRING, SMALL_BYTES = 0, 1, 2, 3, 4, 8, 9, 11, 12
STRING, BYTES = 65, 66

#: A socket, or what sends and receives as one.
Connection = Any
#: A function that clients may call: takes what arrived (str, bytes, int, float or None), gives str, bytes, int or None.
Function = Callable[..., Any]


class ProtocolError(Exception):
    """A packet that is none of this protocol, or longer than one may be."""


class _Handle(int):
    """A number that stands for a function of ours at the client."""


class _Body:
    """The values of a packet, read in order. Raises ProtocolError where they end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def number(self, form: str) -> Any:
        """The next number, of struct's format ``form``."""
        try:
            (value,) = struct.unpack_from("<" + form, self._data, self._at)
        except struct.error:
            raise ProtocolError("a packet ends in the middle of a value") from None
        self._at += struct.calcsize("<" + form)
        return value

    def block(self) -> bytes:
        """The next bytes, preceded by their 64-bit count."""
        size = self.number("Q")
        if size > len(self._data) - self._at:
            raise ProtocolError("a packet ends in the middle of a value")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def values(self) -> list[Any]:
        """A sequence of values, preceded by their 32-bit count."""
        count = self.number("i")
        if not 0 <= count <= MOST_VALUES:
            raise ProtocolError(f"a call has {count} values")
        return [self._value() for _ in range(count)]

    def _value(self) -> Any:
        kind = self.number("i")
        if kind == NONE:
            return None
        if kind in (INT, BOOL, POINTER):
            return self.number("q")
        if kind == FLOAT:
            return self.number("d")
        if kind in (SMALL_STRING, SMALL_BYTES, STRING, BYTES):
            # Strings as objects repeat their type, always as that of the large ones.
            kind = self.number("I")
        if kind in (RAW_STRING, STRING):
            return self.block().decode()
        if kind in (BYTE_ARRAY, BYTES):
            return self.block()
        raise ProtocolError(f"values of type {kind} are not taken")


def _sequence(*values: Any) -> bytes:
    """``values`` as a packet's body holds them."""
    parts = [struct.pack("<i", len(values))]
    for value in values:
        if value is None:
            parts.append(struct.pack("<i", NONE))
        elif isinstance(value, _Handle):
            parts.append(struct.pack("<iQ", POINTER, value))
        elif isinstance(value, int):
            parts.append(struct.pack("<iq", INT, value))
        else:
            text = isinstance(value, str)
            data = value.encode() if text else bytes(value)
            parts += [struct.pack("<iQ", RAW_STRING if text else BYTE_ARRAY, len(data)), data]
    return b"".join(parts)


def _packet(code: int, body: bytes) -> bytes:
    return struct.pack("<Qi", len(body) + 4, code) + body


def _returned(value: Any) -> bytes:
    """What a call gives: the type that the client shall make of it, then the value."""
    kinds = {type(None): NONE, int: INT, str: STRING, bytes: BYTES}
    return _sequence(kinds[type(value)], value)


class RpcServer:
    """Offers functions and the files of a folder to one client at a time."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def offer(self, name: str, function: Function) -> None:
        """Let clients call ``function`` as ``name``."""
        self._functions[name] = function

    def serve(self, connection: Connection, folder: Path) -> None:
        """Answer the client on ``connection`` until it leaves. Uploads go into ``folder``, downloads come from there.

        Raises ProtocolError for a client that does not speak the protocol, OSError for a connection that breaks.
        """
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conversation = _Conversation({**self._functions, **_files(folder)})
        for code, body in _packets(connection):
            if code == SHUTDOWN:
                return
            connection.sendall(conversation.answer(code, body))


def refuse(connection: Connection, reason: str) -> None:
    """Answer the client's next call with an error."""
    connection.sendall(_packet(EXCEPTION, _sequence(reason)))


class _Conversation:
    """The functions that one client has asked for."""

    def __init__(self, functions: dict[str, Function]) -> None:
        self._functions = functions
        self._handles: list[Function] = []

    def answer(self, code: int, body: _Body) -> bytes:
        """The packet that answers a packet; a function's exception becomes the client's."""
        if code == CALL:
            handle, values = body.number("Q"), body.values()
            if not 1 <= handle <= len(self._handles):
                raise ProtocolError(f"the client calls function {handle}, which it was never given")
            try:
                return _packet(RETURN, _returned(self._handles[handle - 1](*values)))
            except Exception as error:
                return _packet(EXCEPTION, _sequence(f"{type(error).__name__}: {error}"))
        if code == INIT_SERVER:
            return self._begin(body)
        if code == GET_FUNCTION:
            return self._find(body.values())
        if code == FREE_HANDLE:
            return _packet(RETURN, _sequence(None))
        return _packet(EXCEPTION, _sequence(f"requests of code {code} are not served by this board"))

    def _begin(self, body: _Body) -> bytes:
        version, constructor = body.block().decode(errors="replace"), body.values()
        if version != VERSION:
            said = f"this board speaks version {VERSION} of TVM's RPC, not {version}: use TVM 0.27"
            return _packet(EXCEPTION, _sequence(said))
        if constructor:
            return _packet(EXCEPTION, _sequence(f"this board has no session {constructor[0]!r}"))
        return _packet(RETURN, _sequence(None))

    def _find(self, values: list[Any]) -> bytes:
        function = self._functions.get(values[0]) if values else None
        if function is None:
            return _packet(RETURN, _sequence(None))
        self._handles.append(function)
        return _packet(RETURN, _sequence(_Handle(len(self._handles))))


def _packets(connection: Connection) -> Iterator[tuple[int, _Body]]:
    """The packets that arrive, until the client leaves."""
    while True:
        head = _receive(connection, 8)
        if head is None:
            return
        (size,) = struct.unpack("<Q", head)
        if not 4 <= size <= LONGEST_PACKET:
            raise ProtocolError(f"a packet of {size} bytes: {LONGEST_PACKET} at most are taken")
        data = _receive(connection, size)
        if data is None:
            return
        body = _Body(data)
        yield body.number("i"), body


def _receive(connection: Connection, size: int) -> bytes | None:
    """``size`` bytes, or None where the connection ends before."""
    data = bytearray()
    while len(data) < size:
        # Memory is taken as bytes arrive, not as a length claims.
        part = connection.recv(min(1 << 20, size - len(data)))
        if not part:
            return None
        data += part
    return bytes(data)


def _files(folder: Path) -> dict[str, Function]:
    """TVM's three functions on files, for those of ``folder``."""

    def upload(name: str, data: bytes) -> None:
        _inside(folder, name).write_bytes(data)

    def download(name: str) -> bytes:
        return _inside(folder, name).read_bytes()

    def remove(name: str) -> None:
        _inside(folder, name).unlink()

    prefix = "tvm.rpc.server."
    return {prefix + "upload": upload, prefix + "download": download, prefix + "remove": remove}


def _inside(folder: Path, name: str) -> Path:
    """The path of the file ``name`` in ``folder``. Raises ValueError for names that are paths, and for links."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no plain file name")
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{name!r} is a link")
    return path
