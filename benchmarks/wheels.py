"""Other engines' wheels from PyPI, at fixed versions, kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitkiln.pipeline.boards.userland import Userland, missing_as_setup_error, userland
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target
from bitkiln.targets.cache import cache_directory, made_once

#: By architecture, what the engines need at run time and no more: their other dependencies are for downloads and model zoos.
VERSIONS: Mapping[str, Mapping[str, str]] = {
    "aarch64": {
        "ncnn": "1.0.20261020",
        "onnxruntime": "1.31.1",
        "ai-edge-litert": "2.3.0",
        "numpy": "2.4.6",
        "flatbuffers": "25.12.19",
        "ml_dtypes": "0.6.0",
    },
    # tflite-runtime is what ai-edge-litert was called before; its last wheel for 32 bits.
    "armv7l": {"ncnn": "1.0.20261020", "tflite-runtime": "2.14.0"},
}
#: Why an engine that other boards have is not among them.
MISSING: Mapping[str, Mapping[str, str]] = {
    "aarch64": {},
    "armv7l": {
        "onnxruntime": "PyPI has no wheel of onnxruntime for 32-bit ARM",
        "ai-edge-litert": "PyPI has no wheel of ai-edge-litert for 32-bit ARM: see tflite-runtime",
    },
}
PNNX = "pnnx==20261020"
_GLIBC = ("2_28", "2_27", "2_24", "2_17")
PLATFORMS: Mapping[str, Sequence[str]] = {
    "aarch64": [*(f"manylinux_{glibc}_aarch64" for glibc in _GLIBC), "manylinux2014_aarch64"],
    "armv7l": [f"manylinux_{glibc}_armv7l" for glibc in ("2_34", "2_31", "2_17")],
}
#: Debian's packages that the wheels need in the userland: PyPI has no numpy for 32-bit ARM.
DEBIAN: Mapping[str, Sequence[str]] = {"aarch64": (), "armv7l": ("python3-numpy",)}
PIP_TIMEOUT = 900.0


@dataclass(frozen=True)
class Packages:
    """The userland with the engines, and the environment that lets its Python find them."""

    userland: Userland
    environment: Mapping[str, str]


def board_packages(target: Target) -> Packages:
    """All engines for the architecture of ``target`` and Python 3.11; fetched on first use. Raises SetupError."""
    architecture = target.architecture
    wheels = [f"{name}=={version}" for name, version in VERSIONS[architecture].items()]
    foreign = [f"--platform={name}" for name in PLATFORMS[architecture]]
    options = ["--only-binary=:all:", "--python-version=3.11", *foreign]
    folders = [_installed(f"peers-{architecture}", wheels, options)]
    system = userland(target, DEBIAN[architecture])
    if not DEBIAN[architecture]:
        return Packages(system, {"PYTHONPATH": str(folders[0])})
    # Debian's links to the BLAS that is chosen are made when packages are set up, and ours are unpacked only.
    libraries = [str(folder) for name in ("blas", "lapack") for folder in system.root.glob(f"usr/lib/*/{name}")]
    folders.append(system.root / "usr/lib/python3/dist-packages")
    return Packages(system, {"PYTHONPATH": ":".join(map(str, folders)), "LD_LIBRARY_PATH": ":".join(libraries)})


def pnnx() -> Path:
    """The converter from ONNX to ncnn, for this machine; fetched on first use. Raises SetupError."""
    return _installed("pnnx", [PNNX], []) / "pnnx" / "pnnx"


def _installed(name: str, wheels: Sequence[str], options: Sequence[str]) -> Path:
    """The folder of the cache into which pip has installed ``wheels``; one process at a time fills it."""

    def install(scratch: Path) -> Path:
        print(f"fetching {', '.join(wheels)} (once)", file=sys.stderr, flush=True)
        folder = scratch / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", *options]
        _pip([*command, f"--target={folder}", *wheels])
        folder.chmod(0o755)
        return folder

    digest = hashlib.sha256(" ".join(wheels).encode()).hexdigest()[:12]
    with missing_as_setup_error():
        return made_once(cache_directory() / "bench" / f"{name}-{digest}", install)


def _pip(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"pip took more than {PIP_TIMEOUT:.0f} s to fetch the engines' wheels: is the index reachable?"
        )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SetupError(f"pip cannot fetch the engines' wheels: {errors[-1] if errors else 'it says nothing'}")
