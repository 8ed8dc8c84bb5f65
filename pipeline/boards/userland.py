"""The ARM userland that emulated and simulated boards run in, and the TVM runtime that boards load.

Both are made once and kept in the cache. The userland is a plain folder of unpacked Debian packages: no container, no
chroot, no foreign architecture in dpkg. Programs in it run under qemu's user-mode emulation.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bitkiln.pipeline.boards.apt_sources import archive_for
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.support.files import atomic_write, cache_directory
from bitkiln.targets import Target
from bitkiln.targets.sim.identity import write_cpu_identity

SUITE = "bookworm"
PYTHON = "python3.11"
#: Python with all of its standard library, and what TVM's runtime and compiled networks link to.
PACKAGES = (
    "python3-minimal,python3.11,libpython3.11-stdlib,libstdc++6,libgomp1,libc6,zlib1g,libexpat1,libffi8,libssl3,"
    "libbz2-1.0,liblzma5,libsqlite3-0,libatomic1"
)
#: The two libraries of TVM that a board loads while tuning, by the wheel that holds them.
RUNTIME_LIBRARIES = {"apache-tvm": "tvm/lib/libtvm_runtime.so", "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so"}
BUILD_TIMEOUT = 900.0


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
        return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}

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


def userland(target: Target) -> Userland:
    """The userland for ``target``, built in the cache on first use. Raises SetupError."""
    emulator = find_emulator(target)
    root = userland_folder(target)
    if not root.exists():
        with _lock(root):
            if not root.exists():
                _build(target.userland["debian_arch"], root, target)
    return Userland(root, (emulator, "-cpu", target.userland["qemu_cpu"], "-L", str(root)))


def userland_folder(target: Target) -> Path:
    """Where the userland for ``target`` is, once it is built."""
    digest = hashlib.sha256(f"{SUITE} {PACKAGES} 2".encode()).hexdigest()[:12]
    return cache_directory() / "userland" / f"{target.userland['debian_arch']}-{digest}"


def find_emulator(target: Target) -> str:
    """Path of the qemu that runs programs of ``target``; raises SetupError."""
    return _tool(target.userland["qemu"], "qemu-user")


def runtime_libraries() -> Path:
    """A folder with TVM's runtime for 64-bit ARM, the version this host has; fetched on first use. Raises SetupError."""
    pair = [f"{name}=={version(name)}" for name in RUNTIME_LIBRARIES]
    folder = cache_directory() / "tvm-runtime" / "-".join(["aarch64", *(word.split("==")[1] for word in pair)])
    if not folder.exists():
        with _lock(folder):
            if not folder.exists():
                _fetch_runtime(pair, folder)
    return folder


def _build(architecture: str, root: Path, target: Target) -> None:
    """Unpack the packages beside ``root``, then rename: a build that is interrupted leaves nothing behind that counts."""
    mmdebstrap = _tool("mmdebstrap", "mmdebstrap")
    print(f"building an {architecture} userland in {root} (once, about 10 s)", file=sys.stderr, flush=True)
    with _aside(root) as scratch:
        archive = scratch / "root.tar"
        # Nothing of the foreign packages is run, so that nobody needs to be root.
        mode = "root" if os.geteuid() == 0 else "chrootless"
        line = archive_for(SUITE).line(SUITE)
        build = [mmdebstrap, f"--mode={mode}", "--variant=extract", f"--architectures={architecture}"]
        build += ["--skip=check/qemu", f"--include={PACKAGES}", SUITE, str(archive), line]
        _run(build, f"building the {architecture} userland")
        tree = scratch / "root"
        tree.mkdir()
        # Device nodes need root and are not needed: the emulator uses the host's /dev.
        unpack = ["tar", "-xf", str(archive), "-C", str(tree), "--exclude=./dev/*", "--no-same-owner"]
        _run(unpack, f"unpacking the {architecture} userland")
        if not (tree / "usr/bin" / PYTHON).exists():
            raise SetupError(f"the {architecture} userland has no {PYTHON}: is {SUITE} what {line!r} serves?")
        if target.bits == 64:
            write_cpu_identity(tree, {"cpu": target.cpu})
        tree.chmod(0o755)
        tree.rename(root)


def _fetch_runtime(pair: Sequence[str], folder: Path) -> None:
    """Take the two libraries out of the aarch64 wheels; pip finds them as it is configured on this machine."""
    platforms = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
    print("fetching TVM's runtime for 64-bit boards (once, 95 MB)", file=sys.stderr, flush=True)
    with _aside(folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [f"--platform={name}" for name in platforms]
        command += ["--python-version=3.11", f"--dest={scratch / 'wheels'}", *pair]
        _run(command, f"downloading the aarch64 wheels of {' and '.join(pair)}")
        tree = scratch / "lib"
        for name, member in RUNTIME_LIBRARIES.items():
            wheel = next((scratch / "wheels").glob(f"{name.replace('-', '_')}-*.whl"))
            with zipfile.ZipFile(wheel) as archive, atomic_write(tree / Path(member).name, 0o755) as path:
                path.write_bytes(archive.read(member))
        tree.rename(folder)


@contextmanager
def _aside(destination: Path) -> Iterator[Path]:
    """A scratch folder on the file system of ``destination``, removed at the end."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _lock(destination: Path) -> Iterator[None]:
    """Let one process at a time build ``destination``; the system releases the lock of a killed one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (destination.parent / f".{destination.name}.lock").open("w") as file:
        deadline = time.monotonic() + BUILD_TIMEOUT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError(f"another process has been building {destination} for too long: is it stuck?")
                time.sleep(0.2)
        yield


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SetupError(f"{name} is missing: install it with `sudo apt-get install {package}`")
    return path


def _run(command: Sequence[str], purpose: str) -> None:
    """Run a tool; its last line of complaint becomes the SetupError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise SetupError(f"{purpose} took more than {BUILD_TIMEOUT:.0f} s")
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR", "error"))] or lines
        raise SetupError(f"{purpose} failed: {errors[-1] if errors else f'status {done.returncode}'}")
