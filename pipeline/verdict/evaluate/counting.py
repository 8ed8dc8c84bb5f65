"""What a kind of network is asked of a photo, and what is counted of its answers: right classes, or boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from bitkiln.pipeline import schema
from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BitkilnError, InputError
from bitkiln.pipeline.run.meaning import meaning
from bitkiln.pipeline.verdict.evaluate import precision
from bitkiln.pipeline.verdict.evaluate.objects import find_objects
from bitkiln.pipeline.verdict.evaluate.pictures import Picture, find_pictures
from bitkiln.pipeline.verdict.evaluate.precision import MOST, Box, Object

#: Classes of each answer that are kept.
KEPT = 5
#: Of a normal distribution, what 95 % lie within.
CONFIDENCE, Z = 0.95, 1.959964
#: Least score of a box that is counted: average precision weighs the bad ones by their rank.
THRESHOLD = 0.001

#: What a bundle said of a photo: numbers of classes, best first, or boxes, each [class, score, left, top, right, bottom].
Said = list[Any]


class Rates(TypedDict):
    """The fields of ``schema.Evaluate`` that depend on the kind of network."""

    classes: int
    top1: schema.Rate | None
    top5: schema.Rate | None
    objects: int | None
    map50: schema.Span | None
    map: schema.Span | None
    by_class: list[schema.ClassPrecision]


class Counting(Protocol):
    """What is counted of a bundle's answers."""

    #: What a network of this kind is to do, and what its answers are called where they are written down.
    task: str
    key: str

    @property
    def photos(self) -> Sequence[Path]:
        """What to look at, in order."""

    def arguments(self) -> list[str]:
        """What frames.py takes after the bundle."""

    def sound(self, said: Any) -> bool:
        """Is it an answer of this kind?"""

    def of_outputs(self, bundle: Bundle, outputs: Mapping[str, np.ndarray], photo: Path) -> Said:
        """The answer that a network's outputs are."""

    def so_far(self, answers: Mapping[Path, Said]) -> str:
        """How good the answers are until now, in words; empty where that says nothing yet."""

    def rates(self, answers: Mapping[Path, Said]) -> Rates:
        """What came of all answers, of which there is at least one."""


def kind_of(bundle: Bundle, images: Path, listing: Path | None) -> Counting:
    """What can be counted of ``bundle`` on the photos of ``images``. Raises InputError."""
    head = bundle.manifest.get("head")
    if not bundle.manifest.get("preprocessing"):
        raise InputError(
            f"{bundle.folder}: says nothing of how images become inputs; compile it with --mean, --scale, ..."
        )
    if not head:
        classes = math.prod(bundle.manifest["outputs"][0]["shape"])
        return Classes(find_pictures(images, listing, bundle.labels, classes))
    if head["task"] != "detect":
        raise InputError(
            f"{bundle.folder}: its network is to {head['task']}; classes of images and boxes are evaluated"
        )
    if listing is None:
        raise InputError(f"{bundle.folder}: finds boxes: --list names what is on the photos (docs/verdict.md#evaluate)")
    return Boxes(find_objects(images, listing, bundle.labels, int(head["classes"])), bundle.labels)


