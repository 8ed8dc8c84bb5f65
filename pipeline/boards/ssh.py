"""Commands and files on a board, through the user's own OpenSSH and its configuration."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from bitkiln.pipeline.errors import BoardError, SetupError

#: A board that is off is noticed after this many seconds, one that is pulled from the wall after three times as many.
CONNECT_SECONDS = 10
#: ssh's exit status where the connection itself failed.
_CONNECTION_FAILED = 255


@dataclass(frozen=True)
class Remote:
    """A board reached by ssh; ``host`` is what one would type after ``ssh``.

    Nothing ever asks for a password. The environment variable BITKILN_SSH replaces the command, e.g. "ssh -F my_config".
    """

    host: str
    port: int | None = None

    def run(self, command: str, timeout: float = 120.0, send: Path | None = None) -> str:
        """Run a shell command there and give what it prints; the file ``send`` is its input. Raises BoardError."""
        argv = [*self._ssh(), "--", self.host, command]
        try:
            with (send or Path(os.devnull)).open("rb") as source:
                done = subprocess.run(argv, stdin=source, capture_output=True, text=True, timeout=timeout)
        except FileNotFoundError:
            raise SetupError(f"{argv[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise BoardError(f"{self.host}: no answer in {timeout:g} s") from None
        if done.returncode == _CONNECTION_FAILED:
            raise BoardError(f"{self.host}: {_last_line(done.stderr)}; try: {shlex.join([*self._ssh(), self.host])}")
        if done.returncode != 0:
            raise BoardError(f"{self.host}: {_last_line(done.stderr) or f'{command!r} gave {done.returncode}'}")
        return done.stdout

    def copy(self, files: Sequence[Path], folder: str, timeout: float = 600.0) -> None:
        """Put ``files`` into the existing ``folder`` there."""
        with TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for path in files:
                    archive.add(path, path.name, filter=_anonymous)
            file.flush()
            self.run(f"tar -C {shlex.quote(folder)} -xf -", timeout, Path(f"/proc/self/fd/{file.fileno()}"))

    def read(self, path: str, timeout: float = 120.0) -> bytes:
        """The content of a file there."""
        # As text, so that one way of running commands serves all.
        return bytes.fromhex(self.run(f"od -An -v -tx1 {shlex.quote(path)}", timeout))

    def tunnel(self, *forwards: str) -> list[str]:
        """The command that holds ``forwards`` (ssh's -L and -R with their values) open for as long as it runs."""
        return [*self._ssh(), "-N", "-o", "ExitOnForwardFailure=yes", *forwards, "--", self.host]

    def _ssh(self) -> list[str]:
        command = shlex.split(os.environ.get("BITKILN_SSH", "ssh"))
        command += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        command += ["-o", f"ServerAliveInterval={CONNECT_SECONDS}"]
        return [*command, "-p", str(self.port)] if self.port else command


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the host's owner and its umask: readable by whoever unpacks."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
