"""What the outputs of a run say: the best classes, boxes or masks, as runner.py reports them on a board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from bitkiln.pipeline.bundle import Bundle
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.reference import heads
from bitkiln.pipeline.reference.photos import Placement, place


def meaning(
    bundle: Bundle, outputs: Mapping[str, np.ndarray], photo: Image.Image | None, threshold: float | None = None
) -> dict[str, Any]:
    """The runner's report: {"top": [(label, score)]}, {"boxes": [...]} or {"classes": [{label, share}]}.

    Places are in pixels of ``photo``, or of the network's input where there is none. Beside "boxes" and "classes" stands what
    ``draw`` takes, under "found".
    """
    head = bundle.manifest.get("head")
    if not head:
        return {"top": runner.best_classes(next(iter(outputs.values())), bundle.labels, 5)}
    size = _input_size(bundle)
    whole = Placement((size[1], size[0]), (size[1], size[0]), (0, 0))
    how = bundle.manifest.get("preprocessing")
    placement = place(photo.size, how) if photo is not None and how else whole
    if head["task"] == "detect":
        found = [heads.on_photo(box, placement) for box in heads.detect(head, outputs, size, threshold)[:100]]
        boxes = []
        for box in found:
            left, top, right, bottom = map(float, box.corners)
            boxes.append(runner.Box(_label(bundle, box.number), box.score, left, top, right, bottom, box.number))
        return {"boxes": [box._asdict() for box in boxes], "found": boxes}
    labels = heads.segment(head, outputs)
    mask = heads.mask_on_photo(labels, {"height": size[0], "width": size[1]}, placement, runner.OUTSIDE).astype(
        "uint16"
    )
    rows = [{"label": _label(bundle, number), "share": share} for number, share in runner.shares(mask)]
    return {"classes": rows, "found": mask}


def draw(photo: Image.Image, report: Mapping[str, Any]) -> Image.Image:
    """The photo with what was found on it."""
    if "found" not in report:
        raise runner.RunnerError("this network gives classes of the whole image: there is nothing to draw")
    drawing = runner.draw_boxes if "boxes" in report else runner.draw_mask
    return drawing(photo, report["found"])


def _input_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the network's input."""
    how = bundle.manifest.get("preprocessing")
    if how:
        return how["height"], how["width"]
    row = bundle.manifest["inputs"][0]
    return tuple(row["shape"][1:3] if row["layout"] == "NHWC" else row["shape"][2:4])


def _label(bundle: Bundle, number: int) -> str:
    return bundle.labels[number] if number < len(bundle.labels) else f"class {number}"
