"""Zig's C compiler from PyPI, the extra ``toolchain``: compiles and links for this machine and for every board, without root.

It brings the C library's headers and symbols of every release, so that the oldest glibc a library runs on is ours to choose.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import version

from bitkiln.targets.cache import cache_directory


def installed() -> bool:
    """Whether this Python has the package."""
    return importlib.util.find_spec("ziglang") is not None


def compiler(triple: str) -> list[str]:
    """Its command for ``triple``, e.g. "aarch64-linux-gnu.2.17"; a compiler for gcc's options."""
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-fno-sanitize=undefined", "-g0"]


def identity() -> str:
    """Its name and version."""
    return f"zig {version('ziglang')}"


def environment() -> dict[str, str]:
    """The environment to run it in: what it builds for itself is kept in our cache."""
    cache = str(cache_directory() / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
