"""What this machine lacks, and the command of its own package manager that brings it."""

from __future__ import annotations

import shutil

#: Packages that bring a tool, by package manager; "" where its packages have none.
_PACKAGES = {
    "mmdebstrap": {
        "apt-get": "mmdebstrap debian-archive-keyring",
        "dnf": "mmdebstrap apt debian-keyring",
        # mmdebstrap itself is in Arch's user repository.
        "pacman": "apt debian-archive-keyring",
    },
    "gcc": {"apt-get": "gcc libc6-dev", "dnf": "gcc glibc-devel", "pacman": "gcc"},
    "aarch64-linux-gnu-gcc": {
        "apt-get": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        # Fedora's cross compiler has no C library.
        "dnf": "",
        "pacman": "aarch64-linux-gnu-gcc",
    },
    "arm-linux-gnueabihf-gcc": {"apt-get": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross", "dnf": "", "pacman": ""},
    "tar": {"apt-get": "tar", "dnf": "tar", "pacman": "tar"},
    "ssh": {"apt-get": "openssh-client", "dnf": "openssh-clients", "pacman": "openssh"},
}
_COMMANDS = {"apt-get": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S"}

#: Brings a compiler for this machine and for the boards, without the system's packages.
PIP_TOOLCHAIN = "pip install 'bitkiln[toolchain]'"


class Missing(Exception):
    """This machine lacks something: ``message`` says what, ``remedy`` what to type."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}: {remedy}")
        self.message = message
        self.remedy = remedy


def find(tool: str) -> str:
    """Path of ``tool``; raises Missing."""
    path = shutil.which(tool)
    if path is None:
        raise Missing(f"{tool} is missing", remedy(tool))
    return path


def remedy(tool: str) -> str:
    """What to type so that this machine has ``tool``."""
    packages = _PACKAGES.get(tool, {})
    manager = next((name for name in _COMMANDS if shutil.which(name)), "")
    ways = [f"sudo {_COMMANDS[manager]} {packages[manager]}"] if packages.get(manager) else []
    if manager == "pacman" and tool == "mmdebstrap":
        ways[-1] += ", and mmdebstrap from Arch's user repository"
    if tool.endswith("gcc"):
        ways.append(PIP_TOOLCHAIN)
    return " or ".join(ways) or f"install {tool} with this system's packages"
