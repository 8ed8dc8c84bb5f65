"""A "board" reached by ssh: a real sshd on loopback whose python3 is an ARM one."""

from __future__ import annotations

import getpass
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.boards.userland import userland

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass(frozen=True)
class Device:
    """The board behind the sshd: how to reach it, and its home folder as seen from here."""

    address: str
    port: int
    home: Path
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """An sshd that puts whoever logs in into a home folder of its own, with an ARM Python as python3."""
    if not Path(SSHD).exists():
        pytest.skip("needs openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    home, programs = folder / "home", folder / "bin"
    home.mkdir()
    programs.mkdir()
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    python = shlex.join(userland(targets.load("rasp3b")).command(["python3"]))
    script(programs / "python3", f'exec {python} "$@"')
    login = f'export HOME={home} PATH={programs}:/usr/bin:/bin; cd {home}; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    script(folder / "login", login)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nForceCommand {folder}/login\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  LogLevel ERROR\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    log = folder / "log"
    with log.open("w") as file:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=file)
        try:
            wait_for(port, server)
            yield Device(f"{getpass.getuser()}@127.0.0.1", port, home, log)
        finally:
            server.terminate()
            server.wait(10)


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip("sshd does not start for this user")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("sshd does not listen")


@pytest.fixture
def device(sshd: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The board with an empty home."""
    config = sshd.log.parent / "ssh_config"
    monkeypatch.setenv("BITKILN_SSH", f"ssh -F {config}")
    yield sshd
    for path in sshd.home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
