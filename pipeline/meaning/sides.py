"""Outputs that describe boxes by distributions of their four sides, as YOLOv8 and its kin do before any decoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.model import Model, TensorSpec


@dataclass(frozen=True)
class CellOutput:
    """An output with ``channels`` numbers for each of ``cells`` cells, in the layout of ``Candidates``."""

    spec: TensorSpec
    layout: str
    channels: int
    cells: tuple[int, ...]


def side_outputs(
    specs: Iterable[TensorSpec], bins: int, layout: str | None = None
) -> Iterator[tuple[CellOutput, CellOutput]]:
    """Outputs with ``4 * bins`` numbers for each cell, and those with the scores of the same cells: the same, or others."""
    found = [each for spec in specs if (each := _cells(spec, layout)) is not None]
    apart = {each.cells for each in found if each.channels == 4 * bins}
    for boxes in found:
        if boxes.channels > 4 * bins and boxes.cells not in apart:
            yield boxes, boxes
        if boxes.channels != 4 * bins:
            continue
        # Some converters add an output with the sum of the scores, of one channel.
        others = [each for each in found if each.cells == boxes.cells and each is not boxes]
        scores = [each for each in others if each.channels > 1] or others
        if len(scores) == 1:
            yield boxes, scores[0]


def _cells(spec: TensorSpec, layout: str | None) -> CellOutput | None:
    shape = spec.shape
    cells: tuple[int, ...]
    if spec.dtype != "float32" or len(shape) not in (3, 4) or shape[0] != 1:
        return None
    if len(shape) == 4:
        layout = layout or ("cells" if spec.layout == "NHWC" else "planes")
        channels, cells = (shape[1], shape[2:]) if layout == "planes" else (shape[3], shape[1:-1])
    else:
        layout = layout or ("columns" if shape[1] < shape[2] else "rows")
        channels, cells = (shape[1], shape[2:]) if layout == "columns" else (shape[2], shape[1:-1])
    return CellOutput(spec, layout, channels, cells)


def ends_with_sigmoid(model: Model, output: str) -> bool:
    """Is the output what a sigmoid gives?"""
    body = model.module["main"].body
    made = {binding.var: binding.value for block in body.blocks for binding in block.bindings}

    def value_of(expr: relax.Expr) -> relax.Expr:
        while expr in made:
            expr = made[expr]
        return expr

    result = value_of(body.body)
    position = [spec.name for spec in model.outputs].index(output)
    made_by = value_of(result.fields[position] if isinstance(result, relax.Tuple) else result)
    return isinstance(made_by, Call) and getattr(made_by.op, "name", "") == "relax.sigmoid"
