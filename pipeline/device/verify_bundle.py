#!/usr/bin/env python3
"""Says whether a bundle is whole and signed by somebody this board trusts, before anything of it runs.

It is no part of a bundle: whoever alters a bundle can alter all that is in it. ``bitkiln boards setup --signer`` puts it on a
board, beside the list of trusted keys; python3 verify_bundle.py BUNDLE. Needs Python 3.7 and OpenSSH 8.0's ssh-keygen.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
#: The list of trusted keys, beside this file: ssh-keygen(1), "ALLOWED SIGNERS".
SIGNERS = "allowed_signers"
#: What signatures are for, and whose they are: everybody in the list counts as the same.
NAMESPACE, IDENTITY = "bitkiln", "bitkiln"
#: Bytes of the largest manifest or signature that makes sense.
MOST = 64 << 20
SECONDS = 30


class Refused(Exception):
    """The bundle is not to be run; the message says why."""


def verify(folder: Path, signers: Path) -> int:
    """Check the signature of the manifest, then every file by it; gives how many. Raises Refused."""
    manifest = _read(folder, MANIFEST)
    _check_signature(manifest, folder / SIGNATURE, signers)
    try:
        listed = json.loads(manifest.decode())["files"]
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(f"{MANIFEST} is damaged")
    for name in (path.name for path in folder.iterdir()):
        if name not in expected and name not in (MANIFEST, SIGNATURE):
            raise Refused(f"{name} is no part of the bundle: remove it")
    for name, (size, digest) in expected.items():
        if Path(name).name != name or _described(folder, name) != (size, digest):
            raise Refused(f"{name} is not what was signed")
    return len(expected)


def _check_signature(manifest: bytes, signature: Path, signers: Path) -> None:
    """Raise Refused unless ``signature`` is one of ``manifest`` by a key in the file ``signers``."""
    if not signers.is_file():
        raise Refused(
            f"{signers} is not there: this board trusts nobody; `bitkiln boards setup --signer KEY.pub` installs it"
        )
    if not signature.is_file():
        raise Refused("it is not signed; `bitkiln sign BUNDLE` does that")
    command = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-I", IDENTITY, "-f", str(signers), "-s", str(signature)]
    try:
        done = subprocess.run(command, input=manifest, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        raise Refused("there is no ssh-keygen here: install openssh-client")
    except subprocess.TimeoutExpired:
        raise Refused(f"ssh-keygen gives no answer in {SECONDS} s")
    if done.returncode != 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.isprintable()]
        raise Refused(
            "its signature is of nobody whom this board trusts, or of something else ({})".format(
                (said or ["?"])[-1][:200]
            )
        )


def _open(folder: Path, name: str) -> int:
    path = folder / name
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Refused(f"{name} is no file")
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise Refused(f"{name}: {error.strerror}")


def _read(folder: Path, name: str) -> bytes:
    with os.fdopen(_open(folder, name), "rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        raise Refused(f"{name} is too large")
    return data


def _described(folder: Path, name: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with os.fdopen(_open(folder, name), "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def main() -> None:
    """Verify the bundle that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("verify_bundle: give the folder of a bundle")
    signers = Path(__file__).resolve().parent / SIGNERS
    try:
        print(f"signed: {verify(Path(sys.argv[1]), signers)} files, by somebody whom this board trusts")
    except Refused as reason:
        print(f"verify_bundle: {sys.argv[1]}: {reason}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"verify_bundle: {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
