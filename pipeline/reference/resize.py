"""Resizing of images with the coordinate rules of ONNX."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.reference.values import Operator
from bitkiln.pipeline.reference.windows import to_layout


def _resize2d(call: Call, x: np.ndarray, size: relax.ShapeExpr) -> np.ndarray:
    """Nearest and linear resizing with the coordinate rules of ONNX."""
    attrs, layout = call.attrs, str(call.attrs["layout"])
    x = to_layout(x, layout, "NHWC")
    method = str(attrs["method"])
    for axis, length in zip((1, 2), (int(value) for value in size.values), strict=True):
        at = _coordinates(x.shape[axis], length, str(attrs["coordinate_transformation_mode"]))
        if method == "nearest_neighbor":
            x = x.take(_nearest(at, str(attrs["rounding_method"]), x.shape[axis]), axis=axis)
        elif method == "linear":
            low = np.floor(at).astype(int)
            share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(4)])
            first, second = (x.take(np.clip(low + i, 0, x.shape[axis] - 1), axis=axis) for i in (0, 1))
            x = first * (1 - share) + second * share
        else:
            raise NotImplementedError(f"resize2d with method {method}")
    return to_layout(x, "NHWC", layout).astype(np.float32)


def _coordinates(size: int, length: int, mode: str) -> np.ndarray:
    i = np.arange(length, dtype=np.float64)
    if mode == "half_pixel":
        return (i + 0.5) * size / length - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) * size / length - 0.5 if length > 1 else i * 0
    if mode == "align_corners":
        return i * (size - 1) / max(length - 1, 1)
    return i * size / length


def _nearest(at: np.ndarray, rounding: str, size: int) -> np.ndarray:
    rounded = {
        "round": np.round,
        "floor": lambda v: np.floor(v + 1e-5),
        "ceil": lambda v: np.ceil(v - 1e-5),
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "": lambda v: np.ceil(v - 0.5),
    }[rounding](at)
    return np.clip(rounded.astype(int), 0, size - 1)


OPERATORS: dict[str, Operator] = {
    "image.resize2d": _resize2d,
}
