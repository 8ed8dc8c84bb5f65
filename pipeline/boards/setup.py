"""Makes a board with Python 3.9 or later measure for a tracker, over the user's own OpenSSH.

It copies the board's server and the runner, a few files of Python, into a folder of the user's home, has systemd keep the
server running, and ends with a measurement through the tracker.
"""

from __future__ import annotations

import json
import random
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bitkiln.pipeline.boards.access import INSECURE, Address
from bitkiln.pipeline.boards.answers import identity
from bitkiln.pipeline.boards.board import Measurement, Request, measure_in
from bitkiln.pipeline.boards.session import Session
from bitkiln.pipeline.boards.ssh import Remote, cause_of
from bitkiln.pipeline.boards.tracker import NoBoard, TrackerClient
from bitkiln.pipeline.device import verify_bundle
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support import interrupts, processes
from bitkiln.targets.scratch import scratch_folder

DEVICE = Path(__file__).parents[1] / "device"
FOLDER = ".local/share/bitkiln-board"
SERVICE = "bitkiln-board"
#: What kernels are linked for, and what the server needs.
OLDEST_GLIBC = (2, 28)
OLDEST_PYTHON = (3, 9)
#: What ``uname -m`` says of the boards that we have kernels for; 32-bit systems may run on a 64-bit kernel.
MACHINES = ("aarch64", "armv7l", "armv8l")
#: The target of boards with a system of so many bits.
TARGETS = {64: "rasp3b", 32: "rasp3b32"}
#: Seconds the board has to register.
REGISTRATION = 60.0

#: What we put there, of our own.
PROGRAMS = ("board_server.py", "board_rpc.py", "board_wire.py", "runner.py")
#: The file there with what the board shares with us.
SECRET = "secret"

PROBE = """
import json, os, platform, sys
try:
    with open("/proc/cpuinfo") as file:
        cpu = file.read(1 << 16).split()
except OSError:
    cpu = []
print(json.dumps({
    "bits": 64 if sys.maxsize > 2**32 else 32, "machine": platform.machine(), "python": sys.version_info[:2],
    "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or " 0").split()[-1], "home": os.path.expanduser("~"),
    "armv7": "Features" in cpu and "crc32" not in cpu,
    "ssh": os.environ.get("SSH_CONNECTION", "").split()}))
"""


class Kernel(Protocol):
    """A library for the first measurement, and its inputs."""

    @property
    def library(self) -> Path:
        """Its file."""

    def inputs(self) -> Mapping[str, bytes]:
        """Raw tensors by name."""


@dataclass(frozen=True)
class Plan:
    """How a board and a tracker reach each other.

    ``server`` are the options of board_server.py; ``port`` is where clients find the board, at whatever address it then has;
    ``forwards`` are ssh's options for a tunnel, none where board and tracker share a network.
    """

    server: tuple[str, ...]
    port: int
    forwards: tuple[str, ...] = ()


def probe(remote: Remote) -> Mapping[str, Any]:
    """What the board is, and whether it will do. Raises BoardError."""
    try:
        facts = json.loads(remote.run(f"python3 -c {shlex.quote(PROBE)}"))
    except ValueError:
        raise BoardError(f"{remote.host}: python3 there gives no sensible answer")
    if facts["machine"] not in MACHINES:
        raise BoardError(f"{remote.host} is {facts['machine']}, not an ARM board of {' or '.join(MACHINES)}")
    # LLVM uses what ARMv8 added to 32-bit code, of which the kernel shows crc32.
    if facts["bits"] == 32 and facts.get("armv7"):
        raise BoardError(f"{remote.host} has a CPU of ARMv7, a Raspberry Pi 2's perhaps: kernels are for a Cortex-A53")
    if tuple(facts["python"]) < OLDEST_PYTHON:
        raise BoardError(
            f"{remote.host} has Python {_dotted(facts['python'])}: {_dotted(OLDEST_PYTHON)} or later is needed"
        )
    if tuple(map(int, facts["glibc"].split("."))) < OLDEST_GLIBC:
        raise BoardError(f"{remote.host} has glibc {facts['glibc']}: {_dotted(OLDEST_GLIBC)} or later is needed")
    return facts


