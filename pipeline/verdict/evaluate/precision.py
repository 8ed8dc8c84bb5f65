"""Average precision of detectors as COCO counts it (cocodataset.org/#detection-eval), with its cocoapi as the definition.

For each class, found boxes go from the best score to the worst; one is right if it overlaps an object of its class that none
before it has taken by at least a threshold of intersection over union. The precision after each, made to fall only, is read off
at 101 recalls and averaged. Boxes on a crowd count neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: Overlaps from which a box counts as right: of the first one mAP at 0.5 is made, of all mAP at 0.5:0.95.
OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
#: Boxes of a class on a photo that count, the best.
MOST = 100
#: Resampled sets of photos that a confidence interval is read off.
SAMPLES = 200


class Box(NamedTuple):
    """Something found on a photo: its class, its score, and its corners in pixels."""

    number: int
    score: float
    left: float
    top: float
    right: float
    bottom: float


class Object(NamedTuple):
    """Something that is on a photo; ``crowd``: it stands for many, which are not counted."""

    number: int
    left: float
    top: float
    right: float
    bottom: float
    crowd: bool = False


@dataclass(frozen=True)
class Ranking:
    """The found boxes of one class over all photos, best first; ``right`` and ``wrong`` have a row for each of OVERLAPS.

    ``photo`` is the index of the photo that each box is on, ``objects`` how many there are to be found on each photo.
    """

    number: int
    photo: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: np.ndarray

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """Average precision at each of OVERLAPS, every photo counted ``weights`` times; NaN where there is nothing to find."""
        total = float(self.objects @ weights)
        if not total:
            return np.full(len(OVERLAPS), np.nan)
        times = weights[self.photo]
        right, wrong = np.cumsum(self.right * times, 1), np.cumsum(self.wrong * times, 1)
        precise = right / np.maximum(right + wrong, np.spacing(1))
        falling = np.maximum.accumulate(precise[:, ::-1], 1)[:, ::-1]
        padded = np.concatenate([falling, np.zeros((len(OVERLAPS), 1))], 1)
        at = [np.searchsorted(recall, RECALLS, side="left") for recall in right / total]
        return np.take_along_axis(padded, np.stack(at), 1).mean(1)


def rankings(found: Sequence[Sequence[Box]], objects: Sequence[Sequence[Object]]) -> list[Ranking]:
    """One for each class that there are objects of; ``found`` and ``objects`` have a row for each photo."""
    numbers = sorted({each.number for row in objects for each in row if not each.crowd})
    return [_ranking(number, found, objects) for number in numbers]


def _ranking(number: int, found: Sequence[Sequence[Box]], objects: Sequence[Sequence[Object]]) -> Ranking:
    scores: list[float] = []
    photos: list[int] = []
    verdicts: list[np.ndarray] = []
    counts = np.zeros(len(objects))
    for at, (boxes, there) in enumerate(zip(found, objects, strict=True)):
        wanted = [each for each in there if each.number == number]
        counts[at] = sum(not each.crowd for each in wanted)
        mine = sorted((box for box in boxes if box.number == number), key=lambda box: -box.score)[:MOST]
        scores += [box.score for box in mine]
        photos += [at] * len(mine)
        verdicts.append(_judged(mine, wanted))
    order = np.argsort(-np.array(scores), kind="stable")
    judged = np.concatenate(verdicts, 1)[:, order]
    return Ranking(number, np.array(photos, int)[order], judged == 1, judged == 0, counts)


def _judged(found: Sequence[Box], objects: Sequence[Object]) -> np.ndarray:
    """[overlaps, boxes]: 1 right, 0 wrong, -1 on a crowd; ``found`` of one photo and class, best first."""
    judged = np.zeros((len(OVERLAPS), len(found)), int)
    if not objects or not found:
        return judged
    ordered = sorted(objects, key=lambda each: each.crowd)
    shares = _overlaps(found, ordered)
    for row, least in enumerate(OVERLAPS):
        taken: set[int] = set()
        for at, share in enumerate(shares):
            hit = _best(share, ordered, taken, min(float(least), 1 - 1e-10))
            if hit is not None:
                judged[row, at] = -1 if ordered[hit].crowd else 1
                taken |= set() if ordered[hit].crowd else {hit}
    return judged


def _best(share: np.ndarray, objects: Sequence[Object], taken: set[int], least: float) -> int | None:
    """The object that a box overlaps most, of those that are free; crowds, which come last, only where no other fits."""
    best: int | None = None
    for at, each in enumerate(objects):
        if at in taken or share[at] < least:
            continue
        if each.crowd and best is not None and not objects[best].crowd:
            break
        best, least = at, float(share[at])
    return best


def _overlaps(found: Sequence[Box], objects: Sequence[Object]) -> np.ndarray:
    """Intersection over union of boxes and objects; over the box alone where the object is a crowd."""
    a = np.array([box[2:6] for box in found], float)[:, None]
    b = np.array([each[1:5] for each in objects], float)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.where((sides > 0).all(-1), sides.prod(-1), 0.0)
    own, other = (corners[..., 2:] - corners[..., :2] for corners in (a, b))
    alone = np.array([each.crowd for each in objects])[None]
    union = own.prod(-1) + np.where(alone, 0.0, other.prod(-1) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def mean(ranked: Sequence[Ranking], weights: np.ndarray) -> np.ndarray:
    """Average precision at each of OVERLAPS, the mean of the classes that there is something to find of."""
    rows = np.stack([each.precision(weights) for each in ranked])
    there = ~np.isnan(rows).all(1)
    return rows[there].mean(0) if there.any() else np.full(len(OVERLAPS), np.nan)


def samples(ranked: Sequence[Ranking], photos: int, count: int = SAMPLES) -> Iterator[np.ndarray]:
    """``mean`` over sets of photos drawn anew with replacement, the same ones every time: a bootstrap."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        drawn = np.bincount(rng.integers(0, photos, photos), minlength=photos)
        yield mean(ranked, drawn.astype(float))
