"""Makes a 64-bit board with Python 3.9 or later measure for a tracker, over the user's own OpenSSH.

It copies the board's server, the runner and TVM's two runtime libraries into a folder of the user's home, has systemd keep
the server running, and ends with a measurement through the tracker.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitkiln import targets
from bitkiln.pipeline.boards.board import Measurement, Request, measure_in
from bitkiln.pipeline.boards.session import Session
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.boards.tracker import Address, NoBoard, TrackerClient
from bitkiln.pipeline.boards.userland import runtime_libraries
from bitkiln.pipeline.errors import BitkilnError, BoardError
from bitkiln.pipeline.support.scratch import scratch_folder

DEVICE = Path(__file__).parents[1] / "device"
FOLDER = ".local/share/bitkiln-board"
SERVICE = "bitkiln-board"
#: What TVM's runtime is built for.
OLDEST_GLIBC = (2, 27)
OLDEST_PYTHON = (3, 9)
#: Seconds the board has to register.
REGISTRATION = 60.0

PROBE = """
import json, os, platform, sys
print(json.dumps({
    "bits": 64 if sys.maxsize > 2**32 else 32, "machine": platform.machine(), "python": sys.version_info[:2],
    "glibc": (os.confstr("CS_GNU_LIBC_VERSION") or " 0").split()[-1], "home": os.path.expanduser("~"),
    "ssh": os.environ.get("SSH_CONNECTION", "").split()}))