def plan(remote: Remote, facts: Mapping[str, Any], tracker: Address, key: str, tunnel: bool) -> Plan:
    """How the board will reach ``tracker``. Raises BoardError where it cannot."""
    port = random.SystemRandom().randrange(20000, 30000)
    if tunnel:
        # Three ports, so that it also works where several boards share this tracker.
        there, here = port + 10000, port + 20000
        options = (
            "--tracker",
            f"127.0.0.1:{there}",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--port-end",
            str(port + 1),
        )
        forwards = ("-R", f"127.0.0.1:{there}:{tracker}", "-L", f"127.0.0.1:{here}:127.0.0.1:{port}")
        return Plan((*options, "--advertise", f"127.0.0.1:{here}", "--key", key), here, forwards)
    own = facts["ssh"][2] if len(facts["ssh"]) == 4 else remote.host.rpartition("@")[2]
    if _is_loopback(tracker.host) and not _is_loopback(own):
        raise BoardError(
            f"{remote.host} cannot reach a tracker at {tracker}: give this machine's address in the board's network, "
            "or --tunnel"
        )
    options = ("--tracker", str(tracker), "--host", "tracker", "--port", str(port), "--port-end", str(port + 1))
    return Plan((*options, "--key", key), port)


def install(remote: Remote, facts: Mapping[str, Any], plan: Plan, secret: bytes | None) -> str:
    """Put the files there, check that they load, and start the server; gives how it is kept running. Raises BoardError."""
    folder = f"{facts['home']}/{FOLDER}"
    where = shlex.quote(folder)
    python = remote.run("command -v python3").strip()
    with scratch_folder() as name:
        start, shared = Path(name) / "start", Path(name) / SECRET
        trust = ["--secret", f"{folder}/{SECRET}"] if secret else ["--open"]
        command = [python, "-u", f"{folder}/{PROGRAMS[0]}", *trust, *plan.server]
        start.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        start.chmod(0o755)
        shared.write_bytes((secret or b"") + b"\n")
        files = [*(DEVICE / program for program in PROGRAMS), start, shared]
        # mktemp makes it for nobody else: the secret is never readable by others.
        aside = remote.run(f"mkdir -p {where} && mktemp -d {where}/.new.XXXXXX").strip()
        new = shlex.quote(aside)
        try:
            remote.copy(files, aside)
            remote.run(f"chmod 600 {new}/{SECRET}")
            remote.run(f"cd {new} && {shlex.quote(python)} -B -c 'import board_server'")
        except BaseException as error:
            _clear(remote, aside)
            if isinstance(error, BoardError):
                raise BoardError(f"our server cannot be installed there: {error}") from None
            raise
    stop(remote, facts)
    remote.run(f"mv -f {new}/* {where}/ && rmdir {new}")
    return _keep_with_systemd(remote, facts) or _keep_with_shell(remote, folder)


def install_signers(remote: Remote, signers: str) -> None:
    """Have ``deploy`` take only bundles there that one of ``signers``, ssh's allowed signers, has signed. Raises BoardError."""
    folder = f"{probe(remote)['home']}/{FOLDER}"
    where = shlex.quote(folder)
    with scratch_folder() as name:
        allowed = Path(name) / verify_bundle.SIGNERS
        allowed.write_text(signers)
        aside = remote.run(f"mkdir -p {where} && mktemp -d {where}/.new.XXXXXX").strip()
        new = shlex.quote(aside)
        try:
            remote.run(
                "command -v ssh-keygen > /dev/null || { echo no ssh-keygen: install openssh-client >&2; exit 1; }"
            )
            remote.copy([Path(verify_bundle.__file__), allowed], aside)
            remote.run(f"mv -f {new}/* {where}/ && rmdir {new}")
        except BaseException:
            _clear(remote, aside)
            raise


