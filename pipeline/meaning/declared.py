"""Heads that the user declares: ``KIND[,key=value...]``, such as ``ssd,priors=priors.npy,background=0``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.meaning.candidates import MOST_BINS
from bitkiln.pipeline.meaning.sides import ends_with_sigmoid, side_outputs
from bitkiln.pipeline.meaning.tables import check_head
from bitkiln.pipeline.model import Candidates, Head, Model, TensorSpec

#: Anchors of YOLOv3 and YOLOv5 as trained on COCO, in pixels, three for each of the grids from fine to coarse
#: (darknet's cfg/yolov3.cfg, ultralytics/yolov5's models/yolov5s.yaml).
_COCO_ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)

_STRIDES = (8, 16, 32)

_KEYS = (
    *("boxes", "scores", "output", "classes", "units", "activation", "background", "threshold", "overlap"),
    *("layout", "anchors", "priors", "variances", "bins"),
)


def declared(words: str, model: Model, path: Path) -> Head | None:
    """The head that ``words`` name, None for "none". Raises ModelError where it does not fit the outputs of ``model``."""
    kind, *pairs = words.split(",")
    if kind == "none":
        return None
    make = _KINDS.get(kind)
    if make is None:
        raise ModelError(f"--head {kind}: none of none, {', '.join(_KINDS)}")
    settings = dict(_setting(kind, pair) for pair in pairs)
    if model.image_size is None:
        raise ModelError(f"{path}: its input {model.inputs[0].shape} is no image; leave --head out")
    try:
        head = make(kind, _Declared(model, settings))
        check_head(head, {spec.name: (spec.shape, spec.dtype) for spec in model.outputs})
    except ModelError as error:
        raise ModelError(f"{path}: --head {kind}: {error}") from None
    return head


def _setting(kind: str, pair: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator or key not in _KEYS:
        raise ModelError(f"--head {kind}: {pair!r} is not one of {', '.join(_KEYS)} with a value (key=value)")
    return key, value


class _Declared:
    """The settings of a head, and the outputs that they name."""

    def __init__(self, model: Model, settings: Mapping[str, str]) -> None:
        self.model = model
        self.settings = settings

    def text(self, key: str, default: str) -> str:
        """A word."""
        return self.settings.get(key, default)

    def number(self, key: str, default: float, low: float = 0.0, high: float = 1.0) -> float:
        """A number within bounds."""
        (value,) = self.numbers(key, (default,)) if key in self.settings else (default,)
        if not low <= value <= high:
            raise ModelError(f"{key}={value:g} is not within {low:g}..{high:g}")
        return value

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Numbers with slashes between them."""
        if key not in self.settings:
            return default
        try:
            return tuple(float(part) for part in self.settings[key].split("/"))
        except ValueError:
            raise ModelError(f"{key}={self.settings[key]} are no numbers with slashes between them") from None

    def output(self, key: str, fits: Callable[[TensorSpec], bool], what: str) -> TensorSpec:
        """The output that ``key`` names, or else the only one that fits."""
        outputs = {spec.name: spec for spec in self.model.outputs}
        if key in self.settings:
            if self.settings[key] not in outputs:
                raise ModelError(f"there is no output {self.settings[key]!r}; there are {', '.join(outputs)}")
            return outputs[self.settings[key]]
        found = [spec for spec in outputs.values() if fits(spec)]
        if len(found) != 1:
            shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs.values())
            raise ModelError(f"{len(found)} outputs could be {what}: name one with {key}=; there are {shapes}")
        return found[0]

    def head(self, kind: str, classes: int, parts: tuple[Candidates, ...], objectness: bool = False) -> Head:
        """A detector's head with the settings that all have."""
        background = int(self.number("background", -1, -1, classes - 1))
        threshold, overlap = self.number("threshold", 0.25), self.number("overlap", 0.45)
        return Head("detect", kind, classes, parts, objectness, background, threshold, overlap)


def _one_output(kind: str, given: _Declared) -> Head:
    """YOLOv5 and YOLOv8 with their boxes decoded."""
    output = given.output("boxes", lambda spec: len(spec.shape) == 3, "boxes and scores")
    first, last = output.shape[-2:]
    layout = given.text("layout", "columns" if first < last else "rows")
    entries = first if layout == "columns" else last
    objectness = kind == "yolov5"
    part = Candidates(
        output.name,
        output.name,
        layout,
        "centre",
        given.text("units", "pixels"),
        given.text("activation", "none"),
    )
    return given.head(kind, entries - 4 - objectness, (part,), objectness)


