"""Detectors that end with ``TFLite_Detection_PostProcess``: the operator becomes the network's head, decoded on the board.

Its operands are encodings of boxes [1, N, 4] (y, x, height, width), scores [1, N, classes] and anchors [N, 4] (in the same
order), by tensorflow/lite/kernels/detection_postprocess.cc. There a box suppresses those of other classes too (or, with
``use_regular_nms``, counts for several classes); here it counts for its best class and suppresses those of that class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from flatbuffers import flexbuffers

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.tflite.file import DAMAGE, File, Operator, Tensor
from bitkiln.pipeline.model import Candidates, Head

CODE = "TFLite_Detection_PostProcess"

#: Files mostly say that everything counts, and leave it to the program to look at the scores.
_LEAST_THRESHOLD = 0.25


def without_postprocessing(file: File) -> tuple[File, Head | None]:
    """``file`` with its detection's operands for outputs, and what they mean; the file itself where it has no such operator."""
    found = [operator for operator in file.operators if operator.custom and operator.kind == CODE]
    if len(found) != 1 or not {*file.outputs} <= {*found[0].outputs}:
        return file, None
    (operator,) = found
    if len(operator.inputs) != 3:
        raise ModelError(f"{file.path}: {file.label(operator)} has {len(operator.inputs)} operands; 3 are wanted")
    boxes, scores, anchors = (file.tensors[index] for index in operator.inputs)
    rest = [other for other in file.operators if other is not operator]
    names = {boxes.index: "boxes", scores.index: "scores"}
    return replace(file, operators=rest, outputs=(boxes.index, scores.index), names={**file.names, **names}), _head(
        file, operator, scores, anchors
    )


def _head(file: File, operator: Operator, scores: Tensor, anchors: Tensor) -> Head:
    options = _Options(file, operator)
    classes = options.number("num_classes", 1, 1 << 16)
    width = scores.shape[-1] if scores.shape else None
    if width is None or width not in (classes, classes + 1):
        raise ModelError(
            f"{file.path}: {file.label(operator)} tells {classes} classes apart, its scores are for {width}"
        )
    scales = [options.number(f"{axis}_scale", 1e-6, 1e6) for axis in "yxhw"]
    if scales[0] != scales[1] or scales[2] != scales[3]:
        raise ModelError(f"{file.path}: {file.label(operator)} scales x and y differently, which is not supported")
    part = Candidates(
        "boxes",
        "scores",
        "rows",
        "prior-yx",
        "unit",
        priors=_priors(file, operator, anchors),
        variances=(1 / scales[0], 1 / scales[2]),
    )
    threshold = options.number("nms_score_threshold", -1e9, 1)
    return Head(
        "detect",
        "tflite-ssd",
        width,
        (part,),
        background=0 if width == classes + 1 else -1,
        threshold=threshold if threshold > 0.05 else _LEAST_THRESHOLD,
        overlap=options.number("nms_iou_threshold", 0, 1),
    )


def _priors(file: File, operator: Operator, anchors: Tensor) -> tuple[tuple[float, float, float, float], ...]:
    """Centre x, centre y, width, height of each."""
    values = anchors.data
    if values is None or values.ndim != 2 or values.shape[1] != 4:
        raise ModelError(f"{file.path}: {file.label(operator)}: its anchors are no constant [N, 4]")
    values = values.astype(np.float64)
    if anchors.quantization is not None:
        values = (values - anchors.quantization.zero_point.reshape(-1)[0]) * anchors.quantization.scale.reshape(-1)[0]
    if not np.isfinite(values).all():
        raise ModelError(f"{file.path}: {file.label(operator)}: its anchors are no numbers")
    return tuple((float(x), float(y), float(w), float(h)) for y, x, h, w in values)


class _Options:
    """Numbers of the operator's map."""

    def __init__(self, file: File, operator: Operator) -> None:
        self._where = f"{file.path}: {file.label(operator)}"
        self._map: Any = self._reading(lambda: flexbuffers.GetRoot(bytearray(operator.custom_options)).AsMap)

    def number(self, name: str, low: float, high: float) -> Any:
        """A number within bounds."""
        value = self._reading(lambda: self._map[name].Value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ModelError(f"{self._where}: its option {name} is {str(value)[:40]}, not {low:g} to {high:g}")
        return value

    def _reading(self, read: Any) -> Any:
        try:
            return read()
        except (*DAMAGE, RecursionError, KeyError):
            raise ModelError(f"{self._where}: its options are damaged or incomplete") from None
