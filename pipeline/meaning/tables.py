"""Preprocessing and head as the C tables of plan.h, which the functions of image.c and heads.c read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.meaning.candidates import Block, blocks
from bitkiln.pipeline.model import Head, Preprocessing

_ORDERS = {"RGB": "BK_ORDER_RGB", "BGR": "BK_ORDER_BGR", "GREY": "BK_ORDER_GREY"}
_RESIZES = {"stretch": "BK_STRETCH", "short-side": "BK_SHORT_SIDE", "letterbox": "BK_LETTERBOX"}


def preprocessing_source(how: Preprocessing | None) -> str:
    """The definition of ``preprocessing``, a pointer to the table or NULL."""
    if how is None:
        return "#define preprocessing NULL"
    channels = 1 if how.channel_order == "GREY" else 3
    if len(how.mean) != channels or len(how.scale) != channels:
        raise ModelError(
            f"{len(how.mean)} means and {len(how.scale)} scales for {channels} channels ({how.channel_order})"
        )
    planes = int(how.layout == "NCHW")
    return (
        f"static const bk_preprocessing how = {{{how.height}, {how.width}, {_ORDERS[how.channel_order]}, "
        f"{_RESIZES[how.resize]}, {planes}, {how.resize_to}, {_float(how.fill)}, {_floats(how.mean)}, {_floats(how.scale)}}};\n"
        "#define preprocessing &how"
    )


#: Shapes and types of a network's outputs by their names, in their order.
Outputs = Mapping[str, tuple[Sequence[int], str]]


def check_head(head: Head, outputs: Outputs) -> None:
    """Raise ModelError where ``head`` does not fit ``outputs``."""
    shapes = {name: shape for name, (shape, _) in outputs.items()}
    if head.task == "segment":
        _segment(head, shapes)
        whole = ("int32", "int64", "uint8") if head.layout == "labels" else ()
        used = {head.output: ("float32", *whole)}
    else:
        used = {block.part.boxes: ("float32",) for block in blocks(head, shapes)}
        used |= {part.scores: ("float32",) for part in head.candidates}
    for name, types in used.items():
        if outputs[name][1] not in types:
            raise ModelError(f"output {name} is {outputs[name][1]}; {' or '.join(types)} is wanted")


def head_source(head: Head | None, outputs: Outputs, size: tuple[int, int] | None) -> str:
    """The definition of ``head``, a pointer to the table or NULL.

    ``size`` is height and width of the network's input. Raises ModelError where the head does not fit the outputs.
    """
    if head is None:
        return "#define head NULL"
    if size is None:
        raise ModelError("a head needs an image for an input: give a size or preprocessing")
    check_head(head, outputs)
    shapes = {name: shape for name, (shape, _) in outputs.items()}
    names = list(outputs)
    if head.task == "segment":
        return _segment(head, shapes)
    lines, rows = [], []
    for number, block in enumerate(blocks(head, shapes)):
        priors = "NULL"
        if block.part.priors:
            priors = f"priors{number}"
            scale = (size[1], size[0]) * 2 if block.part.units == "unit" else (1, 1, 1, 1)
            values = (value * factor for prior in block.part.priors for value, factor in zip(prior, scale, strict=True))
            lines.append(f"static const float {priors}[] = {_floats(values)};")
        rows.append(_candidates(head, block, names, size, priors))
    lines += ["static const bk_candidates candidates[] = {", *rows, "};"]
    lines.append(
        f"static const bk_head what = {{BK_DETECT, {head.classes}, {head.background}, {_float(head.threshold)}, "
        f"{_float(head.overlap)}, candidates, {len(rows)}, 0, 0, 0, 0, 0}};"
    )
    return "\n".join([*lines, "#define head &what"])


def _candidates(head: Head, block: Block, names: Sequence[str], size: tuple[int, int], priors: str) -> str:
    part, (height, width) = block.part, size
    unit = (width, height) if part.units == "unit" else (1, 1)
    rows, columns = block.grid
    cell = (width / columns, height / rows) if columns and rows else (0, 0)
    anchor = part.anchors[block.anchor] if part.anchors else (0, 0)
    scores, objects = block.scores, block.objectness
    values = [
        names.index(part.boxes),
        names.index(part.scores),
        block.count,
        f"BK_{part.coding.upper().replace('-', '_')}",
        f"BK_{part.activation.upper()}",
        *(block.boxes.at, block.boxes.step, block.boxes.entry),
        *((objects.at, objects.step) if objects else (-1, 0)),
        *(scores.at, scores.step, scores.entry),
        *map(_float, unit),
        max(columns, 1),
        part.bins,
        *map(_float, (*cell, part.stretch, anchor[0] * unit[0], anchor[1] * unit[1])),
        priors,
        _floats(part.variances),
    ]
    return "{" + ", ".join(map(str, values)) + "},"


def _segment(head: Head, outputs: Mapping[str, Sequence[int]]) -> str:
    names = list(outputs)
    if head.output not in outputs:
        raise ModelError(f"the head asks for an output {head.output!r}; there are {', '.join(names)}")
    shape = list(outputs[head.output])
    rows, columns, step, entry = _pixels(head, shape)
    return (
        f"static const bk_head what = {{BK_SEGMENT, {head.classes}, {head.background}, {_float(head.threshold)}, 0, NULL, 0, "
        f"{names.index(head.output)}, {rows}, {columns}, {step}, {entry}}};\n#define head &what"
    )


def _pixels(head: Head, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Rows, columns, and the steps between pixels and between classes (0: the output holds class numbers)."""
    if head.layout == "NCHW" and len(shape) == 4 and shape[1] == head.classes:
        return shape[2], shape[3], 1, shape[2] * shape[3]
    if head.layout == "NHWC" and len(shape) == 4 and shape[3] == head.classes:
        return shape[1], shape[2], head.classes, 1
    if head.layout == "labels" and len(shape) >= 2 and math.prod(shape) == shape[-1] * shape[-2]:
        return shape[-2], shape[-1], 1, 0
    raise ModelError(
        f"output {head.output} of shape {list(shape)} holds no {head.classes} classes in the layout {head.layout!r}"
    )


def _floats(values: Iterable[float]) -> str:
    return "{" + ", ".join(map(_float, values)) + "}"


def _float(value: float) -> str:
    """``value`` as a C constant of type float."""
    if not math.isfinite(value):
        raise ModelError(f"{value} stands where preprocessing or head want a number")
    return f"{float(value)!r}f"
