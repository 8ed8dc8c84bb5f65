"""The deployable folder: how it is written, and how the host reads and verifies one.

manifest.json   what the bundle is, and the size and SHA-256 of every other file; manifest.json.sig where it was signed
model.so        the compiled network
bitkiln.h       its interface for C and C++; bitkiln.c opens bundles by their path
runner.py       runs it from Python or the command line
labels.txt      class names, one a line, where the model has them
golden_*.npy    an input and the answer the compiled network gave for it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitkiln import targets
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.device.replace_folder import recover, replace_folder
from bitkiln.pipeline.device.verify_bundle import SIGNATURE
from bitkiln.pipeline.errors import BundleError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.support.checked import Malformed, table
from bitkiln.pipeline.support.files import ASIDE, read_file
from bitkiln.pipeline.support.text import printable
from bitkiln.targets.scratch import discard, scratch_beside

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DEVICE = Path(__file__).parents[1] / "device"
#: Files that are the same in every bundle.
DEVICE_FILES = ("bitkiln.c", "bitkiln.h", "runner.py")


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine. ``manifest`` is the parsed manifest.json."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> targets.Target:
        """The kind of board it was compiled for. Raises BundleError for one that this bitkiln does not know."""
        try:
            return targets.load(self.manifest["target"])
        except targets.UnknownTarget as error:
            raise BundleError(f"{self.folder / MANIFEST}: {printable(str(error), 400)}") from None

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; empty where the model has none."""
        if "labels.txt" not in self.manifest["files"]:
            return ()
        return tuple((self.folder / "labels.txt").read_text(encoding="utf-8").splitlines())

    def files(self) -> list[Path]:
        """All files of the bundle, the manifest and its signature, if any, included."""
        signature = [self.folder / SIGNATURE] if (self.folder / SIGNATURE).is_file() else []
        return [self.folder / MANIFEST, *signature, *(self.folder / name for name in self.manifest["files"])]


def open_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in ``folder``; raises BundleError."""
    bundle = Bundle(folder, _read_manifest(folder))
    for name in runner.PROGRAMS:
        if name not in bundle.manifest["files"]:
            raise BundleError(f"{folder / MANIFEST}: does not list {name}; compile or copy the bundle again")
    for name, expected in bundle.manifest["files"].items():
        path = folder / name
        if not runner.plain_name(name) or not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; compile or copy it again")
        if path.is_symlink():
            raise BundleError(f"{path}: a link, not a file; compile or copy the bundle again")
        if describe_file(path) != expected:
            raise BundleError(f"{path}: altered since it was compiled; compile or copy the bundle again")
    return bundle


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    with suppress(OSError):  # Of somebody else's folder, in which we may not write.
        recover(folder)
    if not path.is_file():
        raise BundleError(f"{folder}: no bundle (it has no {MANIFEST}); bitkiln compile makes one")
    try:
        manifest = table(read_file(path, runner.MAX_MANIFEST), runner.MAX_MANIFEST)
    except Malformed as problem:
        raise BundleError(f"{path}: damaged ({problem}); compile or copy the bundle again") from None
    missing = {"format", "target", "files", "inputs", "outputs", "steps"} - manifest.keys()
    if manifest.get("format") != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format {printable(str(manifest.get('format')), 40)}, this bitkiln knows {FORMAT_VERSION}; compile again"
        )
    if missing:
        raise BundleError(f"{path}: damaged, it lacks {', '.join(sorted(missing))}; compile or copy the bundle again")
    steps = manifest["steps"] if isinstance(manifest["steps"], list) else []
    chosen = [step for step in steps if isinstance(step, dict) and "workload" in step]
    several = [step["several"] for step in chosen if "several" in step]
    if not (runner.fits(manifest, _MANIFEST) and runner.fits(chosen, [_CHOSEN]) and runner.fits(several, [_SEVERAL])):
        raise BundleError(f"{path}: damaged, it holds something else than expected; compile or copy the bundle again")
    return manifest


_STEP = {"name": str, "kind": str, "macs": (int, float), "weight_bytes": (int, float), "binary": bool}
#: What a manifest must hold where commands take it for granted; see ``runner.fits``.
_MANIFEST = {**runner.MANIFEST, "target": str, "steps": [_STEP], "model": {"name": str, "sha256": str}}
#: A step whose kernel was chosen for a workload, and that kernel on several threads, where it is another.
_CHOSEN = {"workload": str, "chosen": str, "knobs": dict}
_SEVERAL = {"chosen": str, "knobs": dict}


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as the manifest lists them."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def refuse_foreign(folder: Path) -> None:
    """Raise BundleError where ``folder`` exists and is neither empty nor a bundle: it would be overwritten."""
    if folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists() or folder.is_symlink():
        raise BundleError(f"{folder}: exists and is no bundle; name another folder or remove it")


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place at the end; on an error nothing changes.

    A link is followed: the folder at its end is replaced. Raises BundleError, OSError.
    """
    refuse_foreign(folder)
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = scratch_beside(folder.parent, ASIDE)
    except OSError as error:
        # The system names the scratch folder, which the user never heard of.
        raise BundleError(
            f"{folder}: no folder can be made there ({error.strerror}); name another one with -o"
        ) from None
    try:
        yield fresh
        fresh.chmod(0o755)
        replace_folder(fresh, folder)
    finally:
        discard(fresh)


def add_files(folder: Path, model: Model, manifest: dict[str, Any]) -> None:
    """Put everything beside the library into ``folder``; a first manifest makes it runnable."""
    for name in DEVICE_FILES:
        shutil.copyfile(DEVICE / name, folder / name)
    (folder / "runner.py").chmod(0o755)
    if model.labels:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in model.labels), encoding="utf-8")
    if model.preprocessing:
        manifest["preprocessing"] = asdict(model.preprocessing)
    if model.head:
        manifest["head"] = asdict(model.head)
    finish(folder, manifest)


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """List all files in the manifest, write it, and flush everything to the disk."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    manifest["files"] = {name: describe_file(folder / name) for name in names}
    text = json.dumps(manifest, indent=1, ensure_ascii=False, default=float) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
