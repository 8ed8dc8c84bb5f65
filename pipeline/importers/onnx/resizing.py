"""ONNX's Resize of all opsets, and Upsample.

Images that grow or shrink by whole factors become ``image.resize2d``. Every other resize is written out, axis by axis: each row
of the result is a weighted sum of rows of the input, whose positions and weights are constants found here as ONNX defines
them, with the scales that the file gives; they need not be the quotient of the sizes. Coordinates are float32, as onnxruntime
has them, so that nearest neighbours agree where a coordinate falls between two rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands

_METHODS = {"nearest": "nearest_neighbor", "linear": "linear", "cubic": "cubic"}

_TEXTS = {
    "mode": b"nearest",
    "coordinate_transformation_mode": b"half_pixel",
    "nearest_mode": b"round_prefer_floor",
    "keep_aspect_ratio_policy": b"stretch",
}

#: Coordinate modes that ``image.resize2d`` has.
_PLAIN_MODES = frozenset({"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"})

_NEAREST_MODES = frozenset({"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"})

#: Rows that are summed one by one; more of them are a product of matrices.
_FEW = 4


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized: ``scale`` is what coordinates are divided by, ``roi`` start and end of the part shown."""

    size: int
    length: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def resize(node: Operands) -> relax.Expr:
    """Sizes or scales are constant."""
    if node.opset < 11:
        text = {name: default.decode() for name, default in _TEXTS.items()}
        text |= {"mode": node.text("mode", "nearest"), "coordinate_transformation_mode": "asymmetric"}
        text["nearest_mode"] = "floor"
    else:
        text = {name: node.text(name, default.decode()) for name, default in _TEXTS.items()}
    axes = _axes(node, text)
    _check(node, text, axes)
    if _is_plain(node, text, axes):
        return relax.op.image.resize2d(
            node.value(0),
            (axes[2].length, axes[3].length),
            layout="NCHW",
            method=_METHODS[text["mode"]],
            coordinate_transformation_mode=text["coordinate_transformation_mode"],
            rounding_method=text["nearest_mode"],
            cubic_alpha=node.attributes.get("cubic_coeff_a", -0.75),
        )
    return _written_out(node, text, axes)


def _axes(node: Operands, text: dict[str, str]) -> list[_Axis]:
    """Every axis of the input; those that stay as they are have the scale 1."""
    shape = node.shape()
    rank = len(shape)
    chosen = [axis % rank for axis in node.attributes.get("axes", range(rank))]
    scales_at, sizes_at = (1, None) if node.opset < 11 else (2, 3)
    if sizes_at is not None and node.has(sizes_at):
        given = [int(size) for size in node.array(sizes_at, "sizes").reshape(-1)]
        _check_count(node, given, chosen)
        lengths, scales = _of_sizes([shape[axis] for axis in chosen], given, text["keep_aspect_ratio_policy"])
    else:
        array = node.attributes.get("scales")
        floats = np.asarray(node.array(scales_at, "scales") if array is None else array, np.float32).reshape(-1)
        _check_count(node, floats, chosen)
        if not np.isfinite(floats).all() or floats.min() <= 0:
            raise node.unsupported(f"resizes by {floats.tolist()}")
        scales = floats.tolist()
        lengths = [int(np.floor(np.float32(shape[axis]) * scale)) for axis, scale in zip(chosen, floats, strict=True)]
    rois = _rois(node, text, len(chosen))
    found = [_Axis(size, size, 1.0) for size in shape]
    for axis, length, scale, roi in zip(chosen, lengths, scales, rois, strict=True):
        if length < 1:
            raise node.unsupported(f"leaves nothing of an axis of {shape[axis]}")
        found[axis] = _Axis(shape[axis], length, float(np.float32(scale)), roi)
    return found


def _check_count(node: Operands, given: Any, chosen: list[int]) -> None:
    if len(given) != len(chosen):
        raise node.unsupported(f"gives {len(given)} sizes or scales for {len(chosen)} axes")


