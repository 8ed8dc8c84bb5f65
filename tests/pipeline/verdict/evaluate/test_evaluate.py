"""Evaluating: which photos, which answers, and what is counted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bitkiln.pipeline import run, schema
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.errors import BoardError, InputError
from bitkiln.pipeline.verdict import evaluate as stage
from bitkiln.pipeline.verdict.evaluate import asking, counting
from bitkiln.pipeline.verdict.evaluate.pictures import find_pictures
from tests.pipeline.test_schema import wrong

LABELS = ("tabby, tabby cat", "Egyptian_cat", "crane", "crane", "Cup")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several sizes, in two folders of classes, and a file that is no photo."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(4)
    for at, name in enumerate(("thing 3", "7")):
        (folder / name).mkdir()
        for number in range(2):
            size = (8 + 3 * number, 8 + at, 3)
            Image.fromarray(rng.integers(0, 256, size, "uint8")).save(folder / name / f"{number}.png")
    (folder / "7" / "broken.jpg").write_text("meow")
    return folder


def first_choices(bundle: Path, photos: Path) -> list[bool]:
    """Whether the first choice is right, photo by photo, asked one by one."""
    opened, right = open_bundle(bundle), []
    for path in sorted(photos.rglob("*.png")):
        inputs = run.read_inputs(opened, path, None)
        scores = next(iter(run.on_emulator(opened.folder, opened.target, inputs).outputs.values()))
        right.append(int(scores.argmax()) == {"thing 3": 3, "7": 7}[path.parent.name])
    return right


def test_answers_are_a_boards_and_are_kept(bundle: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    log, said = tmp_path / "answers.jsonl", io.StringIO()
    found = stage.evaluate(bundle, photos, jobs=2, results=log, console=Console(file=said))
    assert not wrong(found, schema.Evaluate)
    assert (found["count"], found["classes"], len(found["failed"])) == (4, 2, 1)
    assert "broken.jpg" in found["failed"][0]["reason"]
    assert found["top1"]["right"] == sum(first_choices(bundle, photos)) <= found["top5"]["right"]
    assert "5 of 5 photos" in said.getvalue()

    rows = log.read_text().splitlines()
    log.write_text("\n".join(rows[:2]) + '\n{"network": "torn')
    asked = []

    class Counted(asking.Emulated):
        def __call__(self, path: Path) -> counting.Said:
            asked.append(path.suffix)
            return super().__call__(path)

    monkeypatch.setattr(asking, "Emulated", Counted)
    again = stage.evaluate(bundle, photos, jobs=1, results=log)
    assert sorted(asked) == [".jpg", ".png", ".png"]
    assert again == found
    assert len(log.read_text().splitlines()) == 3 + 2


def test_a_board_that_fails_ends_it(bundle: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "frames.py"
    script.write_text("import sys; sys.exit('frames: no power')")
    monkeypatch.setattr(asking, "FRAMES", script)
    with pytest.raises(BoardError, match="no power"):
        stage.evaluate(bundle, photos, jobs=1, results=tmp_path / "x")


def test_classes_are_named_by_labels_or_numbers(tmp_path: Path) -> None:
    for name in ("Tabby cat", "egyptian cat", "4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.JPG").touch()
        (tmp_path / name / "notes.txt").touch()
    assert [picture.number for picture in find_pictures(tmp_path, None, LABELS, 5)] == [4, 0, 1]
    (tmp_path / "crane").mkdir()
    with pytest.raises(InputError, match="called as no class of the bundle is: crane"):
        find_pictures(tmp_path, None, LABELS, 5)


def test_as_many_unknown_folders_as_classes_are_the_classes(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    assert [picture.number for picture in find_pictures(tmp_path, None, (), 2)] == [0, 1]


def test_lists_of_paths_and_classes(tmp_path: Path) -> None:
    for name in ("a b.png", "c.png", "d.png"):
        (tmp_path / name).touch()
    listing = tmp_path / "list.txt"
    listing.write_text("# all\na b.png 3\nc.png,Cup\n\nd.png\tegyptian cat\n")
    assert [picture.number for picture in find_pictures(tmp_path, listing, LABELS, 5)] == [3, 4, 1]
    for line, message in (("c.png dog", r"list\.txt:1: 'dog' is no class"), ("e.png 1", r"e\.png: no such file")):
        listing.write_text(line)
        with pytest.raises(InputError, match=message):
            find_pictures(tmp_path, listing, LABELS, 5)


def test_nothing_to_look_at_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photos"):
        find_pictures(tmp_path, None, LABELS, 5)
    with pytest.raises(InputError, match="no such folder"):
        find_pictures(tmp_path / "absent", None, LABELS, 5)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (3837, 10000, 0.3742, 0.3933)]
)
def test_intervals_are_wilsons(right: int, count: int, low: float, high: float) -> None:
    rate = counting.interval(right, count)
    assert (rate["low"], rate["high"]) == pytest.approx((low, high), abs=1e-4)


def test_the_result_is_json(bundle: Path, photos: Path, tmp_path: Path) -> None:
    found = stage.evaluate(bundle, photos, jobs=2, results=tmp_path / "a", limit=2)
    assert json.loads(json.dumps(found)) == found and found["count"] <= 2
    assert any("top 5" in line for line in stage.lines(found))


def test_boxes_of_a_detector(detector: Path, photos: Path, tmp_path: Path) -> None:
    """Objects where the bundle finds its two best boxes of each photo are found with full precision, moved ones are not."""
    opened = open_bundle(detector)
    listing = tmp_path / "objects.txt"
    paths = sorted(photos.rglob("*.png"))

    def evaluated(name: str, shift: float = 0.0) -> schema.Evaluate:
        rows = []
        for path in paths:
            answer = run.on_emulator(opened.folder, opened.target, run.read_inputs(opened, path, None))
            found = sorted(
                run.meaning(opened, answer.outputs, Image.open(path), 0.001)["boxes"], key=lambda box: -box["score"]
            )
            for box in found[:1]:
                corners = (f"{box[side] + shift:.6f}" for side in ("left", "top", "right", "bottom"))
                rows.append(",".join([str(path.relative_to(photos)), box["label"], *corners]))
        listing.write_text("\n".join([*rows, "7/broken.jpg"]))
        return stage.evaluate(detector, photos, listing, jobs=2, results=tmp_path / name)

    right = evaluated("right.jsonl")
    assert not wrong(right, schema.Evaluate)
    assert right["task"] == "detect" and right["top1"] is None and right["objects"] == len(paths) == right["count"]
    # A worse box of another photo may come before the best one of this, so precision at all recalls need not be whole.
    assert right["map50"] is not None and right["map50"]["value"] > 0.2
    assert right["map50"]["low"] <= right["map50"]["value"] <= right["map50"]["high"]
    moved = evaluated("moved.jsonl", shift=1000.0)
    assert moved["map50"] is not None and moved["map50"]["value"] == 0.0
    text = "\n".join(stage.lines(right))
    assert "mAP 0.5:0.95" in text and "4 objects" in text and "broken.jpg" in text


def test_a_boards_boxes_are_the_emulated_ones(detector: Path, photos: Path) -> None:
    kind = counting.Boxes({}, ("cup", "cat"))
    opened, path = open_bundle(detector), photos / "7" / "0.png"
    eye = asking.eye("sim", opened, kind)
    try:
        emulated = eye(path)
    finally:
        eye.close()
    outputs = run.on_emulator(opened.folder, opened.target, run.read_inputs(opened, path, None)).outputs
    np.testing.assert_allclose(kind.of_outputs(opened, outputs, path), emulated, rtol=1e-3, atol=1e-3)
    assert len(emulated) > 3 and kind.sound(emulated)


def test_what_cannot_be_evaluated_is_said(detector: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="--list"):
        stage.evaluate(detector, photos)
