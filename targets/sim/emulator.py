"""The emulator under simulated boards: Debian 12's qemu-user 7.2 in the cache, with the libraries it needs.

Later Debians build qemu-user without plugins, and the timing model is one. A copy of our own makes every machine run the same
emulator, and brings the Capstone that the model is written for.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from bitkiln.targets import debian, needs
from bitkiln.targets.cache import cache_directory, made_once
from bitkiln.targets.needs import Missing

PACKAGES = ("qemu-user", "libcapstone-dev")
PROGRAMS = ("qemu-aarch64", "qemu-arm")
GLIBC = (2, 36)

#: By this machine's name for its processor: Debian's name, and where its ABI puts the loader.
_HOSTS = {
    "x86_64": ("amd64", "/lib64/ld-linux-x86-64.so.2"),
    "aarch64": ("arm64", "/lib/ld-linux-aarch64.so.1"),
}
#: What belongs to the C library, and has to be of one version with the loader.
_GLIBC_FILES = re.compile(
    r"(ld-linux.*|lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|nsl|nss_.*|thread_db|BrokenLocale|c_malloc_debug)\.so.*)$"
)


@dataclass(frozen=True)
class Emulator:
    """The copy: ``bin/``, ``lib/``, ``libc/`` with the C library, ``include/`` and ``libcapstone.a``."""

    folder: Path

    def command(self, program: str) -> tuple[str, ...]:
        """How to start ``program``, one of PROGRAMS, up to its own arguments."""
        loader, libraries = self._loader()
        return (str(loader), "--library-path", ":".join(map(str, libraries)), str(self.folder / "bin" / program))

    def _loader(self) -> tuple[Path, list[Path]]:
        """The loader and the folders of libraries, with this machine's C library where that is at least as new.

        The plugin is compiled on this machine and may need its C library; qemu needs the one of its own release.
        """
        lib, libc = self.folder / "lib", self.folder / "libc"
        theirs = Path(_HOSTS[platform.machine()][1])
        if _host_glibc() >= GLIBC and theirs.exists():
            return theirs, [lib]
        return libc / theirs.name, [lib, libc]


def emulator() -> Emulator:
    """The emulator, put into the cache on first use. Raises Missing."""
    return Emulator(made_once(folder(), _make))


def folder() -> Path:
    """Where it is, once it is made. Raises Missing."""
    digest = hashlib.sha256(f"{debian.SUITE} {PACKAGES} 1".encode()).hexdigest()[:12]
    return cache_directory() / "emulator" / f"{_architecture()}-{digest}"


def _architecture() -> str:
    if sys.platform != "linux" or platform.machine() not in _HOSTS:
        raise Missing(
            f"simulated boards run on x86-64 and 64-bit ARM Linux, this is {platform.machine()} {platform.system()}",
            "inspect and compile work here; run, profile and tune on such a machine or on a board",
        )
    return _HOSTS[platform.machine()][0]


def _host_glibc() -> tuple[int, ...]:
    """Version of this machine's C library; () where it is another one."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:
        name = ""
    return tuple(int(part) for part in re.findall(r"\d+", name))


def _make(scratch: Path) -> Path:
    architecture = _architecture()
    needs.find("mmdebstrap")
    print(f"fetching the emulator of simulated boards (once, about 10 s): {folder()}", file=sys.stderr, flush=True)
    tree = debian.unpack(architecture, PACKAGES, scratch)
    copy = scratch / "copy"
    for name in ("bin", "lib", "libc", "include"):
        (copy / name).mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy2(tree / "usr/bin" / program, copy / "bin" / program)
    for library in sorted([*tree.glob("lib/*-linux-gnu/*.so*"), *tree.glob("usr/lib/*-linux-gnu/*.so*")]):
        if library.is_file():
            shutil.copy2(library, copy / ("libc" if _GLIBC_FILES.match(library.name) else "lib") / library.name)
    shutil.copytree(tree / "usr/include/capstone", copy / "include/capstone")
    shutil.copy2(next(tree.glob("usr/lib/*-linux-gnu/libcapstone.a")), copy / "libcapstone.a")
    copy.chmod(0o755)
    return copy