@dataclass(frozen=True)
class Classes:
    """The right class of each picture, as first choice and among the first five."""

    pictures: Sequence[Picture]
    task = "classify"
    key = "top"

    @property
    def photos(self) -> Sequence[Path]:
        """What to look at, in order."""
        return [picture.path for picture in self.pictures]

    @cached_property
    def _numbers(self) -> dict[Path, int]:
        return {picture.path: picture.number for picture in self.pictures}

    def arguments(self) -> list[str]:
        """What frames.py takes after the bundle."""
        return [str(KEPT)]

    def sound(self, said: Any) -> bool:
        """Is it a list of numbers of classes?"""
        return isinstance(said, list) and all(isinstance(number, int) for number in said)

    def of_outputs(self, bundle: Bundle, outputs: Mapping[str, np.ndarray], photo: Path) -> Said:
        """The best classes of the first output's scores."""
        scores = next(iter(outputs.values())).ravel()
        return [int(number) for number in np.argsort(-scores.astype(np.float64), kind="stable")[:KEPT]]

    def so_far(self, answers: Mapping[Path, Said]) -> str:
        """The share of right first choices."""
        return f"{self._right(answers, 1) / len(answers):.1%} right"

    def rates(self, answers: Mapping[Path, Said]) -> Rates:
        """Shares of right answers with Wilson's intervals."""
        top1, top5 = (interval(self._right(answers, count), len(answers)) for count in (1, KEPT))
        classes = len({self._numbers[path] for path in answers})
        return Rates(classes=classes, top1=top1, top5=top5, objects=None, map50=None, map=None, by_class=[])

    def _right(self, answers: Mapping[Path, Said], count: int) -> int:
        return sum(self._numbers[path] in said[:count] for path, said in answers.items())


def interval(right: int, count: int) -> schema.Rate:
    """A share and its 95 % confidence interval, by Wilson's formula: Wikipedia, "Binomial proportion confidence interval"."""
    if not count:
        raise BitkilnError("no photo could be looked at")
    share, square = right / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return {"value": share, "right": right, "low": max(middle - reach, 0.0), "high": min(middle + reach, 1.0)}


@dataclass(frozen=True)
class Boxes:
    """The objects on each photo, and how precisely a detector finds them."""

    objects: Mapping[Path, Sequence[Object]]
    labels: Sequence[str]
    task = "detect"
    key = "boxes"

    @property
    def photos(self) -> Sequence[Path]:
        """What to look at, in order."""
        return list(self.objects)

    def arguments(self) -> list[str]:
        """What frames.py takes after the bundle."""
        return [str(MOST), str(THRESHOLD)]

    def sound(self, said: Any) -> bool:
        """Is it a list of boxes: class, score, left, top, right, bottom?"""
        return isinstance(said, list) and all(
            isinstance(box, list) and len(box) == 6 and isinstance(box[0], int)
            and all(isinstance(value, int | float) for value in box)
            for box in said
        )  # fmt: skip

    def of_outputs(self, bundle: Bundle, outputs: Mapping[str, np.ndarray], photo: Path) -> Said:
        """What the reference's head makes of them."""
        found = meaning(bundle, outputs, runner.read_photo(str(photo)), THRESHOLD)["boxes"]
        return [[box["number"], *(box[name] for name in Box._fields[1:])] for box in found]

    def so_far(self, answers: Mapping[Path, Said]) -> str:
        """Nothing: precision means little before all photos are looked at."""
        return ""

    def rates(self, answers: Mapping[Path, Said]) -> Rates:
        """Mean average precision with bootstrapped intervals, and that of each class."""
        there = [self.objects[path] for path in answers]
        count, objects = len(answers), sum(not each.crowd for row in there for each in row)
        if not objects:
            raise InputError("no object is on the photos that could be looked at")
        ranked = precision.rankings([[Box(*box) for box in said] for said in answers.values()], there)
        whole = precision.mean(ranked, np.ones(count))
        drawn = np.stack(list(precision.samples(ranked, count)))
        rows = [
            schema.ClassPrecision(
                label=self.labels[number] if number < len(self.labels) else f"class {number}",
                objects=int(each.objects.sum()), ap50=float(row[0]), ap=float(row.mean()),
            )
            for each in ranked
            for number, row in ((each.number, each.precision(np.ones(count))),)
        ]  # fmt: skip
        return Rates(
            classes=len(ranked), top1=None, top5=None, objects=objects,
            map50=_span(whole[0], drawn[:, 0]), map=_span(whole.mean(), drawn.mean(1)), by_class=rows,
        )  # fmt: skip


def _span(value: float, drawn: np.ndarray) -> schema.Span:
    """A value and what 95 % of the resampled ones lie within."""
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn, [edge, 100 - edge])
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}
