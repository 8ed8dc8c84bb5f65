"""An index of cards as one page: accuracy against time with the best of both marked, and a table to sort and filter."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.schema import GalleryEntry
from bitkiln.pipeline.support.checked import table
from bitkiln.pipeline.support.files import MOST_BYTES, read_file
from bitkiln.pipeline.support.templating import render
from bitkiln.pipeline.verdict.card import DATA, PAGE

#: Size of the plot, and the margins that its axes' figures take.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 420, 60, 30, 20, 45


def _rate(entry: GalleryEntry) -> float | None:
    """How right it is: top 1 of classifiers, mAP of detectors."""
    return entry["top1"] if entry["map"] is None else entry["map"]


def _rivals(entry: GalleryEntry) -> tuple[str, int | None, bool]:
    """Equal for entries that can be held against each other: same board, cores and measure."""
    return entry["target"], entry["threads"], entry["map"] is None


def entries(folder: Path, out: Path) -> list[GalleryEntry]:
    """A row for each speed of each card below ``folder``; links are relative to the page ``out``. Raises InputError."""
    paths = sorted(folder.rglob(DATA)) if folder.is_dir() else []
    found = [entry for path in paths for entry in _entries(path, out)]
    if not found:
        raise InputError(f"{folder}: no cards in there; bitkiln card BUNDLE -o DIR makes them")
    return [{**entry, "best": _best(entry, found)} for entry in found]


def _entries(path: Path, out: Path) -> list[GalleryEntry]:
    try:
        card: Any = table(read_file(path), MOST_BYTES)
        if card["schema"] != "bitkiln.card/1":
            return []
        accuracy: Any = card["accuracy"] or {}
        nothing: list[Any] = [{"target": "", "threads": None, "ms": None, "measured_by": ""}]
        speeds: list[schema.Speed] = card["speeds"] or nothing
        return [
            GalleryEntry(
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
                best=False,
            )
            for speed in speeds
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{path}: no card; bitkiln card BUNDLE -o DIR makes one") from None


def as_json(out: Path, found: Sequence[GalleryEntry]) -> schema.Gallery:
    """The gallery as plain data."""
    return {"schema": "bitkiln.gallery/1", "page": str(out), "entries": list(found)}


def _share(accuracy: Any, name: str) -> float | None:
    """What an evaluation counted, if it counted that."""
    return accuracy[name]["value"] if accuracy.get(name) else None


def _best(entry: GalleryEntry, others: Sequence[GalleryEntry]) -> bool:
    """Is no other, on the same board and cores, both as fast and as often right, and better in one of the two?"""
    own = _point(entry)
    points = [_point(other) for other in others if _rivals(other) == _rivals(entry)]
    return own is not None and not any(
        point and point[0] <= own[0] and point[1] >= own[1] and point != own for point in points
    )


def _point(entry: GalleryEntry) -> tuple[float, float] | None:
    """Milliseconds and how right it is, where both are known."""
    rate = _rate(entry)
    return None if entry["ms"] is None or rate is None else (entry["ms"], rate)


def page(title: str, found: Sequence[GalleryEntry]) -> str:
    """The gallery as text."""
    measured = [entry for entry in found if entry["ms"] and _rate(entry) is not None]
    parts = (("top 1", [entry for entry in measured if entry["map"] is None]),
             ("mAP 0.5:0.95", [entry for entry in measured if entry["map"] is not None]))  # fmt: skip
    plots = [_plot(measure, plotted) for measure, plotted in parts if plotted]
    return render("verdict/templates/gallery.html", title=title, entries=found, plots=plots)


def _plot(measure: str, plotted: Sequence[GalleryEntry]) -> dict[str, Any]:
    """Where dots, axes and the line of the best lie: time to the right, logarithmic; ``measure`` upwards."""
    times, rates = [entry["ms"] or 1.0 for entry in plotted], [_rate(entry) or 0.0 for entry in plotted]
    low, high = math.log10(min(times)) - 0.1, math.log10(max(times)) + 0.1
    floor, top = max(min(rates) - 0.05, 0.0), min(max(rates) + 0.05, 1.0)

    def x(ms: float) -> float:
        return LEFT + (math.log10(ms) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (rate - floor) / ((top - floor) or 1.0) * (HEIGHT - BOTTOM - TOP)

    dots = [
        {"entry": entry, "rate": _rate(entry), "x": x(entry["ms"] or 1.0), "y": y(_rate(entry) or 0.0)}
        for entry in plotted
    ]
    groups = dict.fromkeys(_rivals(entry) for entry in plotted)
    fronts = [
        [(x(entry["ms"] or 1.0), y(_rate(entry) or 0.0)) for entry in sorted(plotted, key=lambda each: each["ms"] or 0.0)
         if entry["best"] and _rivals(entry) == group]
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
