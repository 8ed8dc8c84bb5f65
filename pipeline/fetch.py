"""All that simulated boards download, brought to a machine without a network as a folder of archives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from bitkiln import targets
from bitkiln.pipeline.boards.userland import missing_as_setup_error, userland, userland_folder
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.targets import debian, needs
from bitkiln.targets.cache import cache_directory, made_once
from bitkiln.targets.sim import emulator

LIST = "bitkiln-fetched.json"
#: Bytes of the longest list that is read.
_MOST = 1 << 20


class Archive(msgspec.Struct, forbid_unknown_fields=True):
    """A part of the cache: ``place`` is its folder below the cache's."""

    file: str
    place: str
    sha256: str


class Listed(msgspec.Struct, forbid_unknown_fields=True):
    """What a folder of archives holds."""

    archives: list[Archive]


@dataclass(frozen=True)
class Part:
    """A part of the cache: ``folder`` is where it is once ``make`` has been called."""

    name: str
    folder: Path
    make: Callable[[], object]


def parts() -> list[Part]:
    """All that is downloaded on first use. Raises SetupError."""
    with missing_as_setup_error():
        found = [Part("emulator", emulator.folder(), emulator.emulator)]
    # One of each kind of system.
    for target in {each.userland["debian_arch"]: each for each in map(targets.load, targets.known())}.values():
        name = f"userland-{target.userland['debian_arch']}"
        found.append(Part(name, userland_folder(target), partial(userland, target)))
    return found


def fetch() -> Iterator[str]:
    """Bring every part into the cache; gives a line for each. Raises SetupError."""
    for part in parts():
        with missing_as_setup_error():
            part.make()
        yield f"{part.name}: {part.folder}"


def pack(destination: Path) -> Iterator[str]:
    """Write every part as an archive into ``destination``; gives a line for each. Raises SetupError."""
    listed = []
    for part in parts():
        with missing_as_setup_error():
            part.make()
            file = destination / f"{part.name}.tar"
            with atomic_write(file) as temporary:
                command = [needs.find("tar"), "-cf", str(temporary), "-C", str(part.folder), "."]
                debian.run(command, f"packing {part.folder}")
        place = part.folder.relative_to(cache_directory())
        listed.append(Archive(file.name, str(place), _digest(file)))
        yield f"{file}: {file.stat().st_size / 1e6:.0f} MB"
    with atomic_write(destination / LIST) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(Listed(listed))))
    yield f"{destination}: take this folder along; there: bitkiln fetch --from {destination.name}"


def unpack(source: Path) -> Iterator[str]:
    """Put the archives of ``source`` that this bitkiln uses into the cache; gives a line for each. Raises SetupError."""
    wanted = {str(part.folder.relative_to(cache_directory())): part for part in parts()}
    archives = {archive.place: archive for archive in _read(source)}
    lacking = [wanted[place].name for place in wanted if place not in archives and not wanted[place].folder.exists()]
    if lacking:
        raise SetupError(
            f"{source} lacks {', '.join(lacking)} as this bitkiln uses it: fetch again with the same version"
        )
    for place, part in wanted.items():
        if part.folder.exists():
            yield f"{part.name}: there already"
            continue
        file = source / archives[place].file
        if file.parent != source or not file.is_file() or _digest(file) != archives[place].sha256:
            raise SetupError(f"{file}: missing or damaged; copy the folder again")
        with missing_as_setup_error():
            made_once(part.folder, partial(_extract, file))
        yield f"{part.name}: {part.folder}"


def _read(source: Path) -> list[Archive]:
    file = source / LIST
    if not file.is_file() or file.stat().st_size > _MOST:
        raise SetupError(f"{source}: no folder that bitkiln fetch --to made (it has no {LIST})")
    try:
        return msgspec.json.decode(file.read_bytes(), type=Listed).archives
    except msgspec.DecodeError as error:
        raise SetupError(f"{file}: {error}; copy the folder again") from None


def _extract(file: Path, scratch: Path) -> Path:
    tree = scratch / "tree"
    tree.mkdir()
    command = [needs.find("tar"), "-xf", str(file), "-C", str(tree), "--no-same-owner"]
    debian.run(command, f"unpacking {file}")
    tree.chmod(0o755)
    return tree


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
