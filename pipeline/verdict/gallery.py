"""An index of cards as one page: accuracy against time with the best of both marked, and a table to sort and filter."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.templating import render
from bitkiln.pipeline.verdict.card import DATA, PAGE

#: Size of the plot, and the margins that its axes' figures take.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 420, 60, 30, 20, 45


@dataclass(frozen=True)
class Entry:
    """A card of the gallery on one board with one number of cores; ``best``: none is both faster and more often right."""

    name: str
    link: str
    target: str
    threads: int | None
    ms: float | None
    measured_by: str
    top1: float | None
    top5: float | None
    map: float | None
    file_bytes: int
    bits: float
    best: bool = False

    @property
    def rate(self) -> float | None:
        """How right it is: top 1 of classifiers, mAP of detectors."""
        return self.top1 if self.map is None else self.map

    @property
    def rivals(self) -> tuple[str, int | None, bool]:
        """Equal for entries that can be held against each other: same board, cores and measure."""
        return self.target, self.threads, self.map is None


def entries(folder: Path, out: Path) -> list[Entry]:
    """A row for each speed of each card below ``folder``; links are relative to the page ``out``. Raises InputError."""
    paths = sorted(folder.rglob(DATA)) if folder.is_dir() else []
    found = [entry for path in paths for entry in _entries(path, out)]
    if not found:
        raise InputError(f"{folder}: no cards in there; bitkiln card BUNDLE -o DIR makes them")
    return [entry if not _best(entry, found) else Entry(**{**vars(entry), "best": True}) for entry in found]


def _entries(path: Path, out: Path) -> list[Entry]:
    try:
        card: Any = json.loads(path.read_text(encoding="utf-8"))
        if card["schema"] != "bitkiln.card/1":
            return []
        accuracy: Any = card["accuracy"] or {}
        nothing: list[Any] = [{"target": "", "threads": None, "ms": None, "measured_by": ""}]
        speeds: list[schema.Speed] = card["speeds"] or nothing
        return [
            Entry(
                name=str(card["model"]),
                link=Path(os.path.relpath(path.with_name(PAGE), out.parent)).as_posix(),
                target=speed["target"],
                threads=speed["threads"],
                ms=speed["ms"],
                measured_by=speed["measured_by"],
                top1=_share(accuracy, "top1"),
                top5=_share(accuracy, "top5"),
                map=_share(accuracy, "map"),
                file_bytes=int(card["file_bytes"]),
                bits=card["binary_macs"] / card["macs"] if card["macs"] else 0.0,
            )
            for speed in speeds
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: no card; bitkiln card BUNDLE -o DIR makes one") from None


def as_json(out: Path, found: Sequence[Entry]) -> schema.Gallery:
    """The gallery as plain data."""
    entries = [cast(schema.GalleryEntry, asdict(each)) for each in found]
    return {"schema": "bitkiln.gallery/1", "page": str(out), "entries": entries}


def _share(accuracy: Any, name: str) -> float | None:
    """What an evaluation counted, if it counted that."""
    return accuracy[name]["value"] if accuracy.get(name) else None


def _best(entry: Entry, others: Sequence[Entry]) -> bool:
    """Is no other, on the same board and cores, both as fast and as often right, and better in one of the two?"""
    if entry.ms is None or entry.rate is None:
        return False
    return not any(
        other.ms is not None
        and other.rate is not None
        and other.ms <= entry.ms
        and other.rate >= entry.rate
        and (other.ms, other.rate) != (entry.ms, entry.rate)
        for other in others
        if other.rivals == entry.rivals
    )


def page(title: str, found: Sequence[Entry]) -> str:
    """The gallery as text."""
    measured = [entry for entry in found if entry.ms and entry.rate is not None]
    parts = (("top 1", [entry for entry in measured if entry.map is None]),
             ("mAP 0.5:0.95", [entry for entry in measured if entry.map is not None]))  # fmt: skip
    plots = [_plot(measure, plotted) for measure, plotted in parts if plotted]
    return render("verdict/templates/gallery.html", title=title, entries=found, plots=plots)


def _plot(measure: str, plotted: Sequence[Entry]) -> dict[str, Any]:
    """Where dots, axes and the line of the best lie: time to the right, logarithmic; ``measure`` upwards."""
    times, rates = [entry.ms or 1.0 for entry in plotted], [entry.rate or 0.0 for entry in plotted]
    low, high = math.log10(min(times)) - 0.1, math.log10(max(times)) + 0.1
    floor, top = max(min(rates) - 0.05, 0.0), min(max(rates) + 0.05, 1.0)

    def x(ms: float) -> float:
        return LEFT + (math.log10(ms) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (rate - floor) / ((top - floor) or 1.0) * (HEIGHT - BOTTOM - TOP)

    dots = [{"entry": entry, "x": x(entry.ms or 1.0), "y": y(entry.rate or 0.0)} for entry in plotted]
    groups = dict.fromkeys(entry.rivals for entry in plotted)
    fronts = [
        [(x(entry.ms or 1.0), y(entry.rate or 0.0)) for entry in sorted(plotted, key=lambda each: each.ms or 0.0)
         if entry.best and entry.rivals == group]
        for group in groups
    ]  # fmt: skip
    marks = [step * 10**power for power in range(-3, 6) for step in (1, 2, 5)]
    steps = [floor + (top - floor) * part / 5 for part in range(6)]
    return {
        "measure": measure,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "dots": dots,
        "fronts": [" ".join(f"{a:.1f},{b:.1f}" for a, b in front) for front in fronts if len(front) > 1],
        "across": [(x(mark), f"{mark:g}") for mark in marks if low <= math.log10(mark) <= high],
        "up": [(y(rate), f"{rate:.0%}") for rate in steps],
    }