def _clear(remote: Remote, folder: str) -> None:
    with suppress(BoardError):  # It is gone: what went wrong before says so.
        remote.run(f"rm -rf {shlex.quote(folder)}", 30.0)


def _keep_with_systemd(remote: Remote, facts: Mapping[str, Any]) -> str:
    """Start it as a user service that restarts; gives "" where there is no systemd for users."""
    try:
        remote.run("systemctl --user show-environment")
    except BoardError:
        return ""
    unit = f"""\
[Unit]
Description=Measures kernels for a bitkiln tracker

[Service]
ExecStart={facts["home"]}/{FOLDER}/start
Restart=always
RestartSec=2

[Install]
WantedBy=default.target
"""
    units = f"{facts['home']}/.config/systemd/user"
    where = shlex.quote(f"{units}/{SERVICE}.service")
    remote.run(f"mkdir -p {shlex.quote(units)} && printf %s {shlex.quote(unit)} > {where}")
    remote.run(f"systemctl --user daemon-reload && systemctl --user enable --quiet {SERVICE}")
    remote.run(f"systemctl --user restart {SERVICE}")
    lingers = 'loginctl show-user "$(id -un)" --property=Linger 2> /dev/null | grep -q yes'
    try:
        remote.run(f"{lingers} || loginctl enable-linger")
    except BoardError:
        return f"systemd user service {SERVICE} while you are logged in; `sudo loginctl enable-linger` keeps it running"
    return f"systemd user service {SERVICE}"


def _keep_with_shell(remote: Remote, folder: str) -> str:
    """Without systemd: a loop in the background, which ends with the board's power."""
    where = shlex.quote(folder)
    loop = f"echo $$ > {where}/pid; while :; do {where}/start; sleep 2; done"
    remote.run(f"setsid nohup sh -c {shlex.quote(loop)} > {where}/log 2>&1 < /dev/null &")
    return "background process (no systemd for users there): run this again after the board was off"


def stop(remote: Remote, facts: Mapping[str, Any]) -> None:
    """Stop the board's server, however it was started."""
    pid = shlex.quote(f"{facts['home']}/{FOLDER}/pid")
    remote.run(f"systemctl --user stop {SERVICE} 2> /dev/null || true")
    remote.run(f"if [ -f {pid} ]; then kill -- -$(cat {pid}) 2> /dev/null; rm -f {pid}; fi; true")


def remove(remote: Remote, facts: Mapping[str, Any]) -> None:
    """Stop the server and delete all that ``install`` put there."""
    stop(remote, facts)
    remote.run(f"systemctl --user disable --quiet {SERVICE} 2> /dev/null || true")
    unit = shlex.quote(f"{facts['home']}/.config/systemd/user/{SERVICE}.service")
    remote.run(f"rm -rf {unit} {shlex.quote(facts['home'] + '/' + FOLDER)}")


def round_trip(
    tracker: Address, key: str, port: int, sample: Callable[[], AbstractContextManager[Kernel]]
) -> tuple[Address, Mapping[str, Any], Measurement]:
    """The board's address, its identity and a small measurement on it, got through the tracker. Raises BoardError."""
    client = TrackerClient(tracker)
    deadline = time.monotonic() + REGISTRATION
    while not _registered(client, key, port):
        if time.monotonic() > deadline:
            raise NoBoard(f"the board did not register with the tracker {tracker} within {REGISTRATION:g} s")
        time.sleep(0.5)
    with sample() as kernel:
        for _ in range(20):
            with Session(client, key, 60, REGISTRATION) as session:
                # The key may have other boards. Theirs is a session that ends here.
                if session.address.port == port:
                    measured = measure_in(session, kernel.library, Request(), kernel.inputs())
                    return (
                        session.address,
                        identity(session.call("bitkiln.identity"), f"board {session.board}"),
                        measured,
                    )
    raise NoBoard(f"the tracker {tracker} does not give us the board at port {port}: is it in use?")


