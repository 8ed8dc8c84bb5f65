"""What a network's outputs mean, by numpy: the definition of what heads.c does on the board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitkiln.pipeline.reference.photos import Placement

#: How many candidates, the best, are compared with one another.
MOST = 1024


class Found(NamedTuple):
    """A box as corners [left, top, right, bottom], its score and its class."""

    corners: np.ndarray
    score: float
    number: int


def detect(
    head: Mapping[str, Any], outputs: Mapping[str, np.ndarray], size: tuple[int, int], threshold: float | None = None
) -> list[Found]:
    """The boxes of ``outputs`` by ``head``, the manifest's, best first, in pixels of the input, (height, width) large."""
    threshold = head["threshold"] if threshold is None else threshold
    corners, scores = (
        np.concatenate(both)
        for both in zip(*(_part(head, part, outputs, size) for part in head["candidates"]), strict=True)
    )
    if head["background"] >= 0:
        scores[:, head["background"]] = -np.inf
    number = scores.argmax(1)
    score = scores.max(1)
    usable = (score >= threshold) & np.isfinite(corners).all(1)
    order = np.flatnonzero(usable)[np.argsort(-score[usable], kind="stable")][:MOST]
    kept: list[Found] = []
    for at in order:
        rivals = [found.corners for found in kept if found.number == number[at]]
        if not rivals or (_overlap(corners[at], np.array(rivals)) <= head["overlap"]).all():
            kept.append(Found(corners[at], float(score[at]), int(number[at])))
    return kept


def on_photo(found: Found, placement: Placement) -> Found:
    """The box in pixels of the photo, cut off at its edges."""
    x, y = placement.on_photo(found.corners[0::2], found.corners[1::2])
    x, y = np.clip(x, 0, placement.photo[0]), np.clip(y, 0, placement.photo[1])
    return found._replace(corners=np.array([x[0], y[0], x[1], y[1]]))