def _of_sizes(shape: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    """Lengths and scales for the sizes that are asked for; one scale for all where the aspect ratio is kept."""
    ratios = [np.float32(size) / np.float32(old) for size, old in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return sizes, [float(ratio) for ratio in ratios]
    scale = float(min(ratios) if policy == "not_larger" else max(ratios))
    return [math.floor(scale * old + 0.5) for old in shape], [scale] * len(shape)


def _rois(node: Operands, text: dict[str, str], count: int) -> list[tuple[float, float]]:
    if text["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    roi = np.asarray(node.array(1, "region"), np.float64).reshape(-1)
    if roi.size != 2 * count:
        raise node.unsupported(f"its region has {roi.size} numbers for {count} axes")
    return [(float(start), float(end)) for start, end in zip(roi[:count], roi[count:], strict=True)]


def _check(node: Operands, text: dict[str, str], axes: list[_Axis]) -> None:
    mode = text["coordinate_transformation_mode"]
    known = (
        ("mode", _METHODS),
        ("coordinate_transformation_mode", _COORDINATES),
        ("nearest_mode", _NEAREST_MODES),
        ("keep_aspect_ratio_policy", ("stretch", "not_larger", "not_smaller")),
    )
    for name, values in known:
        if text[name] not in values:
            raise node.unsupported(f"its attribute {name}={text[name]} is not supported")
    for axis in axes:
        if mode == "align_corners" and axis.size * axis.scale != axis.length and axis.length > 1 and node.has(2):
            raise node.unsupported(
                f"aligns corners where {axis.size} times {axis.scale:g} is no whole size, which runtimes take differently: "
                "export it with sizes"
            )
    if node.attributes.get("antialias") and text["mode"] == "nearest":
        raise node.unsupported("its attribute antialias=1 is not supported with mode=nearest")
    if str(node.value(0).ty.dtype) != "float32" and text["mode"] != "nearest":
        raise node.unsupported(f"interpolates {node.value(0).ty.dtype}; only float32 is supported")


def _is_plain(node: Operands, text: dict[str, str], axes: list[_Axis]) -> bool:
    """Can ``image.resize2d`` do it? Only by whole factors do its coordinates agree with all others."""
    if len(axes) != 4 or any(axis.length != axis.size for axis in axes[:2]):
        return False
    if str(node.value(0).ty.dtype) != "float32" or any(axis.length == 1 for axis in axes[2:]):
        return False
    if text["coordinate_transformation_mode"] not in _PLAIN_MODES or text["keep_aspect_ratio_policy"] != "stretch":
        return False
    if node.attributes.get("antialias") or node.attributes.get("exclude_outside"):
        return False
    if text["coordinate_transformation_mode"] == "align_corners":
        return text["mode"] == "linear"
    return all(
        axis.size * axis.scale == axis.length and (axis.length % axis.size == 0 or axis.size % axis.length == 0)
        for axis in axes
    )


def _written_out(node: Operands, text: dict[str, str], axes: list[_Axis]) -> relax.Expr:
    x = node.value(0)
    outside: list[tuple[int, np.ndarray]] = []
    for at, axis in enumerate(axes):
        if axis.size == axis.length and axis.scale == 1.0 and axis.roi == (0.0, 1.0):
            continue
        coordinates = _COORDINATES[text["coordinate_transformation_mode"]](axis)
        if text["coordinate_transformation_mode"] == "tf_crop_and_resize":
            beyond = (coordinates < 0) | (coordinates > axis.size - 1)
            if beyond.any():
                outside.append((at, beyond))
        x = _summed(node, x, at, _weights(node, text, axis, coordinates))
    for at, beyond in outside:
        mask = relax.const(beyond.reshape([-1 if each == at else 1 for each in range(len(axes))]))
        fill = relax.const(np.float32(node.attributes.get("extrapolation_value", 0.0)))
        x = node.step(relax.op.where(mask, fill, x), f"outside{at}")
    return x


def _summed(node: Operands, x: relax.Expr, at: int, weights: np.ndarray) -> relax.Expr:
    """Along axis ``at`` the product with ``weights`` [length, size], most of which are zero."""
    taps = int((weights != 0).sum(axis=1).max())
    if taps > _FEW:
        return _multiplied(node, x, at, weights)
    order = np.argsort(weights == 0, axis=1, kind="stable")[:, :taps]
    shares = np.take_along_axis(weights, order, axis=1).astype(np.float32)
    shape = [int(size) for size in x.ty.shape.values]
    spread = [-1 if each == at else 1 for each in range(len(shape))]
    total = None
    for tap in range(taps):
        rows = relax.op.take(x, relax.const(order[:, tap].astype(np.int64)), at, "clip")
        rows = node.step(rows, f"axis{at}_rows{tap}")
        if taps > 1 or not (shares == 1).all():
            rows = node.step(
                relax.op.multiply(rows, relax.const(shares[:, tap].reshape(spread))), f"axis{at}_part{tap}"
            )
        total = rows if total is None else node.step(relax.op.add(total, rows), f"axis{at}_sum{tap}")
    assert total is not None
    return total


def _multiplied(node: Operands, x: relax.Expr, at: int, weights: np.ndarray) -> relax.Expr:
    shape = [int(size) for size in x.ty.shape.values]
    before, behind = math.prod(shape[:at]), math.prod(shape[at + 1 :])
    flat = node.step(relax.op.reshape(x, (before, shape[at], behind)), f"axis{at}_flat")
    product = relax.op.matmul(relax.const(weights.astype(np.float32)[None]), flat)
    product = node.step(product, f"axis{at}_product")
    return node.step(relax.op.reshape(product, (*shape[:at], len(weights), *shape[at + 1 :])), f"axis{at}")


def _weights(node: Operands, text: dict[str, str], axis: _Axis, coordinates: np.ndarray) -> np.ndarray:
    """float64 [length, size]: the share of each row of the input in each row of the result."""
    weights = np.zeros((axis.length, axis.size))
    if text["mode"] == "nearest":
        picked = np.clip(_rounded(coordinates, text["nearest_mode"]), 0, axis.size - 1)
        weights[np.arange(axis.length), picked] = 1
        return weights
    alpha = float(np.float32(node.attributes.get("cubic_coeff_a", -0.75)))
    shrink = min(axis.scale, 1.0) if node.attributes.get("antialias") else 1.0
    kernel, reach = (_triangle, 1) if text["mode"] == "linear" else (lambda d: _cubic(d, alpha), 2)
    exclude = bool(node.attributes.get("exclude_outside"))
    steps = math.ceil(reach / shrink)
    for row, x in enumerate(coordinates.astype(np.float64)):
        at = np.arange(math.floor(x) - steps, math.floor(x) + steps + 2)
        shares = kernel((at - x) * shrink)
        if exclude:
            shares = np.where((at < 0) | (at >= axis.size), 0.0, shares)
        if shrink < 1 or exclude:
            shares = shares / shares.sum()
        np.add.at(weights[row], np.clip(at, 0, axis.size - 1), shares)
    return weights


def _rounded(coordinates: np.ndarray, mode: str) -> np.ndarray:
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    return methods[mode](coordinates).astype(int)


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(distance), 0, 1)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution (1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _steps(axis: _Axis) -> np.ndarray:
    return np.arange(axis.length, dtype=np.float32)


def _half_pixel(axis: _Axis) -> np.ndarray:
    half = np.float32(0.5)
    return (_steps(axis) + half) / np.float32(axis.scale) - half


def _align_corners(axis: _Axis) -> np.ndarray:
    if axis.length == 1:
        return np.zeros(1, np.float32)
    return _steps(axis) * np.float32(axis.size - 1) / np.float32(axis.length - 1)


def _half_pixel_symmetric(axis: _Axis) -> np.ndarray:
    """The middle of the image stays in the middle, whatever was cut off to get a whole size."""
    adjustment = axis.length / (np.float32(axis.scale) * np.float32(axis.size))
    return np.float32(axis.size / 2 * (1 - adjustment)) + _half_pixel(axis)


def _crop(axis: _Axis) -> np.ndarray:
    """The part of the input between the two ends of the region."""
    start, end = axis.roi
    reach = axis.size - 1
    if axis.length == 1:
        return np.array([(start + end) / 2 * reach], np.float32)
    return (start * reach + np.arange(axis.length) * (end - start) * reach / (axis.length - 1)).astype(np.float32)


#: Coordinate mode -> where in the input the rows of the result lie.
_COORDINATES: dict[str, Callable[[_Axis], np.ndarray]] = {
    "align_corners": _align_corners,
    "asymmetric": lambda axis: _steps(axis) / np.float32(axis.scale),
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda axis: _half_pixel(axis) if axis.length > 1 else np.zeros(1, np.float32),
    "tf_crop_and_resize": _crop,
    "tf_half_pixel_for_nn": lambda axis: (_steps(axis) + np.float32(0.5)) / np.float32(axis.scale),
}