def _yolox(kind: str, given: _Declared) -> Head:
    """Rows of three grids, x and y in cells, sizes as logarithms of cells."""
    output = given.output("boxes", lambda spec: len(spec.shape) == 3, "boxes and scores")
    height, width = given.model.image_size or (0, 0)
    parts, first = [], 0
    for stride in _STRIDES:
        grid = (height // stride, width // stride)
        count = grid[0] * grid[1]
        anchors = ((float(stride), float(stride)),)
        part = Candidates(
            output.name, output.name, "rows", "cell-exp", anchors=anchors, grid=grid, first=first, count=count
        )
        parts.append(part)
        first += count
    return given.head(kind, output.shape[-1] - 5, tuple(parts), objectness=True)


def _grids(kind: str, given: _Declared) -> Head:
    """YOLOv3 and YOLOv5 as they are before any decoding: three grids, everything wants a sigmoid but YOLOv3's sizes."""
    outputs = sorted(given.model.outputs, key=lambda spec: -np.prod(spec.shape))
    anchors = given.numbers("anchors", _COCO_ANCHORS)
    each = len(anchors) // max(len(outputs), 1)
    if len(anchors) != each * len(outputs) or each % 2:
        raise ModelError(f"{len(anchors)} numbers are no widths and heights of anchors of {len(outputs)} outputs")
    coding, stretch = ("cell-square", 2.0) if kind == "yolov5-raw" else ("cell-exp", 1.0)
    parts = []
    for at, spec in enumerate(outputs):
        own = anchors[at * each : (at + 1) * each]
        usual = "anchor-cells" if len(spec.shape) == 5 else "cells" if spec.layout == "NHWC" else "planes"
        layout = given.text("layout", usual)
        pairs = tuple(zip(own[::2], own[1::2], strict=True))
        activation = given.text("activation", "sigmoid")
        parts.append(Candidates(spec.name, spec.name, layout, coding, "pixels", activation, stretch, pairs))
    shape, count = outputs[0].shape, each // 2
    entries = shape[-1] if len(shape) == 5 else (shape[-1] if parts[0].layout == "cells" else shape[1]) // count
    return given.head(kind, entries - 5, tuple(parts), objectness=True)


def _sides(kind: str, given: _Declared) -> Head:
    """YOLOv8 and its kin before any decoding: distributions of the four sides for each cell of three grids, and scores.

    Both are in one output for each grid, or in two; or in one for all grids together.
    """
    bins = int(given.number("bins", 16, 2, MOST_BINS))
    layout, activation = given.settings.get("layout"), given.settings.get("activation")
    size = given.model.image_size or (0, 0)
    parts: list[Candidates] = []
    classes: set[int] = set()
    for boxes, scores in side_outputs(given.model.outputs, bins, layout):
        channels = boxes.channels - 4 * bins if boxes is scores else scores.channels
        classes.add(channels)
        left_out = activation or ("none" if ends_with_sigmoid(given.model, scores.spec.name) else "sigmoid")
        whole = Candidates(boxes.spec.name, scores.spec.name, boxes.layout, "cell-sides", bins=bins)
        whole = replace(whole, activation=left_out)
        parts += [whole] if len(boxes.spec.shape) == 4 else _by_stride(whole, size)
    if not parts or len(classes) != 1:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in given.model.outputs)
        raise ModelError(
            f"no outputs with {4 * bins} numbers a box, and with scores of as many cells; there are {shapes}"
        )
    return given.head(kind, classes.pop(), tuple(parts))


def _by_stride(whole: Candidates, size: tuple[int, int]) -> list[Candidates]:
    """Candidates of three grids, one behind the other."""
    parts, first = [], 0
    for stride in _STRIDES:
        grid = (size[0] // stride, size[1] // stride)
        parts.append(replace(whole, grid=grid, first=first, count=grid[0] * grid[1]))
        first += grid[0] * grid[1]
    return parts


def _pair(kind: str, given: _Declared) -> Head:
    """Boxes and scores in outputs of their own: decoded, or as shifts of priors."""
    boxes = given.output("boxes", lambda spec: spec.shape[-1] == 4 and len(spec.shape) > 1, "boxes")
    same = boxes.shape[:-1]
    scores = given.output("scores", lambda spec: spec is not boxes and spec.shape[:-1] == same, "scores")
    coding = {"ssd": "prior", "ssd-yx": "prior-yx"}.get(kind, kind)
    priors = _priors(given) if coding.startswith("prior") else ()
    variances = given.numbers("variances", (0.1, 0.2))
    if len(variances) != 2:
        raise ModelError(f"{len(variances)} variances; two are wanted")
    part = Candidates(
        boxes.name,
        scores.name,
        "rows",
        coding,
        given.text("units", "unit"),
        given.text("activation", "none"),
        priors=priors,
        variances=(variances[0], variances[1]),
    )
    return given.head(kind, scores.shape[-1], (part,))


def _priors(given: _Declared) -> tuple[tuple[float, float, float, float], ...]:
    """The priors of a .npy file: centre x, centre y, width, height of each."""
    name = given.text("priors", "")
    try:
        values = np.load(name, allow_pickle=False) if name else None
    except (OSError, ValueError, EOFError):
        raise ModelError(f"{name}: no .npy file that can be read") from None
    if values is None or values.ndim != 2 or values.shape[1] != 4 or not np.isfinite(values).all():
        raise ModelError("priors=FILE.npy must name an array [N, 4]: centre x, centre y, width, height of each")
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in values)


def _segment(kind: str, given: _Declared) -> Head:
    output = given.output("output", lambda spec: len(spec.shape) >= 3, "a mask")
    whole = output.dtype in ("int32", "int64", "uint8")
    layout = given.text("layout", "labels" if whole else output.layout or "NCHW")
    classes = {"NCHW": output.shape[1], "NHWC": output.shape[-1]}.get(layout, 256)
    classes = int(given.number("classes", classes, 1, 65535))
    return Head(
        "segment", kind, classes, threshold=given.number("threshold", 0.5, -1e9, 1e9), output=output.name, layout=layout
    )


_KINDS: Mapping[str, Callable[[str, _Declared], Head]] = {
    "yolov8": _one_output,
    "yolov5": _one_output,
    "yolox": _yolox,
    "yolov8-raw": _sides,
    "yolov5-raw": _grids,
    "yolov3-raw": _grids,
    "ssd": _pair,
    "ssd-yx": _pair,
    "centre": _pair,
    "corners": _pair,
    "corners-yx": _pair,
    "segment": _segment,
}
