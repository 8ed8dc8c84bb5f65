"""Photos with the classes they are of: from a folder for each class, or a list of paths and classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.files import read_file

#: Endings of files that are taken for photos.
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class Picture:
    """A photo, and the number of the class it is of."""

    path: Path
    number: int


def find_pictures(folder: Path, listing: Path | None, labels: Sequence[str], classes: int) -> list[Picture]:
    """The photos in ``folder``, in order: those that ``listing`` names, else those in a folder for each class.

    A class is named by its label, any of the names in it that commas part, or its number. Where no folder's name is one
    and there are as many folders as classes, they are the classes in the order of their names, as of ImageFolder in PyTorch.
    Raises InputError.
    """
    names = class_names(labels, classes)
    found = list(_listed(folder, listing, names) if listing else _in_folders(folder, names, classes))
    if not found:
        raise InputError(f"{listing or folder}: no photos in there (a folder for each class, or --list FILE)")
    return found


def class_names(labels: Sequence[str], classes: int) -> dict[str, int]:
    """What a class may be called; what two classes are called stands for neither."""
    known: dict[str, int] = {}
    for number, label in enumerate(labels):
        for name in {plain(part) for part in (label, *label.split(","))}:
            known[name] = -1 if name in known else number
    named = {name: number for name, number in known.items() if number >= 0 and name}
    return {str(number): number for number in range(classes)} | named


def plain(name: str) -> str:
    """A class's name without what people spell differently."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _in_folders(folder: Path, names: Mapping[str, int], classes: int) -> Iterator[Picture]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    parts = sorted(path for path in folder.iterdir() if path.is_dir())
    numbers = {path: names.get(plain(path.name)) for path in parts}
    if parts and len(parts) == classes and not any(number is not None for number in numbers.values()):
        numbers = {path: number for number, path in enumerate(parts)}
    unknown = [path.name for path, number in numbers.items() if number is None]
    if unknown:
        shown = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        raise InputError(f"{folder}: {len(unknown)} folders are called as no class of the bundle is: {shown}")
    for path in parts:
        number = numbers[path]
        assert number is not None
        for photo in sorted(path.rglob("*")):
            if photo.suffix.lower() in ENDINGS and photo.is_file():
                yield Picture(photo, number)


def _listed(folder: Path, listing: Path, names: Mapping[str, int]) -> Iterator[Picture]:
    """Lines of a path and a class, parted by a tab, a comma or the last blank."""
    try:
        lines = read_file(listing).decode("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{listing}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{listing}: no list of photos: it is not text in UTF-8") from None
    for at, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, label = line.partition("\t") if "\t" in line else line.partition(",") if "," in line else _last(line)
        number = names.get(plain(label))
        if number is None:
            raise InputError(
                f"{listing}:{at}: {label.strip()!r} is no class of the bundle; lines are a path and a class"
            )
        path = folder / name.strip()
        if not path.is_file():
            raise InputError(f"{listing}:{at}: {path}: no such file")
        yield Picture(path, number)


def _last(line: str) -> tuple[str, str, str]:
    return line.rstrip().rpartition(" ")
