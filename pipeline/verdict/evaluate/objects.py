"""What is on the photos that a detector is evaluated on: a line for each object, or a file of COCO's annotations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.files import read_file
from bitkiln.pipeline.verdict.evaluate.pictures import class_names, plain
from bitkiln.pipeline.verdict.evaluate.precision import Object

#: What a line of a list is.
LINE = "a path, a class, left, top, right and bottom in pixels, or a path alone where nothing is on the photo"


class CocoImage(msgspec.Struct):
    """A photo of a COCO file."""

    id: int
    file_name: str


class CocoCategory(msgspec.Struct):
    """A class; COCO's numbers have gaps."""

    id: int
    name: str


class CocoAnnotation(msgspec.Struct):
    """An object: ``bbox`` is left, top, width and height in pixels."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class Coco(msgspec.Struct):
    """What counts of a file of COCO's instances."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def find_objects(folder: Path, listing: Path, labels: Sequence[str], classes: int) -> dict[Path, list[Object]]:
    """The objects on each photo below ``folder`` that ``listing`` names, in its order. Raises InputError.

    Files that end in .json are COCO's. Classes are named as for ``find_pictures``; where a COCO file names none of the
    bundle's and has as many as the bundle, they are the same in the order of their numbers.
    """
    try:
        data = read_file(listing)
    except OSError as error:
        raise InputError(f"{listing}: {error.strerror}") from None
    if listing.suffix.lower() == ".json":
        found = _of_coco(data, folder, listing, labels, classes)
    else:
        found = _of_lines(data, folder, listing, class_names(labels, classes))
    if not any(found.values()):
        raise InputError(f"{listing}: no objects in there; lines are {LINE}")
    return found


def _of_lines(data: bytes, folder: Path, listing: Path, names: Mapping[str, int]) -> dict[Path, list[Object]]:
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{listing}: no text; lines are {LINE}") from None
    found: dict[Path, list[Object]] = {}
    for at, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = _fields(line)
        path = folder / name
        if not path.is_file():
            raise InputError(f"{listing}:{at}: {path}: no such file")
        found.setdefault(path, []).extend(_object(rest, names, f"{listing}:{at}"))
    return found


def _fields(line: str) -> list[str]:
    """Parted by tabs, by commas, or the last five by blanks."""
    parts = line.split("\t") if "\t" in line else line.split(",") if "," in line else line.rsplit(None, 5)
    few = len(parts) < 6 and "\t" not in line and "," not in line
    return [line.strip()] if few else [part.strip() for part in parts]


def _object(fields: Sequence[str], names: Mapping[str, int], where: str) -> Iterator[Object]:
    if not fields:
        return
    try:
        name, *sides = fields
        left, top, right, bottom = map(float, sides)
    except ValueError:
        raise InputError(f"{where}: lines are {LINE}") from None
    number = names.get(plain(name))
    if number is None:
        raise InputError(f"{where}: {name!r} is no class of the bundle; lines are {LINE}")
    if not all(map(math.isfinite, (left, top, right, bottom))) or left >= right or top >= bottom:
        raise InputError(f"{where}: {left:g}, {top:g} to {right:g}, {bottom:g} is no box: left, top, right, bottom")
    yield Object(number, left, top, right, bottom)


def _of_coco(data: bytes, folder: Path, listing: Path, labels: Sequence[str], classes: int) -> dict[Path, list[Object]]:
    try:
        coco = msgspec.json.decode(data, type=Coco)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: not a file of COCO's instances: {error}") from None
    numbers = _categories(coco, listing, labels, classes)
    paths = {image.id: folder / image.file_name for image in coco.images}
    absent = next((path for path in paths.values() if not path.is_file()), None)
    if absent is not None:
        raise InputError(f"{listing}: {absent}: no such file; --images is the folder that its names are below")
    found: dict[Path, list[Object]] = {path: [] for path in paths.values()}
    for each in coco.annotations:
        if each.image_id not in paths or each.category_id not in numbers:
            raise InputError(f"{listing}: an annotation is of image {each.image_id} and category {each.category_id}, "
                             "which are not both in there")  # fmt: skip
        left, top, width, height = each.bbox
        box = (left, top, left + width, top + height)
        found[paths[each.image_id]].append(Object(numbers[each.category_id], *box, crowd=bool(each.iscrowd)))
    return found


def _categories(coco: Coco, listing: Path, labels: Sequence[str], classes: int) -> dict[int, int]:
    """The bundle's class of each category."""
    names = class_names(labels, classes)
    used = {each.category_id for each in coco.annotations}
    known = {each.id: names.get(plain(each.name)) for each in coco.categories}
    if len(known) == classes and not any(number is not None for number in known.values()):
        known = {number: at for at, number in enumerate(sorted(known))}
    unknown = [each.name for each in coco.categories if each.id in used and known[each.id] is None]
    if unknown:
        shown = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        raise InputError(
            f"{listing}: {len(unknown)} categories are called as no class of the bundle is: {shown}; --labels of compile "
            "names its classes"
        )
    return {number: at for number, at in known.items() if at is not None}
