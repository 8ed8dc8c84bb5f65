"""The board's RPC in plain Python, held against TVM's own client."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import tvm
from tvm import rpc

from bitkiln.pipeline.device import board_rpc
from bitkiln.pipeline.device.board_rpc import LONGEST_PACKET, refuse

MAGIC = 0xFF271


#: TVM's client holds Python's lock while it waits, so its server is another process.
SERVER = """
import pathlib, socket, struct, sys
from bitkiln.pipeline.device.board_rpc import ProtocolError, RpcServer

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server = RpcServer()
server.offer("echo", lambda *values: "|".join(map(repr, values)))
server.offer("fail", lambda: 1 // 0)
server.offer("count", lambda text: len(text))
server.offer("nothing", lambda: None)
while True:
    connection, _ = listener.accept()
    with connection:
        # The opening of a session, which board_server.py does before.
        _, length = struct.unpack("<ii", connection.recv(8, socket.MSG_WAITALL))
        connection.recv(length, socket.MSG_WAITALL)
        connection.sendall(struct.pack("<ii", 0xFF271, 6) + b"server")
        try:
            server.serve(connection, pathlib.Path(sys.argv[1]))
            print("left", flush=True)
        except (ProtocolError, OSError) as error:
            print(type(error).__name__, flush=True)
"""


class Board(NamedTuple):
    """A server that takes any number of clients, one after another, and says how each session ended."""

    port: int
    ends: IO[str]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield Board(int(process.stdout.readline()), process.stdout)
    process.kill()
    process.wait(10)


def raw_client(port: int) -> socket.socket:
    """A connection after its opening."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(struct.pack("<ii", MAGIC, 6) + b"client")
    client.recv(14, socket.MSG_WAITALL)
    return client


def test_the_version_is_that_of_the_tvm_installed():
    source = Path(tvm.__file__).parent / "src/runtime/rpc/minrpc/rpc_reference.h"
    if not source.exists():
        pytest.skip("this TVM comes without its sources")
    assert f'kRPCProtocolVer = "{board_rpc.VERSION}"' in source.read_text()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), ""),
        (("a", "b" * 300), f"'a'|'{'b' * 300}'"),
        ((7, -(2**40)), f"7|{-(2**40)}"),
        ((1.5, None), "1.5|None"),
        ((bytearray(b"\0\xff"),), r"b'\x00\xff'"),
        (("ä\N{SNOWMAN}",), "'ä\N{SNOWMAN}'"),
    ],
    ids=["none", "strings", "integers", "others", "bytes", "unicode"],
)
def test_values_arrive_and_return(board, values, text):
    client = rpc.connect("127.0.0.1", board.port)
    assert client.get_function("echo")(*values) == text


def test_results_of_every_kind(board):
    client = rpc.connect("127.0.0.1", board.port)
    assert client.get_function("count")("four") == 4
    assert client.get_function("nothing")() is None


def test_errors_and_unknown_names_leave_the_session_alive(board):
    client = rpc.connect("127.0.0.1", board.port)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        client.get_function("fail")()
    with pytest.raises(AttributeError):
        client.get_function("runtime.ModuleLoadFromFile")
    assert client.get_function("echo")("still here") == "'still here'"


def test_files_go_into_the_folder_and_nowhere_else(board, tmp_path: Path):
    client = rpc.connect("127.0.0.1", board.port)
    content = os.urandom(3 << 20)
    client.upload(bytearray(content), "weights.bin")
    assert (tmp_path / "weights.bin").read_bytes() == content
    assert bytes(client.download("weights.bin")) == content
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("/etc/hostname", "../outside", "a/b", "", "..", "link"):
        with pytest.raises(Exception, match="ValueError"):
            client.download(name)
        if name:  # TVM's own client refuses to upload to no name.
            with pytest.raises(Exception, match="ValueError"):
                client.upload(bytearray(b"x"), name)
    client.remove("weights.bin")
    assert not (tmp_path / "weights.bin").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_several_clients_one_after_another(board):
    for index in range(3):
        client = rpc.connect("127.0.0.1", board.port)
        assert client.get_function("echo")(index) == str(index)
        del client
        assert board.ends.readline() == "left\n"


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("<Q", LONGEST_PACKET + 1),
        struct.pack("<Q", 0),
        struct.pack("<Qi", 4, 3),  # A call without a body.
        struct.pack("<QiQi", 16, 3, 99, 0),  # A call of a function that nobody asked for.
        struct.pack("<Qii", 8, 9, 2**31 - 1),  # More values than there can be.
        struct.pack("<QiiiQ", 20, 9, 1, 8, 2**63),  # A string longer than the packet.
        struct.pack("<Qiii", 12, 9, 1, 7777),  # A value of no known type.
    ],
    ids=["huge", "empty", "no body", "no such handle", "many values", "long string", "odd type"],
)
def test_garbage_ends_its_own_session_alone(board, sent):
    with raw_client(board.port) as client:
        client.sendall(sent)
        assert client.recv(1) == b""
    assert board.ends.readline() == "ProtocolError\n"
    assert rpc.connect("127.0.0.1", board.port).get_function("echo")(1) == "1"


def test_a_client_of_another_version_is_told(board):
    with raw_client(board.port) as client:
        body = struct.pack("<iQ", 2, 5) + b"0.9.9" + struct.pack("<i", 0)
        client.sendall(struct.pack("<Q", len(body)) + body)
        assert b"0.9.9" in client.recv(4096)


def test_a_board_that_refuses_says_why():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        refuse(ours, "the session's time is over")
        assert b"the session's time is over" in theirs.recv(4096)
