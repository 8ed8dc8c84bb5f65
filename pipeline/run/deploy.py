"""Puts a bundle on a board: copied aside, verified and run there, and only then renamed into place."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards.setup import FOLDER
from bitkiln.pipeline.boards.ssh import Remote, split_destination
from bitkiln.pipeline.bundle import MANIFEST, open_bundle
from bitkiln.pipeline.device import replace_folder
from bitkiln.pipeline.device.verify_bundle import SIGNERS
from bitkiln.pipeline.errors import BoardError, BundleError

#: Loading and one run on a slow board, after reading all files once.
CHECK_SECONDS = 300.0


@dataclass(frozen=True)
class Deployed:
    """Where a bundle was put: ``folder`` of ``host``; ``checks`` is what its check said there."""

    bundle: Path
    host: str
    folder: str
    checks: tuple[str, ...]

    def as_json(self) -> schema.Deploy:
        """The same as plain values."""
        return {
            "schema": "bitkiln.deploy/1",
            "bundle": str(self.bundle),
            "host": self.host,
            "folder": self.folder,
            "checks": list(self.checks),
        }


def deploy(bundle: Path, destination: str, port: int | None = None, console: Console | None = None) -> Deployed:
    """Copy ``bundle`` to ``destination`` (USER@HOST[:DIR]) and check it there.

    Without DIR it goes to bitkiln/<the bundle's name> in the home folder. Raises BundleError, BoardError, SetupError.
    """
    console = console or Console(quiet=True)
    opened = open_bundle(bundle)
    host, named = split_destination(destination)
    folder = "." if named == "~" else named.removeprefix("~/") or f"bitkiln/{bundle.resolve().name}"
    remote = Remote(host, port)
    _refuse_foreign(remote, folder)
    aside = _make_aside(remote, folder)
    try:
        remote.copy(opened.files(), aside)
        checks = [*_signature(remote, aside), *_check(remote, aside).splitlines()]
        for line in checks:
            console.print(f"{host}: {line}", highlight=False, markup=False)
        _put_in_place(remote, aside, folder)
    except BaseException:
        _remove(remote, aside)
        raise
    console.print(f"{host}:{folder} is ready: ssh {host} python3 {folder}/runner.py --bench", highlight=False)
    return Deployed(bundle, host, folder, tuple(checks))


def _refuse_foreign(remote: Remote, folder: str) -> None:
    where, manifest = shlex.quote(folder), shlex.quote(f"{folder}/{MANIFEST}")
    if remote.run(f"if [ -e {where} ] && [ ! -f {manifest} ]; then echo foreign; fi").strip():
        raise BundleError(f"{remote.host}:{folder} exists and is no bundle; name another folder or remove it")


def _make_aside(remote: Remote, folder: str) -> str:
    """A new folder beside ``folder``; what a deployment that was cut off left an hour ago or longer goes."""
    parent, name = str(PurePosixPath(folder).parent), PurePosixPath(folder).name
    where, stem = shlex.quote(parent), f".bitkiln-new.{name[:100]}"
    old = f"find {where} -maxdepth 1 -type d -name {shlex.quote(stem + '.??????')} -mmin +60 -exec rm -rf {{}} +"
    template = shlex.quote(f"{parent}/{stem}.XXXXXX")
    return remote.run(f"mkdir -p {where} && {{ {old}; mktemp -d {template}; }}").strip()


def _signature(remote: Remote, folder: str) -> list[str]:
    """What the board says of the signature, by its own program and keys; nothing where it was never told whom to trust."""
    home = f"$HOME/{FOLDER}"
    try:
        return remote.run(
            f'if [ -f "{home}/{SIGNERS}" ]; then python3 "{home}/verify_bundle.py" {shlex.quote(folder)}; fi',
            CHECK_SECONDS,
        ).splitlines()
    except BoardError as error:
        raise BoardError(f"the board does not take the bundle: {error}") from None


def _check(remote: Remote, folder: str) -> str:
    runner, where = shlex.quote(f"{folder}/runner.py"), shlex.quote(folder)
    try:
        return remote.run(f"python3 {runner} {where} --check", CHECK_SECONDS)
    except BoardError as error:
        raise BoardError(f"the bundle does not run there: {error}") from None


def _put_in_place(remote: Remote, aside: str, folder: str) -> None:
    new, here = shlex.quote(aside), shlex.quote(folder)
    remote.run(f"chmod 755 {new} && python3 - {new} {here}", send=Path(replace_folder.__file__))


def _remove(remote: Remote, folder: str) -> None:
    try:
        remote.run(f"rm -rf {shlex.quote(folder)}", 30.0)
    except BoardError:
        # The board is gone: the first error says so, and the folder's name begins with a dot.
        return
