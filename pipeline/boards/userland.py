"""The ARM userland that emulated and simulated boards run in.

Both are made once and kept in the cache. The userland is a plain folder of unpacked Debian packages: no container, no
chroot, no foreign architecture in dpkg. Programs in it run under qemu's user-mode emulation.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target, debian, needs
from bitkiln.targets.cache import cache_directory, made_once
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim import unlike
from bitkiln.targets.sim.emulator import emulator
from bitkiln.targets.sim.identity import write_cpu_identity

PYTHON = "python3.11"
#: Python with all of its standard library, and what compiled networks link to.
PACKAGES = (
    "python3-minimal",
    "python3.11",
    "libpython3.11-stdlib",
    "libstdc++6",
    "libgomp1",
    "libc6",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libatomic1",
)


@dataclass(frozen=True)
class Userland:
    """A folder with an ARM system in it, and the emulator that runs its programs.

    ``qemu`` is the emulator's command up to the program: its path, the CPU and the root folder.
    """

    root: Path
    qemu: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What programs in it get as environment: the same on every host, since nothing of the host's fits."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # Else Python touches other pages in every run, and simulated caches hold other lines.
        }

    @property
    def python(self) -> Path:
        """The userland's Python."""
        return self.root / "usr/bin" / PYTHON

    def command(self, argv: Sequence[str], plugin: str | None = None) -> list[str]:
        """The host's command line that runs ``argv`` in the userland.

        ``argv[0]`` is "python3" or the path of an ARM program; ``plugin`` is qemu's argument for a timing plugin.
        """
        program = str(self.python) if argv[0] == "python3" else argv[0]
        extra = ["-plugin", plugin] if plugin else []
        return [*self.qemu, *extra, program, *argv[1:]]


def userland(target: Target, packages: Sequence[str] = ()) -> Userland:
    """The userland for ``target``, with more of Debian's ``packages``; built in the cache on first use. Raises SetupError."""
    with missing_as_setup_error():
        command = emulator().command(target.userland["qemu"])
        root = made_once(userland_folder(target, packages), lambda scratch: _build(target, packages, scratch))
    return Userland(root, (*command, "-cpu", target.userland["qemu_cpu"], "-L", str(root)))


def userland_folder(target: Target, packages: Sequence[str] = ()) -> Path:
    """Where the userland for ``target``, with more ``packages``, is once it is built."""
    content = f"{debian.SUITE} {(*PACKAGES, *packages)} 4"
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return cache_directory() / "userland" / f"{target.userland['debian_arch']}-{digest}"


@contextmanager
def missing_as_setup_error() -> Iterator[None]:
    """Make what a machine lacks one of the pipeline's errors."""
    try:
        yield
    except Missing as problem:
        raise SetupError(str(problem)) from None


def _build(target: Target, packages: Sequence[str], scratch: Path) -> Path:
    architecture = target.userland["debian_arch"]
    needs.find("mmdebstrap")
    print(
        f"building an {architecture} userland (once, about 10 s): {userland_folder(target, packages)}",
        file=sys.stderr,
        flush=True,
    )
    tree = debian.unpack(architecture, (*PACKAGES, *packages), scratch)
    if not (tree / "usr/bin" / PYTHON).exists():
        raise Missing(
            f"the {architecture} userland has no {PYTHON}", "is Debian 12 what this machine's archive serves?"
        )
    if unlike(target) is None:
        write_cpu_identity(tree, {"cpu": target.cpu}, 64 if target.architecture == "aarch64" else 32)
    tree.chmod(0o755)
    return tree
