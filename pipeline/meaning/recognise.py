"""What a network's outputs mean, where their shapes leave no doubt; and the hint where they leave some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitkiln.pipeline.meaning.declared import declared
from bitkiln.pipeline.meaning.sides import side_outputs
from bitkiln.pipeline.model import Candidates, Head, Model, Preprocessing, TensorSpec

#: Cells of YOLO's three grids are so many pixels wide.
_STRIDES = (8, 16, 32)

#: Classes of COCO, which tell heads with an objectness from heads without.
_COCO = 80


#: Numbers that YOLOv8 describes each side of a box by, before any decoding.
_BINS = 16

#: Candidates of the smallest detectors with boxes and scores in outputs of their own.
_FEW = 100

#: Classes of Cityscapes, PASCAL VOC and ADE20K: other numbers of planes as large as the image may be anything.
_MASKED = (19, 21, 150)


def with_head(model: Model, path: Path, words: str | None) -> Model:
    """``model`` with the head that ``words`` (--head) declare, or else with the one that is recognised.

    Images of YOLOv5 and YOLOv8 networks are prepared as their authors do, where nothing else is known. Raises ModelError
    where what is declared does not fit the outputs.
    """
    if words is not None:
        head = declared(words, model, path)
        model = replace(model, origins={**model.origins, "head": "--head"})
        return _as_trained(replace(model, head=head), head) if head else replace(model, head=None)
    if model.head is not None:
        return model
    head = recognised(model, path)
    if head is None:
        return model
    return _as_trained(replace(model, head=head), head)


def recognised(model: Model, path: Path) -> Head | None:
    """The head of ``model``, from the file ``path``; None where its outputs may mean anything."""
    if model.preprocessing is None:
        return None
    return _yolo(model, path) or _segmentation(model)


def hint(model: Model) -> str | None:
    """What --head might say of outputs that look like a detector's; None where they do not, or where it has been said."""
    if model.head is not None or model.image_size is None or "head" in model.origins:
        return None
    kinds = _likely(model)
    if not kinds:
        return None
    return (
        f"outputs: as they are; they look like a detector's, of which --head {kinds} would give boxes (docs/heads.md)"
    )


def _likely(model: Model) -> str:
    """The kinds of --head that the outputs' shapes allow, in words; empty where they look like no detector's."""
    height, width = model.image_size or (0, 0)
    grids = {(height // stride, width // stride) for stride in _STRIDES}
    shapes = [spec.shape for spec in model.outputs]
    by_anchors = any(
        {cells for cells, _ in found} == grids and all(count % 3 == 0 for _, count in found)
        for found in (
            [(shape[-2:], shape[-3]) for shape in shapes if len(shape) == 4],
            [(shape[1:3], shape[3]) for shape in shapes if len(shape) == 4],
            [(shape[2:4], shape[1]) for shape in shapes if len(shape) == 5],
        )
    )
    sides = [
        boxes.channels if boxes is scores else 0
        for boxes, scores in side_outputs(model.outputs, _BINS)
        if boxes.cells in grids or boxes.cells == (_cells(model),)
    ]
    if sides and not (by_anchors and set(sides) == {3 * (_COCO + 5)}):
        surely = not by_anchors or set(sides) <= {0, 4 * _BINS + _COCO}
        return "yolov8-raw" if surely else "yolov8-raw, yolov5-raw or yolov3-raw"
    if by_anchors:
        return "yolov5-raw or yolov3-raw"
    boxes = [shape for shape in shapes if len(shape) == 3 and shape[-1] == 4 and shape[1] >= _FEW]
    if len(shapes) == 2 and len(boxes) == 1 and all(shape[:2] == boxes[0][:2] for shape in shapes):
        return "ssd (with its priors), centre or corners"
    return ""


def _yolo(model: Model, path: Path) -> Head | None:
    """One output of decoded boxes for every cell of YOLO's three grids."""
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 3 or model.outputs[0].dtype != "float32":
        return None
    (output,) = model.outputs
    cells = _cells(model)
    units = "unit" if path.suffix == ".tflite" else "pixels"
    first, last = output.shape[1:]
    if first == 4 * _BINS + _COCO:  # sides as distributions, not 140 classes
        return None
    if last == cells and 4 < first < cells:
        return _decoded("yolov8", output, "columns", units, first - 4)
    if first == cells and last == _COCO + 4:
        return _decoded("yolov8", output, "rows", units, _COCO)
    if first == 3 * cells and 5 < last < cells:
        return _decoded("yolov5", output, "rows", units, last - 5, objectness=True)
    return None


def _decoded(kind: str, output: TensorSpec, layout: str, units: str, classes: int, objectness: bool = False) -> Head:
    part = Candidates(output.name, output.name, layout, "centre", units)
    return Head("detect", kind, classes, (part,), objectness=objectness)


def _segmentation(model: Model) -> Head | None:
    """One output as large as the image: whole numbers, or scores of the classes of a well-known set."""
    if len(model.outputs) != 1 or model.image_size is None:
        return None
    (output,) = model.outputs
    shape = output.shape
    if output.dtype in ("int32", "int64", "uint8") and len(shape) >= 2 and shape[-2:] == model.image_size:
        if all(extent == 1 for extent in shape[:-2]):
            return Head("segment", "labels", 256, output=output.name, layout="labels")
        return None
    if len(shape) != 4 or output.dtype != "float32":
        return None
    places: dict[str, tuple[int, tuple[int, ...]]] = {"NCHW": (shape[1], shape[2:]), "NHWC": (shape[3], shape[1:3])}
    for layout, (classes, sides) in places.items():
        if sides == model.image_size and classes in _MASKED:
            return Head("segment", "scores", classes, threshold=0.5, output=output.name, layout=layout)
    return None


def _cells(model: Model) -> int:
    height, width = model.image_size or (0, 0)
    return sum((height // stride) * (width // stride) for stride in _STRIDES)


def _as_trained(model: Model, head: Head) -> Model:
    """Images of Ultralytics' networks, where nothing is known: 0..1, letterboxed with bars of 114 (their data/augment.py)."""
    how = model.preprocessing
    if head.kind not in ("yolov5", "yolov5-raw", "yolov8", "yolov8-raw") or how is None:
        return model
    if how != Preprocessing(how.height, how.width, layout=how.layout):
        return model
    how = replace(how, scale=(1 / 255,) * 3, resize="letterbox", fill=114.0)
    origins = dict.fromkeys(("range", "resize"), f"assumed, as {head.kind} is trained")
    return replace(model, preprocessing=how, origins={**model.origins, **origins})
