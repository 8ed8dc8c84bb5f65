"""What is on photos: lists of lines and COCO's files, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.verdict.evaluate.objects import find_objects
from bitkiln.pipeline.verdict.evaluate.precision import Object

LABELS = ("person", "traffic light", "cat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a b.png", "c.png", "d.png"):
        (tmp_path / name).touch()
    return tmp_path


def test_lines_are_parted_by_tabs_commas_or_blanks(folder: Path) -> None:
    listing = folder / "objects.txt"
    listing.write_text(
        "# photo class left top right bottom\na b.png\tTraffic light\t1\t2\t3.5\t4\na b.png, cat, 0,0,9,9\n"
        "c.png 0 5 6 7 8\nd.png\n"
    )
    assert find_objects(folder, listing, LABELS, 3) == {
        folder / "a b.png": [Object(1, 1, 2, 3.5, 4), Object(2, 0, 0, 9, 9)],
        folder / "c.png": [Object(0, 5, 6, 7, 8)],
        folder / "d.png": [],
    }


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("c.png dog 1 2 3 4", r"objects\.txt:1: 'dog' is no class"),
        ("e.png cat 1 2 3 4", r"objects\.txt:1: .*e\.png: no such file"),
        ("c.png,cat,1,2,3", r"objects\.txt:1: lines are"),
        ("c.png,cat,1,2,3,x", r"objects\.txt:1: lines are"),
        ("c.png cat 3 2 1 4", r"objects\.txt:1: 3, 2 to 1, 4 is no box"),
        ("c.png cat nan 2 3 4", "is no box"),
        ("c.png", "no objects"),
        ("\udcff", "no text"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(folder: Path, line: str, facts: str) -> None:
    listing = folder / "objects.txt"
    listing.write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=facts):
        find_objects(folder, listing, LABELS, 3)


def coco(*names: str, **changes: Any) -> str:
    """COCO's annotations of two photos: an object and a crowd; categories have the numbers 10, 20, ..."""
    document = {
        "info": {"year": 2017},
        "images": [{"id": 7, "file_name": "c.png", "width": 9, "height": 9}, {"id": 8, "file_name": "d.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 10, "bbox": [0, 0, 5.5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 10 * at, "name": name, "supercategory": "x"} for at, name in enumerate(names, 1)],
    }
    return json.dumps(document | changes)


@pytest.mark.parametrize("names", [("person", "traffic light", "cat"), ("un", "deux", "trois")])
def test_cocos_files(folder: Path, names: tuple[str, ...]) -> None:
    listing = folder / "instances.json"
    listing.write_text(coco(*names))
    assert find_objects(folder, listing, LABELS, 3) == {
        folder / "c.png": [Object(1, 1, 2, 4, 6), Object(0, 0, 0, 5.5, 5, crowd=True)],
        folder / "d.png": [],
    }


def test_categories_go_by_their_names(folder: Path) -> None:
    listing = folder / "instances.json"
    listing.write_text(coco("cat", "person", "zebra"))
    assert [each.number for each in find_objects(folder, listing, LABELS, 3)[folder / "c.png"]] == [0, 2]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("[]", "not a file of COCO's instances"),
        ("{", "not a file of COCO's instances"),
        (coco("cat", "zebra"), "1 categories are called as no class of the bundle is: zebra"),
        (coco("cat", "person", images=[{"id": 7, "file_name": "gone.png"}]), r"gone\.png: no such file"),
        (coco("cat", "person", images=[{"id": 9, "file_name": "c.png"}]), "image 7 and category 20"),
        (coco("cat"), "image 7 and category 20"),
    ],
)
def test_what_is_wrong_with_a_file_of_coco_is_said(folder: Path, text: str, facts: str) -> None:
    listing = folder / "instances.json"
    listing.write_text(text)
    with pytest.raises(InputError, match=facts):
        find_objects(folder, listing, LABELS, 3)


def test_an_absent_list_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt: No such file"):
        find_objects(folder, folder / "absent.txt", LABELS, 3)
