"""The compiler and linker for a board: the system's cross gcc, or zig's from PyPI where there is none.

What decides speed comes from neither: TVM's LLVM compiles kernels, and micro-kernels are assembly of ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bitkiln.targets import needs, zig
from bitkiln.targets.loader import Target
from bitkiln.targets.needs import Missing

#: Set to "gcc" or "zig" to have that one and no other.
CHOICE = "BITKILN_TOOLCHAIN"


@dataclass(frozen=True)
class Toolchain:
    """``command`` compiles and links for the board, with the options of gcc; ``name`` says which version of what it is."""

    command: tuple[str, ...]
    name: str
    is_zig: bool

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment to run it in; complaints are in English."""
        return {**(zig.environment() if self.is_zig else os.environ), "LC_ALL": "C"}


def toolchain(target: Target) -> Toolchain:
    """The toolchain for ``target``. Raises Missing."""
    choice = os.environ.get(CHOICE, "")
    gcc = shutil.which(target.cc["compiler"])
    if gcc and choice != "zig":
        return Toolchain((gcc, *target.cc["flags"]), _gcc_name(gcc), is_zig=False)
    if zig.installed() and choice != "gcc" and "zig_triple" in target.cc:
        command = (*zig.compiler(target.cc["zig_triple"]), *target.cc["zig_flags"])
        return Toolchain(command, zig.identity(), is_zig=True)
    if choice == "zig":
        raise Missing("ziglang is not installed", needs.PIP_TOOLCHAIN)
    raise Missing(
        f"there is no compiler for {target.name} ({target.cc['compiler']})", needs.remedy(target.cc["compiler"])
    )


@cache
def _gcc_name(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    version = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return f"gcc {version[0]}" if version else done.stdout.splitlines()[0]
