"""Other engines' wheels from PyPI, at fixed versions, kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.support.files import cache_directory

VERSIONS = {"ncnn": "1.0.20261020", "onnxruntime": "1.31.1", "litert": "2.3.0"}
#: What the engines need at run time and no more: their other dependencies are for downloads and model zoos.
BOARD_WHEELS = (
    f"ncnn=={VERSIONS['ncnn']}",
    f"onnxruntime=={VERSIONS['onnxruntime']}",
    f"ai-edge-litert=={VERSIONS['litert']}",
    "numpy==2.4.6",
    "flatbuffers==25.12.19",
    "ml_dtypes==0.6.0",
)
PNNX = "pnnx==20261020"
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_24_aarch64",
    "manylinux2014_aarch64",
    "manylinux_2_17_aarch64",
)
PIP_TIMEOUT = 900.0


def board_packages() -> Path:
    """A folder for PYTHONPATH with all engines for 64-bit ARM and Python 3.11; fetched on first use. Raises SetupError."""
    foreign = [f"--platform={name}" for name in PLATFORMS]
    return _installed("peers-aarch64", BOARD_WHEELS, ["--only-binary=:all:", "--python-version=3.11", *foreign])


def pnnx() -> Path:
    """The converter from ONNX to ncnn, for this machine; fetched on first use. Raises SetupError."""
    return _installed("pnnx", [PNNX], []) / "pnnx" / "pnnx"


def _installed(name: str, wheels: Sequence[str], options: Sequence[str]) -> Path:
    digest = hashlib.sha256(" ".join(wheels).encode()).hexdigest()[:12]
    folder = cache_directory() / "bench" / f"{name}-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {', '.join(wheels)} (once)", file=sys.stderr, flush=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
    try:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", *options]
        _pip([*command, f"--target={scratch}", *wheels])
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            # Another run was faster; what it fetched is the same.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


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
