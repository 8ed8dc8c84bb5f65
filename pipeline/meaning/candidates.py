"""Where the numbers of candidates for boxes lie in a tensor: each layout as a place and two steps, anchor by anchor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.model import Candidates, Head

#: Dimensions of a layout without the batch.
_RANKS = {"rows": 2, "columns": 2, "planes": 3, "cells": 3, "anchor-cells": 4, "kinds": 1}

_CODINGS = (
    *("centre", "corners", "corners-yx", "cell-exp", "cell-square", "cell-linear", "cell-sides", "prior", "prior-yx"),
)
_ACTIVATIONS = ("none", "sigmoid", "softmax")

#: Numbers for each side of a box, at most.
MOST_BINS = 64


@dataclass(frozen=True)
class Lattice:
    """Entry e of candidate i is element ``at + i * step + e * entry`` of its tensor."""

    at: int
    step: int
    entry: int

    def after(self, entries: int) -> Lattice:
        """Without the first ``entries``."""
        return Lattice(self.at + entries * self.entry, self.step, self.entry)


@dataclass(frozen=True)
class Block:
    """Candidates of one anchor (or of none), ``count`` of them; ``objectness`` is None where there is none.

    The one entry of ``objectness`` is the first. ``anchor`` is its position among the anchors, ``grid`` rows and columns of
    its cells, ``first`` the position of its first candidate among those of the tensor.
    """

    part: Candidates
    count: int
    boxes: Lattice
    scores: Lattice
    objectness: Lattice | None
    grid: tuple[int, int]
    anchor: int
    first: int


def blocks(head: Head, shapes: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    """The blocks of ``head``, whose outputs have ``shapes``. Raises ModelError where they do not fit."""
    for part in head.candidates:
        yield from _blocks(head, part, shapes)


def _blocks(head: Head, part: Candidates, shapes: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    _check_words(head, part)
    if part.layout == "kinds":
        yield from _kinds(head, part, shapes)
        return
    scored = head.classes + head.objectness
    together = part.boxes == part.scores
    box_entries = 4 * part.bins
    count, grid, boxes = _lattices(part, part.boxes, shapes, box_entries + scored if together else box_entries)
    again, _, scores = _lattices(part, part.scores, shapes, box_entries + scored if together else scored)
    if count != again or len(boxes) != len(scores):
        raise ModelError(f"{part.scores} has scores of other candidates than {part.boxes} has boxes")
    if (part.priors and len(part.priors) != count) or (part.coding.startswith("prior") and not part.priors):
        raise ModelError(f"{part.boxes}: {count} boxes are shifts of {len(part.priors)} priors")
    for anchor, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        past_box = score.after(box_entries) if together else score
        objectness = past_box if head.objectness else None
        first = part.first + anchor * count if part.layout in ("rows", "columns") else 0
        yield Block(part, count, box, past_box.after(int(head.objectness)), objectness, grid, anchor, first)


def _kinds(head: Head, part: Candidates, shapes: Mapping[str, Sequence[int]]) -> Iterator[Block]:
    """All scores, then all objectness, then all boxes."""
    places, anchors = prod(part.grid), len(part.anchors)
    shape = shapes.get(part.boxes, ())
    if prod(shape) != places * (head.classes + 5 * anchors) or part.boxes != part.scores or not head.objectness:
        raise ModelError(
            f"output {part.boxes} of shape {list(shape)} is not of the layout 'kinds' with {head.classes} classes, an "
            f"objectness and {anchors} anchors in each of {places} cells"
        )
    objects = places * head.classes
    boxes = objects + places * anchors
    for anchor in range(anchors):
        yield Block(
            part,
            places,
            Lattice(boxes + 4 * anchor, 4 * anchors, 1),
            Lattice(0, head.classes, 1),
            Lattice(objects + anchor, anchors, 1),
            part.grid,
            anchor,
            0,
        )


def _check_words(head: Head, part: Candidates) -> None:
    for what, word, known in (
        ("layout", part.layout, _RANKS),
        ("coding", part.coding, _CODINGS),
        ("units", part.units, ("pixels", "unit")),
        ("activation", part.activation, _ACTIVATIONS),
    ):
        if word not in known:
            raise ModelError(f"the head of {part.boxes}: {what} {word!r} is none of {', '.join(known)}")
    if part.coding in ("cell-exp", "cell-square", "cell-linear") and not part.anchors:
        raise ModelError(f"the head of {part.boxes}: coding {part.coding!r} needs anchors")
    if (part.bins > 1) != (part.coding == "cell-sides") or not 1 <= part.bins <= MOST_BINS:
        raise ModelError(f"the head of {part.boxes}: {part.bins} bins do not fit the coding {part.coding!r}")
    if head.classes < 1:
        raise ModelError(f"the head of {part.boxes}: {head.classes} classes")


#: Candidates of a block, rows and columns of its grid, and a lattice for each anchor.
_Lattices = tuple[int, tuple[int, int], list[Lattice]]


def _lattices(part: Candidates, name: str, shapes: Mapping[str, Sequence[int]], entries: int) -> _Lattices:
    if name not in shapes:
        raise ModelError(f"the head asks for an output {name!r}; there are {', '.join(shapes)}")
    anchors = max(len(part.anchors), 1) if part.coding.startswith("cell") else 1
    shape = _without_batch(tuple(shapes[name]), _RANKS[part.layout])
    of_layout = _in_list if part.layout in ("rows", "columns") else _in_grid
    found = of_layout(part, shape, anchors, entries) if shape else None
    if found is None:
        what = f"{anchors} anchors and {entries} entries" if anchors > 1 else f"{entries} entries"
        raise ModelError(
            f"output {name} of shape {list(shapes[name])} is not of the layout {part.layout!r} with {what} a box"
        )
    return found


def _in_list(part: Candidates, shape: tuple[int, ...], anchors: int, entries: int) -> _Lattices | None:
    total, width = shape if part.layout == "rows" else shape[::-1]
    count = part.count or total - part.first
    each = count // anchors
    if width != entries or not 0 < count <= total - part.first or count % anchors:
        return None
    if part.coding.startswith("cell") and prod(part.grid) != each:
        return None
    step, entry = (entries, 1) if part.layout == "rows" else (1, total)
    return each, part.grid, [Lattice((part.first + anchor * each) * step, step, entry) for anchor in range(anchors)]


def _in_grid(part: Candidates, shape: tuple[int, ...], anchors: int, entries: int) -> _Lattices | None:
    grid = shape[:2] if part.layout == "cells" else shape[-2:] if part.layout == "planes" else shape[1:3]
    places = prod(grid)
    expected, at, step, entry = {
        "planes": ((anchors * entries, *grid), entries * places, 1, places),
        "cells": ((*grid, anchors * entries), entries, anchors * entries, 1),
        "anchor-cells": ((anchors, *grid, entries), places * entries, entries, 1),
    }[part.layout]
    if shape != expected:
        return None
    return places, (grid[0], grid[1]), [Lattice(anchor * at, step, entry) for anchor in range(anchors)]


def _without_batch(shape: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """The last ``rank`` extents, where the others are 1."""
    if len(shape) < rank or any(extent != 1 for extent in shape[: len(shape) - rank]):
        return None
    return shape[len(shape) - rank :]
