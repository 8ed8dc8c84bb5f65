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
from bitkiln.pipeline.support import processes
from bitkiln.pipeline.support.text import printable

#: A board that is off is noticed after this many seconds, one that is pulled from the wall after three times as many.
CONNECT_SECONDS = 10
#: Parts what a command prints from what came before it.
_MARK = "bitkiln-answers-from-here"
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
        # What login scripts print comes before the mark and is no answer. Login shells are not all sh.
        script = f"echo {_MARK}; echo {_MARK} >&2; {command}"
        argv = [*self._ssh(), "--", self.host, f"exec sh -c {shlex.quote(script)}"]
        try:
            with (send or Path(os.devnull)).open("rb") as source:
                done = processes.run(argv, timeout, stdin=source)
        except FileNotFoundError:
            raise SetupError(f"{argv[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise BoardError(f"{self.host}: no answer in {timeout:g} s") from None
        begun, _, out = done.stdout.decode(errors="replace").rpartition(f"{_MARK}\n")
        said = done.stderr.decode(errors="replace")
        if done.returncode == _CONNECTION_FAILED and not begun and _MARK not in said:
            why = cause_of(said) or "the connection ended before the command began"
            raise BoardError(f"{self.host}: {why}; try: {self._remedy(said)}")
        said = said.rpartition(f"{_MARK}\n")[2]
        if done.returncode != 0:
            raise BoardError(f"{self.host}: {cause_of(said) or f'{command!r} gave {done.returncode}'}")
        return out

    def copy(self, files: Sequence[Path], folder: str, timeout: float = 600.0) -> None:
        """Put ``files`` into the existing ``folder`` there."""
        with TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for path in files:
                    archive.add(path, path.name, filter=_anonymous)
            file.flush()
            self.run(f"tar -C {shlex.quote(folder)} -xf -", timeout, Path(f"/proc/self/fd/{file.fileno()}"))

    def scratch(self) -> str:
        """A new folder there for a while; what was cut off half a day ago goes.

        It is in the home, since programs may not run in some systems' /tmp; there where the home cannot be written.
        """
        old = "find . -maxdepth 1 -type d -name '.bitkiln-run.??????' -mmin +720 -exec rm -rf {} + 2> /dev/null"
        made = self.run(f'{old}; mktemp -d "$PWD/.bitkiln-run.XXXXXX" 2> /dev/null || mktemp -d')
        return made.strip()

    def read(self, path: str, timeout: float = 120.0) -> bytes:
        """The content of a file there."""
        # As text, so that one way of running commands serves all.
        return bytes.fromhex(self.run(f"od -An -v -tx1 {shlex.quote(path)}", timeout))

    def tunnel(self, *forwards: str) -> list[str]:
        """The command that holds ``forwards`` (ssh's -L and -R with their values) open for as long as it runs."""
        return [*self._ssh(), "-N", "-o", "ExitOnForwardFailure=yes", *forwards, "--", self.host]

    def _ssh(self) -> list[str]:
        command = [*self._plain(), "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        return [*command, "-o", f"ServerAliveInterval={CONNECT_SECONDS}"]

    def _plain(self) -> list[str]:
        command = shlex.split(os.environ.get("BITKILN_SSH", "ssh"))
        return [*command, "-p", str(self.port)] if self.port else command

    def _remedy(self, said: str) -> str:
        """What to type after ssh has said so; it may ask questions, which we never do."""
        ssh, *options = self._plain()
        if "IDENTIFICATION HAS CHANGED" in said:
            # The known_hosts file writes hosts at other ports so: man 8 sshd.
            name = self.host.rpartition("@")[2]
            return shlex.join(["ssh-keygen", "-R", f"[{name}]:{self.port}" if self.port else name])
        if "Host key verification failed" in said:
            return shlex.join([ssh, *options, "-o", "StrictHostKeyChecking=accept-new", self.host, "true"])
        if "Permission denied" in said:
            return shlex.join(["ssh-copy-id", *options, self.host]) + " (after ssh-keygen, if you have no key yet)"
        return shlex.join([ssh, *options, self.host])


def split_destination(text: str) -> tuple[str, str]:
    """USER@HOST[:DIR] as the host for ssh and the folder, "" where there is none; IPv6 addresses stand in brackets."""
    user, at, rest = text.rpartition("@")
    if rest.startswith("["):
        host, closed, folder = rest[1:].partition("]")
        if closed and (not folder or folder[0] == ":"):
            return f"{user}{at}{host}", folder[1:]
    host, _, folder = text.partition(":")
    return host, folder


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the host's owner and its umask: readable by whoever unpacks."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member


#: What systems say of a cause, and what to do about it.
_CAUSES = {
    "No space left on device": "free some space there",
    "Disk quota exceeded": "free some space there",
    "Read-only file system": "remount it writable, or reboot the board and check its card",
    "Input/output error": "its card may be dying",
}


def cause_of(said: str) -> str:
    """The line of an error message that says why: programs like tar name the cause first and sum up last."""
    lines = [printable(line.strip(), 300) for line in said.splitlines() if line.strip()]
    for cause, remedy in _CAUSES.items():
        for line in lines:
            if cause in line:
                return f"{line}; {remedy}"
    return lines[-1] if lines else ""