"""


@dataclass(frozen=True)
class Plan:
    """How a board and a tracker reach each other.

    ``server`` are the options of board_server.py; ``found_at`` is where clients find the board; ``forwards`` are ssh's
    options for a tunnel, none where board and tracker share a network.
    """

    server: tuple[str, ...]
    found_at: Address
    forwards: tuple[str, ...] = ()


def probe(remote: Remote) -> Mapping[str, Any]:
    """What the board is, and whether it will do. Raises BoardError."""
    try:
        facts = json.loads(remote.run(f"python3 -c {shlex.quote(PROBE)}"))
    except ValueError:
        raise BoardError(f"{remote.host}: python3 there gives no sensible answer")
    if facts["bits"] != 64:
        raise BoardError(
            f"{remote.host} runs a 32-bit system ({facts['machine']}) and TVM publishes no 32-bit runtime: install the 64-bit "
            "system to tune on it; 32-bit bundles run there without"
        )
    if facts["machine"] != "aarch64":
        raise BoardError(f"{remote.host} is {facts['machine']}, not a 64-bit ARM board")
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
        return Plan((*options, "--advertise", f"127.0.0.1:{here}", "--key", key), Address("127.0.0.1", here), forwards)
    own = facts["ssh"][2] if len(facts["ssh"]) == 4 else remote.host.rpartition("@")[2]
    if _is_loopback(tracker.host) and not _is_loopback(own):
        raise BoardError(
            f"{remote.host} cannot reach a tracker at {tracker}: give this machine's address in the board's network, "
            "or --tunnel"
        )
    options = ("--tracker", str(tracker), "--host", own, "--port", str(port), "--port-end", str(port + 1), "--key", key)
    return Plan(options, Address(own, port))


def install(remote: Remote, facts: Mapping[str, Any], plan: Plan) -> str:
    """Put the files there, check that they load, and start the server; gives how it is kept running. Raises BoardError."""
    folder = f"{facts['home']}/{FOLDER}"
    where = shlex.quote(folder)
    python = remote.run("command -v python3").strip()
    with scratch_folder() as name:
        start = Path(name) / "start"
        command = [python, "-u", f"{folder}/board_server.py", "--libraries", folder, *plan.server]
        start.write_text(f"#!/bin/sh\nexec {shlex.join(command)}\n")
        start.chmod(0o755)
        files = [DEVICE / "board_server.py", DEVICE / "runner.py", *sorted(runtime_libraries().iterdir()), start]
        aside = remote.run(f"mkdir -p {where} && mktemp -d {where}/.new.XXXXXX").strip()
        remote.copy(files, aside)
    new = shlex.quote(aside)
    try:
        remote.run(f"cd {new} && {shlex.quote(python)} -B -c 'import board_server; board_server.Runtime(\".\")'")
    except BoardError as error:
        remote.run(f"rm -rf {new}")
        raise BoardError(f"TVM's runtime does not load there: {error}")
    stop(remote, facts)
    remote.run(f"mv -f {new}/* {where}/ && rmdir {new}")
    return _keep_with_systemd(remote, facts) or _keep_with_shell(remote, folder)


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
    try:
        remote.run("loginctl enable-linger")
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


def round_trip(tracker: Address, key: str, board: Address) -> tuple[Mapping[str, Any], Measurement]:
    """Identity of the board and a small measurement on it, got through the tracker. Raises BoardError."""
    client = TrackerClient(tracker)
    deadline = time.monotonic() + REGISTRATION
    while str(board) not in _registered(client, key):
        if time.monotonic() > deadline:
            raise NoBoard(f"the board at {board} did not register with the tracker {tracker} within {REGISTRATION:g} s")
        time.sleep(0.5)
    for _ in range(20):
        with Session(client, key, 60, REGISTRATION) as session:
            # The key may have other boards. Theirs is a session that ends here.
            if session.address == board:
                return session.call("bitkiln.identity"), _measure(session)
    raise NoBoard(f"the tracker {tracker} does not give us the board at {board}: is it in use?")


def _registered(client: TrackerClient, key: str) -> tuple[str, ...]:
    return next((found.addresses for found in client.boards() if found.key == key), ())


def _measure(session: Session) -> Measurement:
    """A small convolution, as tuning would measure it."""
    from bitkiln.pipeline.tune.builder import Builder  # Brings the compiler with it.
    from bitkiln.schedules.registry import operator_for
    from bitkiln.schedules.workload import Conv2d

    target = targets.load("rasp3b")
    workload = Conv2d(28, 28, 32, 32, (3, 3), padding=(1, 1, 1, 1))
    builder = Builder(workers=1)
    try:
        artifact = builder.build(workload, operator_for(workload).default(workload, target), target)
        return measure_in(session, artifact.library, Request(), artifact.inputs())
    finally:
        builder.close()


def hold_tunnel(remote: Remote, plan: Plan) -> subprocess.Popen[bytes]:
    """Open the tunnel; it is open when this returns. Raises BoardError."""
    tunnel = subprocess.Popen(remote.tunnel(*plan.forwards), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert tunnel.stderr
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if tunnel.poll() is not None:
            words = tunnel.stderr.read().decode(errors="replace").strip().splitlines()
            raise BoardError(f"{remote.host}: the tunnel does not open ({words[-1] if words else 'ssh ended'})")
        if _listens(plan.found_at):
            return tunnel
        time.sleep(0.2)
    tunnel.kill()
    raise BoardError(f"{remote.host}: the tunnel does not open within 30 s")


def _listens(address: Address) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address.host, address.port)) == 0


def _keep_tunnel(remote: Remote, plan: Plan, tunnel: subprocess.Popen[bytes]) -> None:
    """Wait for ever, opening the tunnel again when it breaks."""
    while True:
        tunnel.wait()
        print("the tunnel broke: opening it again", flush=True)
        while True:
            time.sleep(2)
            try:
                tunnel = hold_tunnel(remote, plan)
                break
            except BoardError as error:
                print(error, flush=True)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def set_up(remote: Remote, tracker: Address, key: str, tunnel: bool) -> None:
    """Do it all and say what was done. With ``tunnel`` this holds the tunnel open and does not return."""
    TrackerClient(tracker).boards()  # A tracker that is not there is better known now than after the copying.
    facts = probe(remote)
    print(f"{remote.host}: {facts['machine']}, Python {_dotted(facts['python'])}, glibc {facts['glibc']}")
    way = plan(remote, facts, tracker, key, tunnel)
    held = hold_tunnel(remote, way) if tunnel else None
    try:
        print(f"{remote.host}: installed in ~/{FOLDER}, kept running as {install(remote, facts, way)}")
        identity, measured = round_trip(tracker, key, way.found_at)
        clock = f" at {measured.clock_mhz:g} MHz" if measured.clock_mhz else ""
        print(f"round trip through {tracker}: {identity['measured_by']}; 3x3 convolution, 28x28, 32 to 32 channels:")
        print(f"{1e3 * measured.seconds:.3f} ms{clock}")
        if not tunnel:
            print(
                f"note: whoever reaches {way.found_at} can run code on the board; in networks you do not trust use --tunnel"
            )
        print(f"ready: tune --tracker {tracker} --key {key}", flush=True)
        if held:
            print("holding the tunnel open; Ctrl-C closes it, and running this again opens it", flush=True)
            _keep_tunnel(remote, way, held)
    finally:
        if held:
            held.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of scripts/setup_board."""
    parser = argparse.ArgumentParser(
        prog="setup_board",
        description="Make a board measure for a tracker, over ssh.",
        epilog="example: setup_board pi@raspberrypi --tracker 192.168.1.20:9190",
    )
    parser.add_argument("board", metavar="USER@HOST", help="what you would type after ssh; keys must be set up")
    parser.add_argument(
        "--tracker", type=str, metavar="HOST:PORT", help="as the board reaches it; with --tunnel as we do"
    )
    parser.add_argument("--key", default="rasp3b", help="the kind of board, as tune asks for it (%(default)s)")
    parser.add_argument("--tunnel", action="store_true", help="keep everything on loopback, through ssh")
    parser.add_argument("--port", type=int, help="the board's ssh port")
    parser.add_argument("--remove", action="store_true", help="stop the server and delete it from the board")
    options = parser.parse_args(arguments)
    if not options.tracker and not options.remove:
        parser.error(
            "give --tracker HOST:PORT (start one with: bitkiln boards start-sim, or python -m tvm.exec.rpc_tracker)"
        )
    remote = Remote(options.board, options.port)
    try:
        if options.remove:
            remove(remote, probe(remote))
            print(f"{options.board}: removed")
        else:
            set_up(remote, Address.parse(options.tracker), options.key, options.tunnel)
    except BitkilnError as error:
        print(f"setup_board: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
