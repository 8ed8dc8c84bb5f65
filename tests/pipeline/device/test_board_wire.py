"""Two ends prove that they share a secret before anything else is said, and wait for nobody."""

from __future__ import annotations

import ast
import os
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import pytest

from bitkiln.pipeline.device import board_wire as wire

OURS, OTHER = wire.new_secret(), wire.new_secret()


def meet(secret: bytes | None, is_open: bool = False) -> tuple[socket.socket, threading.Thread]:
    """The client's end of a connection whose server serves ``secret``."""
    client, server = socket.socketpair()

    def begin(visitor: wire.Visitor) -> wire.Conversation:
        assert (yield 4) == wire.PROVE
        visitor.sign((yield from wire.demand_proof(visitor.send, secret, b"board", is_open)))
        return "in"

    def serve() -> None:
        visitor = wire.Visitor(server, "test", begin)
        over = False
        try:
            while not over and time.monotonic() < visitor.deadline:
                over, found = visitor.read()
                time.sleep(0.001)
            visitor.connection.setblocking(True)
            visitor.connection.sendall(found.encode() if over else b"")
        except OSError:
            pass
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return client, thread


def test_who_shares_the_secret_is_let_in():
    client, server = meet(OURS)
    signed = wire.prove(client, OURS, b"board", time.monotonic() + 5)
    assert signed.recv(2) == b"in"
    server.join(5)


@pytest.mark.parametrize(
    ("served", "is_open", "service", "complaint"),
    [
        (OTHER, False, b"board", "another secret"),
        (OURS, False, b"tracker", "another secret"),  # A proof for one service is none for another.
        (None, False, b"board", "no secret"),
        (None, True, b"board", "takes everybody"),
    ],
    ids=["another secret", "another service", "no secret", "open"],
)
def test_who_does_not_is_told(served, is_open, service, complaint):
    client, server = meet(served, is_open)
    with pytest.raises(wire.Refused, match=complaint):
        wire.prove(client, OURS, service, time.monotonic() + 5)
    client.close()
    server.join(5)


def test_a_client_that_only_pretends_is_sent_away():
    client, server = meet(OURS)
    client.sendall(wire.PROVE + bytes(32))
    assert client.recv(65)[:1] == wire.ASKS
    client.sendall(bytes(32))
    assert client.recv(1) == b"", "hung up without a welcome"
    server.join(5)


def test_no_secret_and_no_proof_goes_twice_over_the_wire():
    seen = []
    for _ in range(2):
        client, server = meet(OURS)
        client.sendall(wire.PROVE + bytes(32))
        seen.append(client.recv(65))
        client.close()
        server.join(5)
    assert seen[0] != seen[1]
    assert OURS not in b"".join(seen)


def ends() -> tuple[wire.Signed, wire.Signed]:
    """Two ends of a signed connection."""
    there, back = os.urandom(32), os.urandom(32)
    one, other = socket.socketpair()
    return wire.Signed(one, there, back), wire.Signed(other, back, there)


def test_what_is_signed_arrives_as_it_was_sent_in_both_directions():
    one, other = ends()
    sent = os.urandom(3 * wire.MOST_DATA + 5)
    for source, sink in ((one, other), (other, one), (one, other)):
        thread = threading.Thread(target=source.sendall, args=(sent,))
        thread.start()
        assert wire.receive(sink, len(sent), time.monotonic() + 20) == sent
        thread.join(5)
    one.close()
    assert other.recv(1) == b""


def test_a_signed_message_that_drips_ends_at_the_deadline():
    one, other = ends()
    one._socket.sendall(bytes([9, 0, 0, 0]))
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(other, 1, time.monotonic() + 0.3)
    assert time.monotonic() - start < 10


def test_messages_that_are_not_those_that_were_sent_end_the_connection():
    key = os.urandom(32)
    sealer = wire.Sealer(key)
    first, second = sealer.seal(b"one"), sealer.seal(b"another")

    def opened(*messages: bytes) -> bytes:
        opener = wire.Opener(key)
        return b"".join(opener.feed(message[at : at + 1]) for message in messages for at in range(len(message)))

    assert opened(first, second) == b"oneanother"
    for at in range(len(first)):
        for bit in (1, 128):
            changed = first[:at] + bytes([first[at] ^ bit]) + first[at + 1 :]
            with pytest.raises(wire.Refused):  # A length that is greater swallows the next message first.
                opened(changed, second, *[bytes(1000)] * 66 * (at < 4))
    for messages in (
        (first, first),
        (second,),
        (second, first),
        (first, second, second),
        (wire.Sealer(b"x" * 32).seal(b"one"),),
    ):
        with pytest.raises(wire.Refused):
            opened(*messages)


def test_processes_that_fork_number_their_messages_together():
    """A board's session says something, then the process that made it says the last word."""
    one, other = ends()
    if (child := os.fork()) == 0:
        one.sendall(b"from the child ")
        os._exit(0)
    os.waitpid(child, 0)
    one.sendall(b"and its parent")
    assert wire.receive(other, 29, time.monotonic() + 5) == b"from the child and its parent"


def test_a_server_that_drips_or_says_too_much_ends_at_the_deadline():
    client, server = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            try:
                server.sendall(b"\0")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(client, 1000, time.monotonic() + 0.5)
    assert time.monotonic() - start < 2
    stop.set()
    thread.join(5)
    client, server = socket.socketpair()
    for size in (-5, 1 << 30):
        server.sendall(struct.pack("<i", size))
        with pytest.raises(OSError, match="message of"):
            wire.receive_message(client, 1 << 20, time.monotonic() + 1)


def test_a_secret_is_a_file_of_its_user_alone(tmp_path):
    path = tmp_path / "deep" / "secret"
    secret = wire.write_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert wire.read_secret(path) == secret
    with pytest.raises(FileExistsError):
        wire.write_secret(path)
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others can read"):
        wire.read_secret(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ValueError, match="64 hexadecimal"):
        wire.read_secret(path)
    os.mkfifo(tmp_path / "pipe", 0o600)


def test_it_is_written_for_python_3_9():
    ast.parse(Path(wire.__file__).read_text(), feature_version=(3, 9))
