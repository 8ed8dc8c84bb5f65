"""Signing bundles with the user's own ssh key: whoever has the public half can tell that a bundle is theirs.

The signature is of the manifest, which names the digest of every other file; ``ssh-keygen -Y`` makes and checks it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bitkiln.pipeline.bundle import MANIFEST, open_bundle
from bitkiln.pipeline.device.verify_bundle import IDENTITY, NAMESPACE, SIGNATURE
from bitkiln.pipeline.errors import BundleError, InputError, SetupError
from bitkiln.pipeline.support.files import atomic_write, read_file
from bitkiln.pipeline.support.text import printable
from bitkiln.targets.scratch import scratch_folder

#: The user's keys, the first that there is, in the order in which ssh tries them.
KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
#: Seconds for the user to type a passphrase, or to touch a token.
PATIENCE = 300.0
#: Bytes of the longest public key.
MOST_BYTES = 1 << 16


def sign(folder: Path, key: Path | None = None) -> Path:
    """Sign the bundle in ``folder`` with the ssh key in the file ``key``, the user's own unless given; gives the signature.

    ssh-keygen asks for a passphrase itself. Raises BundleError, InputError, SetupError.
    """
    open_bundle(folder)
    key = key or _own_key()
    with scratch_folder() as name:
        manifest = Path(name) / MANIFEST
        shutil.copyfile(folder / MANIFEST, manifest)
        _keygen(["-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(manifest)], key)
        with atomic_write(folder / SIGNATURE) as temporary:
            shutil.copyfile(Path(name) / SIGNATURE, temporary)
    return folder / SIGNATURE


def allowed_signers(keys: Sequence[Path]) -> str:
    """The public keys in the files ``keys`` as a file of allowed signers. Raises InputError for what is no public key."""
    lines = []
    for path in keys:
        try:
            text = read_file(path, MOST_BYTES).decode(errors="replace")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        if "PRIVATE KEY" in text:
            raise InputError(f"{path}: that is a private key, which stays with you; give {path}.pub")
        _keygen(["-l", "-f", str(path)], path)
        words = text.split()
        lines.append(f'{IDENTITY} namespaces="{NAMESPACE}" {words[0]} {words[1]}\n')
    return "".join(lines)


def _own_key() -> Path:
    folder = Path("~/.ssh").expanduser()
    for name in KEYS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: there is no ssh key; `ssh-keygen -t ed25519` makes one, or name another with --key")


def _keygen(arguments: Sequence[str], key: Path) -> None:
    """Run ssh-keygen, which may ask the user. Raises InputError, SetupError."""
    if not key.is_file():
        raise InputError(f"{key}: there is no such key")
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=PATIENCE
        )
    except FileNotFoundError:
        raise SetupError("ssh-keygen is not installed: sudo apt install openssh-client") from None
    except subprocess.TimeoutExpired:
        raise BundleError(f"{key}: ssh-keygen gave no answer in {PATIENCE:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise InputError(f"{key}: ssh-keygen cannot use it ({printable((lines or ['no message'])[-1], 200)})")
