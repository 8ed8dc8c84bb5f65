"""Bundles that are signed with an ssh key, and boards that take no others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitkiln.pipeline import api
from bitkiln.pipeline.bundle import Bundle, signing
from bitkiln.pipeline.device import verify_bundle
from bitkiln.pipeline.errors import BoardError, InputError
from bitkiln.pipeline.run.deploy import deploy
from tests.ssh_board import Device


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the keys "mine" and "other"."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return folder


@pytest.fixture
def signed(keys: Path, toy_bundle: Bundle, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(toy_bundle.folder, folder)
    assert signing.sign(folder, keys / "mine").name == "manifest.json.sig"
    return folder


@pytest.fixture
def signers(keys: Path, tmp_path: Path) -> Path:
    path = tmp_path / "allowed_signers"
    path.write_text(signing.allowed_signers([keys / "mine.pub"]))
    return path


def test_a_signed_bundle_is_whole(signed: Path, signers: Path) -> None:
    listed = json.loads((signed / "manifest.json").read_text())["files"]
    assert verify_bundle.verify(signed, signers) == len(listed)


def _another_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("rasp3b", "rasp3c"))


def _a_file_that_python_would_import(folder: Path) -> None:
    (folder / "numpy.py").write_text("print('caught')")


def _another_runner(folder: Path) -> None:
    (folder / "runner.py").write_text("print('caught')")


def _a_link(folder: Path) -> None:
    (folder / "model.so").rename(folder.parent / "model.so")
    (folder / "model.so").symlink_to(folder.parent / "model.so")


def _no_signature(folder: Path) -> None:
    (folder / "manifest.json.sig").unlink()


def _a_foreign_signature(folder: Path) -> None:
    (folder / "manifest.json.sig").write_text("-----BEGIN SSH SIGNATURE-----\nx\n-----END SSH SIGNATURE-----\n")


@pytest.mark.parametrize(
    "damage",
    [
        _another_manifest,
        _a_file_that_python_would_import,
        _another_runner,
        _a_link,
        _no_signature,
        _a_foreign_signature,
    ],
)
def test_what_was_altered_since_is_refused(signed: Path, signers: Path, damage) -> None:
    damage(signed)
    with pytest.raises(verify_bundle.Refused):
        verify_bundle.verify(signed, signers)


def test_another_key_is_not_trusted(signed: Path, signers: Path, keys: Path) -> None:
    signing.sign(signed, keys / "other")
    with pytest.raises(verify_bundle.Refused, match="nobody whom this board trusts"):
        verify_bundle.verify(signed, signers)


def test_a_signature_for_something_else_does_not_count(signed: Path, signers: Path, keys: Path) -> None:
    # The same key signs commits, too.
    command = ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", keys / "mine", signed / "manifest.json"]
    (signed / "manifest.json.sig").unlink()
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(verify_bundle.Refused):
        verify_bundle.verify(signed, signers)


def test_keys_that_are_none(keys: Path, signed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="private key, which stays with you"):
        signing.allowed_signers([keys / "mine"])
    (tmp_path / "text").write_text("hello\n")
    for path in (tmp_path / "text", tmp_path / "none"):
        with pytest.raises(InputError):
            signing.allowed_signers([path])
        with pytest.raises(InputError):
            signing.sign(signed, path)


def test_a_board_takes_only_what_its_owner_signed(device: Device, signed: Path, keys: Path, toy_bundle: Bundle) -> None:
    api.trust_signers(device.address, [keys / "mine.pub"], device.port)
    with pytest.raises(BoardError, match=r"does not take the bundle: .*not signed"):
        deploy(toy_bundle.folder, f"{device.address}:net", device.port)
    assert not (device.home / "net").exists()
    made = deploy(signed, f"{device.address}:net", device.port)
    assert made.checks[0].startswith("signed: ")
    signing.sign(signed, keys / "other")
    with pytest.raises(BoardError, match="nobody whom this board trusts"):
        deploy(signed, f"{device.address}:net", device.port)
    assert (device.home / "net/manifest.json.sig").exists()


def test_the_program_says_it_in_a_line(signed: Path, signers: Path, tmp_path: Path) -> None:
    program = shutil.copy(verify_bundle.__file__, tmp_path / "verify_bundle.py")
    good = subprocess.run([sys.executable, program, signed], capture_output=True, text=True, timeout=60)
    assert good.returncode == 0 and good.stdout.startswith("signed: ")
    for folder in (tmp_path / "none", signed / "model.so"):
        bad = subprocess.run([sys.executable, program, folder], capture_output=True, text=True, timeout=60)
        assert bad.returncode == 2 and bad.stderr.count("\n") == 1