def _registered(client: TrackerClient, key: str, port: int) -> bool:
    found = next((found.addresses for found in client.boards() if found.key == key), ())
    return any(Address.bare(address).port == port for address in found)


class Tunnel:
    """ssh with the forwards of a plan, opened again when it breaks. Open when the context begins; raises BoardError."""

    def __init__(self, remote: Remote, plan: Plan) -> None:
        self._remote, self._plan = remote, plan
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Tunnel:
        self._open()
        return self

    def __exit__(self, *details: object) -> None:
        if self._process:
            processes.kill(self._process)

    def keep(self, say: Callable[[str], None]) -> None:
        """Wait for ever, opening the tunnel again when it breaks."""
        assert self._process
        while True:
            with interrupts.waiting():
                self._process.wait()
            say("the tunnel broke: opening it again")
            problem = ""
            while True:
                with interrupts.waiting():
                    time.sleep(2)
                try:
                    self._open()
                    say("the tunnel is open again")
                    break
                except BoardError as error:
                    if str(error) != problem:
                        problem = str(error)
                        say(f"{problem}: trying on")

    def _open(self) -> None:
        command = self._remote.tunnel(*self._plan.forwards)
        self._process = processes.start(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr
                words = cause_of(self._process.stderr.read().decode(errors="replace"))
                raise BoardError(f"{self._remote.host}: the tunnel does not open ({words or 'ssh ended'})")
            if _listens(self._plan.port):
                return
            time.sleep(0.2)
        processes.kill(self._process)
        raise BoardError(f"{self._remote.host}: the tunnel does not open within 30 s")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def set_up(
    remote: Remote,
    tracker: Address,
    key: str | None,
    tunnel: bool,
    sample: Callable[[str], AbstractContextManager[Kernel]],
    say: Callable[[str], None],
) -> None:
    """Do it all and ``say`` what was done. With ``tunnel`` this holds the tunnel open and does not return. Raises BoardError.

    ``key`` is the kind of board, by its width unless given. ``sample`` gives a kernel of a target for the first measurement.
    """
    TrackerClient(tracker).boards()  # A tracker that is not there is better known now than after the copying.
    facts = probe(remote)
    kind = TARGETS[facts["bits"]]
    key = key or kind
    say(
        f"{remote.host}: {facts['machine']}, {facts['bits']} bits, Python {_dotted(facts['python'])}, glibc {facts['glibc']}"
    )
    way = plan(remote, facts, tracker, key, tunnel)
    with ExitStack() as stack:
        held = stack.enter_context(Tunnel(remote, way)) if tunnel else None
        kept = install(remote, facts, way, tracker.secret)
        say(f"{remote.host}: installed in ~/{FOLDER}, kept running as {kept}")
        address, board, measured = round_trip(tracker, key, way.port, lambda: sample(kind))
        clock = f" at {measured.clock_mhz:g} MHz" if measured.clock_mhz else ""
        say(f"round trip through {tracker}: {board['measured_by']}; 3x3 convolution, 28x28, 32 to 32 channels:")
        say(f"{1e3 * measured.seconds:.3f} ms{clock}")
        if tracker.secret is None:
            say(f"note: without a secret whoever reaches {address} can run code on the board")
        insecure = INSECURE if tracker.secret is None else ""
        say(f"ready: tune --tracker {insecure}{tracker} --key {key}")
        if held:
            say("holding the tunnel open; Ctrl-C closes it, and running this again opens it")
            held.keep(say)


def take_off(remote: Remote) -> None:
    """Stop the server there and delete all of it. Raises BoardError."""
    remove(remote, probe(remote))
