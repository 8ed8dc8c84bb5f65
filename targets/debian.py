"""Debian packages of any architecture, unpacked into a folder: no root, no container, no foreign architecture in dpkg."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bitkiln.targets import needs
from bitkiln.targets.cache import BUILD_SECONDS
from bitkiln.targets.needs import Missing

#: The release whose packages we take: the last whose qemu-user has plugins.
SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def unpack(architecture: str, packages: Sequence[str], scratch: Path, suite: str = SUITE) -> Path:
    """Unpack ``packages`` of a release and all that they depend on into a new folder in ``scratch``. Raises Missing."""
    archive = scratch / "root.tar"
    # Nothing of the packages is run, so that nobody needs to be root and any architecture will do.
    build = [needs.find("mmdebstrap"), "--mode=chrootless", "--variant=extract", f"--architectures={architecture}"]
    build += ["--skip=check/qemu,check/chrootless", f"--include={','.join(packages)}", suite, str(archive)]
    mirror = archive_address()
    if mirror:
        build.append(f"deb {f'[signed-by={KEYRING}] ' if KEYRING.exists() else ''}{mirror} {suite} main")
    what = f"{suite} packages for {architecture}"
    run(build, f"fetching {what}")
    tree = scratch / "root"
    tree.mkdir()
    # Device nodes need root and are not needed: the emulator uses the host's /dev.
    unpack = [needs.find("tar"), "-xf", str(archive), "-C", str(tree), "--exclude=./dev/*", "--no-same-owner"]
    run(unpack, f"unpacking {what}")
    archive.unlink()
    return tree


def archive_address() -> str:
    """The Debian archive that this machine's apt uses; "" where it names none: mmdebstrap's own default serves then."""
    if shutil.which("apt-get") is None:
        return ""
    # Lists what an update would fetch; fetches nothing, and needs neither root nor an earlier update.
    listed = run(["apt-get", "update", "--print-uris"], "asking apt for its archives")
    found = re.findall(r"^'(\S+?)/dists/([^/']+)/InRelease'", listed, re.MULTILINE)
    of_suite = [address for address, suite in found if suite == SUITE]
    debian = [address for address, _ in found if address.endswith("/debian")]
    return next(iter([*of_suite, *debian]), "")


def run(command: Sequence[str], purpose: str) -> str:
    """Run a tool and give what it prints; its last line of complaint becomes Missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Missing(f"{purpose} took more than {BUILD_SECONDS:.0f} s", "is the network slow? try again")
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR", "error"))] or lines
        complaint = errors[-1] if errors else f"status {done.returncode}"
        raise Missing(f"{purpose} failed", f"{complaint}; without a network see `bitkiln fetch --help`")
    return done.stdout
