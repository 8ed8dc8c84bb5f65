"""What a darknet detector's outputs mean: [yolo], [region] and [detection] layers as candidates for boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitkiln.pipeline.importers.darknet.detectors import Detection, Detector, Region, Yolo
from bitkiln.pipeline.importers.darknet.layer import Layer, Size
from bitkiln.pipeline.model import Candidates, Head

#: What darknet's ``detector test`` keeps and suppresses by (examples/detector.c, src/demo.c).
_THRESHOLD = 0.25
_OVERLAP = 0.45

#: The same of networks that end with [detection] (examples/yolo.c).
_FIRST_THRESHOLD = 0.2
_FIRST_OVERLAP = 0.4


def detection_head(source: Size, outputs: Mapping[str, Layer]) -> Head | None:
    """The head of a network on images of ``source``, whose ``outputs`` have names; None where it is no such detector.

    The layers' activations and the stretch of x and y are part of the network.
    """
    detectors = {name: layer for name, layer in outputs.items() if isinstance(layer, Detector)}
    parts, classes = [], set()
    for name, layer in detectors.items():
        part = _candidates(name, layer, source)
        if part is None:
            return None
        parts.append(part)
        classes.add(layer.section.whole("classes", 1 if isinstance(layer, Detection) else 20))
    if len(classes) != 1 or min(classes) < 1:
        return None
    kinds = {layer.name for layer in detectors.values()}
    kind = f"darknet-{'-'.join(sorted(kinds))}"
    first = kinds == {Detection.name}
    return Head(
        "detect",
        kind,
        classes.pop(),
        tuple(parts),
        objectness=True,
        threshold=_FIRST_THRESHOLD if first else _THRESHOLD,
        overlap=_FIRST_OVERLAP if first else _OVERLAP,
    )


def _candidates(name: str, layer: Layer, source: Size) -> Candidates | None:
    anchors = _anchors(layer)
    if isinstance(layer, Yolo) and len(anchors) == layer.anchors:
        coding = "cell-square" if layer.new_coords else "cell-exp"
        return Candidates(name, name, "planes", coding, anchors=tuple(anchors))
    if isinstance(layer, Region) and len(anchors) == layer.anchors and layer.coords == 4 and not layer.background:
        wide, high = source.width / layer.size.width, source.height / layer.size.height
        pixels = tuple((width * wide, height * high) for width, height in anchors)
        return Candidates(name, name, "planes", "cell-exp", anchors=pixels)
    if isinstance(layer, Detection) and layer.coords == 4:
        # With sqrt=1 the network gives the roots of width and height: (2 w) ** 2 times a quarter of the image.
        root = layer.section.flag("sqrt")
        anchors = [(0.25, 0.25) if root else (1.0, 1.0)] * layer.boxes
        grid = (layer.side, layer.side)
        coding = "cell-square" if root else "cell-linear"
        return Candidates(name, name, "kinds", coding, "unit", anchors=tuple(anchors), grid=grid)
    return None


def _anchors(layer: Layer) -> Sequence[tuple[float, float]]:
    """Width and height of the layer's own anchors, in pixels of [yolo], in cells of [region]; without any, halves."""
    numbers = layer.section.numbers("anchors")
    count = layer.section.whole("num", 1)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False)) or [(0.5, 0.5)] * count
    mask = layer.section.wholes("mask", 0, 1 << 16)
    return [pairs[index] for index in mask if index < len(pairs)] if mask else pairs
