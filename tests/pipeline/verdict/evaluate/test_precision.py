"""Average precision: by hand, and against COCO's own code on photos full of objects, crowds and near misses."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from bitkiln.pipeline.verdict.evaluate import precision
from bitkiln.pipeline.verdict.evaluate.precision import Box, Object

PHOTOS, CLASSES = 12, 3


def drawn(seed: int) -> tuple[list[list[Box]], list[list[Object]]]:
    """Objects, some crowds among them, and boxes: shaken objects of right and wrong classes, and some out of nowhere."""
    rng = np.random.default_rng(seed)
    found: list[list[Box]] = []
    objects: list[list[Object]] = []
    for _ in range(PHOTOS):
        there, seen = [], []
        for _ in range(rng.integers(0, 6)):
            left, top, width, height = rng.uniform(0, 200), rng.uniform(0, 200), *rng.uniform(10, 90, 2)
            number = int(rng.integers(CLASSES))
            there.append(Object(number, left, top, left + width, top + height, bool(rng.random() < 0.15)))
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, 6, 4)
                other = number if rng.random() < 0.8 else int(rng.integers(CLASSES))
                corners = [left + shift[0], top + shift[1], left + width + abs(shift[2]), top + height + abs(shift[3])]
                seen.append(Box(other, float(np.round(rng.random(), 2)), *corners))
        for _ in range(rng.integers(0, 3)):
            left, top = rng.uniform(0, 200, 2)
            seen.append(Box(int(rng.integers(CLASSES)), float(rng.random()), left, top, left + 30, top + 30))
        found.append(seen)
        objects.append(there)
    return found, objects


def by_cocoapi(found: list[list[Box]], objects: list[list[Object]]) -> tuple[float, float]:
    """mAP at 0.5:0.95 and at 0.5 as COCO's own code counts it."""
    coco, evaluation = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    annotations = [
        {"id": 1000 * photo + at, "image_id": photo, "category_id": each.number, "iscrowd": int(each.crowd),
         "bbox": [each.left, each.top, each.right - each.left, each.bottom - each.top],
         "area": (each.right - each.left) * (each.bottom - each.top)}
        for photo, row in enumerate(objects)
        for at, each in enumerate(row, 1)
    ]  # fmt: skip
    results = [
        {"image_id": photo, "category_id": box.number, "score": box.score,
         "bbox": [box.left, box.top, box.right - box.left, box.bottom - box.top]}
        for photo, row in enumerate(found)
        for box in row
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "info": {}, "images": [{"id": photo} for photo in range(len(objects))], "annotations": annotations,
            "categories": [{"id": number, "name": str(number)} for number in range(CLASSES)],
        }  # fmt: skip
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_cocos_own_code_counts(seed: int) -> None:
    found, objects = drawn(seed)
    rates = precision.mean(precision.rankings(found, objects), np.ones(PHOTOS))
    assert (rates.mean(), rates[0]) == pytest.approx(by_cocoapi(found, objects), abs=1e-9)


def test_precision_by_hand() -> None:
    """One of two objects found at an overlap of 0.75, first a wrong box: precision 1/2 up to recall 1/2, then none."""
    objects = [[Object(0, 0, 0, 4, 4), Object(0, 100, 0, 104, 4)]]
    found = [[Box(0, 0.9, 50, 50, 60, 60), Box(0, 0.8, 0, 0, 4, 3)]]
    rates = precision.mean(precision.rankings(found, objects), np.ones(1))
    assert rates == pytest.approx([0.5 * 51 / 101] * 6 + [0.0] * 4)


def test_an_object_is_found_once_and_a_crowd_costs_nothing() -> None:
    objects = [[Object(0, 0, 0, 10, 10), Object(0, 20, 20, 90, 90, crowd=True)]]
    twice = [[Box(0, 0.9, 0, 0, 10, 10), Box(0, 0.8, 0, 0, 10, 10)]]
    crowded = [[Box(0, 0.9, 30, 30, 40, 40), Box(0, 0.95, 50, 50, 60, 60), Box(0, 0.8, 0, 0, 10, 10)]]
    for boxes in (twice, crowded):
        assert precision.mean(precision.rankings(boxes, objects), np.ones(1)) == pytest.approx([1.0] * 10)
    (ranking,) = precision.rankings(twice, objects)
    assert ranking.wrong[:, 1].all() and ranking.right[:, 0].all()


def test_nothing_found_is_no_precision() -> None:
    assert precision.mean(precision.rankings([[]], [[Object(2, 0, 0, 1, 1)]]), np.ones(1)) == pytest.approx([0.0] * 10)


def test_a_photo_counted_twice_is_two_photos() -> None:
    found, objects = drawn(3)
    weights = np.ones(PHOTOS)
    weights[:4] = 2
    doubled = precision.rankings(found + found[:4], objects + objects[:4])
    assert precision.mean(precision.rankings(found, objects), weights) == pytest.approx(
        precision.mean(doubled, np.ones(PHOTOS + 4)), abs=0.02
    )
    first, again = (list(precision.samples(doubled, PHOTOS + 4, 3)) for _ in range(2))
    assert np.array_equal(first, again)