def segment(head: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The class of each pixel of the head's output, [H, W]."""
    values = outputs[head["output"]]
    if head["layout"] == "labels":
        return values.reshape(values.shape[-2:]).astype(int)
    scores = values[0] if head["layout"] == "NCHW" else values[0].transpose(2, 0, 1)
    return (scores[0] > head["threshold"]).astype(int) if head["classes"] == 1 else scores.argmax(0)


def mask_on_photo(labels: np.ndarray, how: Mapping[str, Any], placement: Placement, outside: int) -> np.ndarray:
    """``labels`` of the network's input over the whole photo, ``outside`` where the network has not seen it."""
    width, height = placement.photo
    columns = (np.arange(width) + 0.5) * placement.size[0] / width - placement.start[0]
    rows = (np.arange(height) + 0.5) * placement.size[1] / height - placement.start[1]
    across = np.clip((columns * labels.shape[1] / how["width"]).astype(int), 0, labels.shape[1] - 1)
    down = np.clip((rows * labels.shape[0] / how["height"]).astype(int), 0, labels.shape[0] - 1)
    seen = ((rows >= 0) & (rows < how["height"]))[:, None] & ((columns >= 0) & (columns < how["width"]))[None]
    return np.where(seen, labels[down][:, across], outside)


def _part(
    head: Mapping[str, Any], part: Mapping[str, Any], outputs: Mapping[str, np.ndarray], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Corners [n, 4] and scores [n, classes] of one part of the candidates."""
    scored = head["classes"] + bool(head["objectness"])
    together, entries = part["boxes"] == part["scores"], 4 * part["bins"]
    if part["layout"] == "kinds":
        boxes, scores = _kinds(part, outputs[part["boxes"]], head["classes"])
    else:
        boxes = _rows(part, outputs[part["boxes"]], entries + scored if together else entries)
        scores = boxes[..., entries:] if together else _rows(part, outputs[part["scores"]], scored)
    corners = _corners(part, boxes[..., :entries], size)
    if part["activation"] == "sigmoid":
        scores = _sigmoid(scores)
    if part["activation"] == "softmax":
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        scores = powers / powers.sum(-1, keepdims=True)
    if head["objectness"]:
        scores = scores[..., :1] * scores[..., 1:]
    return corners.reshape(-1, 4), scores.reshape(-1, head["classes"]).copy()


def _rows(part: Mapping[str, Any], values: np.ndarray, entries: int) -> np.ndarray:
    """The numbers of candidates as [anchors, rows, columns, entries], or [1, 1, n, entries] where they have no grid."""
    anchors = max(len(part["anchors"]), 1) if part["coding"].startswith("cell") else 1
    values = np.asarray(values, np.float64)
    layout = part["layout"]
    if layout in ("rows", "columns"):
        rows = values.reshape(-1, entries) if layout == "rows" else values.reshape(entries, -1).T
        rows = rows[part["first"] : part["first"] + part["count"] if part["count"] else None]
        grid = tuple(part["grid"]) if part["coding"].startswith("cell") else (1, len(rows))
        return rows.reshape(anchors, *grid, entries)
    if layout == "planes":
        rows, columns = values.shape[-2:]
        return values.reshape(anchors, entries, rows, columns).transpose(0, 2, 3, 1)
    if layout == "cells":
        rows, columns = values.shape[-3:-1]
        return values.reshape(rows, columns, anchors, entries).transpose(2, 0, 1, 3)
    return values.reshape(anchors, *values.shape[-3:-1], entries)


def _kinds(part: Mapping[str, Any], values: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores, the objectness first, as [anchors, rows, columns, entries]."""
    grid, anchors = tuple(part["grid"]), len(part["anchors"])
    places = grid[0] * grid[1]
    flat = np.asarray(values, np.float64).reshape(-1)
    shared = flat[: places * classes].reshape(1, *grid, classes)
    objects = flat[places * classes : places * (classes + anchors)].reshape(*grid, anchors).transpose(2, 0, 1)
    boxes = flat[places * (classes + anchors) :].reshape(*grid, anchors, 4).transpose(2, 0, 1, 3)
    return boxes, np.concatenate([objects[..., None], np.repeat(shared, anchors, 0)], -1)


def _corners(part: Mapping[str, Any], numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Left, top, right and bottom in pixels of the input."""
    coding = part["coding"]
    wide_high = np.array([size[1], size[0]], float)
    unit = wide_high if part["units"] == "unit" else np.ones(2)
    if coding.endswith("-yx"):
        numbers = numbers[..., [1, 0, 3, 2]]
    place, extent = numbers[..., :2], numbers[..., 2:]
    if coding.startswith("corners"):
        return np.concatenate([place * unit, extent * unit], -1)
    if coding == "cell-sides":
        powers = numbers.reshape(*numbers.shape[:-1], 4, -1)
        powers = np.exp(powers - powers.max(-1, keepdims=True))
        sides = (powers / powers.sum(-1, keepdims=True)) @ np.arange(part["bins"])
        rows, columns = numbers.shape[1:3]
        middles = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) + 0.5
        cell = wide_high / [columns, rows]
        return np.concatenate([(middles - sides[..., :2]) * cell, (middles + sides[..., 2:]) * cell], -1)
    if coding.startswith("cell"):
        if part["activation"] == "sigmoid":
            place = _sigmoid(place)
            extent = _sigmoid(extent) if coding == "cell-square" else extent
        rows, columns = numbers.shape[1:3]
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)
        place = (place * part["stretch"] - (part["stretch"] - 1) / 2 + cells) * wide_high / [columns, rows]
        anchors = np.array(part["anchors"], float).reshape(-1, 1, 1, 2) * unit
        if coding != "cell-linear":
            extent = np.exp(extent) if coding == "cell-exp" else (2 * extent) ** 2
        extent = extent * anchors
    elif coding.startswith("prior"):
        priors = np.array(part["priors"], float).reshape(numbers.shape)
        first, second = part["variances"]
        place = (priors[..., :2] + place * first * priors[..., 2:]) * unit
        extent = np.exp(extent * second) * priors[..., 2:] * unit
    else:
        place, extent = place * unit, extent * unit
    return np.concatenate([place - extent / 2, place + extent / 2], -1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of the others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (box, others)]
    return common / (areas[0] + areas[1] - common)
