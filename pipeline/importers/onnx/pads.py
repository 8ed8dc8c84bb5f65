"""ONNX's Pad of all modes, Slice and Gather."""

from __future__ import annotations

from typing import Literal

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.indexing import check_indices, not_negative
from bitkiln.pipeline.importers.onnx.operands import Operands

#: Modes whose padding is made of the tensor's own elements, as numpy calls them.
_OWN_ELEMENTS: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad(node: Operands) -> relax.Expr:
    """Pads of any opset; negative ones take elements away."""
    mode = node.attributes.get("mode", b"constant").decode(errors="replace")
    widths = _widths(node)
    if mode in _OWN_ELEMENTS:
        return _from_own_elements(node, widths, _OWN_ELEMENTS[mode])
    if mode != "constant":
        raise node.unsupported(f"pads by {mode!r}; constant, {', '.join(_OWN_ELEMENTS)} are supported")
    value = float(node.array(2, "pad value").item()) if node.has(2) else float(node.attributes.get("value", 0))
    x, shape = node.value(0), node.shape()
    cut = [axis for axis, width in enumerate(widths) if min(width) < 0]
    if cut:
        begin = [max(-widths[axis][0], 0) for axis in cut]
        end = [shape[axis] - max(-widths[axis][1], 0) for axis in cut]
        if any(first >= last for first, last in zip(begin, end, strict=True)):
            raise node.unsupported(f"its pads {widths} leave nothing of {list(shape)}")
        x = relax.op.strided_slice(x, cut, begin, end)
    added = [max(width, 0) for pair in widths for width in pair]
    if not any(added):
        return x
    return relax.op.nn.pad(node.step(x, "cut") if cut else x, added, "constant", value)


def _widths(node: Operands) -> list[tuple[int, int]]:
    """Elements before and behind each axis."""
    rank = len(node.shape())
    pads = list(node.attributes["pads"]) if "pads" in node.attributes else node.array(1, "pads").tolist()
    axes = node.array(3, "axes").tolist() if node.has(3) else list(range(rank))
    if len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        raise node.unsupported(f"has {len(pads)} pads for {len(axes)} axes of a tensor of {rank}")
    widths = [(0, 0)] * rank
    for index, axis in enumerate(axes):
        widths[axis % rank] = (int(pads[index]), int(pads[len(axes) + index]))
    return widths


def _from_own_elements(
    node: Operands, widths: list[tuple[int, int]], mode: Literal["reflect", "edge", "wrap"]
) -> relax.Expr:
    """Along each axis the elements are taken by their indices."""
    x = node.value(0)
    for axis, (size, (before, behind)) in enumerate(zip(node.shape(), widths, strict=True)):
        if not before and not behind:
            continue
        if max(before, behind) > size:
            raise node.unsupported(f"pads an axis of {size} with {max(before, behind)} of its own elements")
        indices = np.pad(np.arange(size), (max(before, 0), max(behind, 0)), mode=mode)
        indices = indices[max(-before, 0) : len(indices) - max(-behind, 0)]
        taken = relax.op.take(x, relax.const(indices.astype(np.int64)), axis, "clip")
        x = node.step(taken, f"axis{axis}")
    return x


def cut(node: Operands) -> relax.Expr:
    """Slice of any opset: as Python's slices, with bounds beyond the tensor and negative steps."""
    shape = node.shape()
    starts, ends = _bounds(node, "starts", 1), _bounds(node, "ends", 2)
    axes = _bounds(node, "axes", 3, list(range(len(starts))))
    steps = _bounds(node, "steps", 4, [1] * len(starts))
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(not -len(shape) <= a < len(shape) for a in axes):
        raise node.unsupported(f"cuts {len(starts)} starts, {len(ends)} ends and {len(steps)} steps of axes {axes}")
    if 0 in steps:
        raise node.unsupported("has a step of 0")
    x = node.value(0)
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        indices = range(shape[axis])[slice(*bounds)]
        if len(indices) == shape[axis] and indices.step == 1:
            continue
        if indices.step > 0:
            part = relax.op.strided_slice(x, [axis % len(shape)], [indices.start], [indices.stop], [indices.step])
        else:
            part = relax.op.take(x, relax.const(np.array(indices, np.int64)), axis, "clip")
        x = node.step(part, f"axis{axis % len(shape)}")
    return x


def gather(node: Operands) -> relax.Expr:
    """Elements of one axis. Indices that the network computes or is given, and that lie outside, take the nearest."""
    shape, axis = node.shape(), node.attributes.get("axis", 0)
    if not -len(shape) <= axis < len(shape):
        raise node.unsupported(f"its attribute axis={axis} is none of {len(shape)}")
    axis %= len(shape)
    if node.is_constant(1):
        if not node.array(1, "indices").size:
            raise node.unsupported("gathers nothing")
        return _taken(node, axis, node.array(1, "indices").astype(np.int64))
    return relax.op.take(node.value(0), not_negative(node, 1, shape[axis]), axis, "clip")


def _taken(node: Operands, axis: int, indices: np.ndarray) -> relax.Expr:
    shape = node.shape()
    check_indices(node, shape[axis], indices)
    taken = relax.op.take(node.value(0), relax.const((indices % shape[axis]).reshape(-1)), axis, "clip")
    if indices.ndim == 1:
        return taken
    return relax.op.reshape(node.step(taken, "taken"), (*shape[:axis], *indices.shape, *shape[axis + 1 :]))


def _bounds(node: Operands, name: str, index: int, default: list[int] | None = None) -> list[int]:
    """An attribute of old opsets, an operand of newer ones."""
    if name in node.attributes:
        return list(node.attributes[name])
    if default is not None and not node.has(index):
        return default
    return [int(value) for value in node.array(index, name).reshape(-1)]
