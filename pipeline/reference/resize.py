"""Resizing of images with the coordinate rules of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.reference.values import Operator
from bitkiln.pipeline.reference.windows import to_layout


def resize(
    x: np.ndarray, size: Sequence[int], method: str, coordinates: str, rounding: str, alpha: float = -0.75
) -> np.ndarray:
    """[N, H, W, C] -> float32 [N, *size, C]: to the nearest pixel, linear, or cubic with coefficient ``alpha``."""
    for axis, length in zip((1, 2), size, strict=True):
        at = _coordinates(x.shape[axis], length, coordinates)
        if method == "nearest_neighbor":
            x = x.take(_nearest(at, rounding, x.shape[axis]), axis=axis)
        elif method == "linear":
            low = np.floor(at)
            x = _weighted(x, axis, low, [1 - (at - low), at - low])
        elif method == "cubic":
            low = np.floor(at)
            x = _weighted(x, axis, low - 1, _cubic(at - low, alpha))
        else:
            raise NotImplementedError(f"resize2d with method {method}")
    return x.astype(np.float32)


def _resize2d(call: Call, x: np.ndarray, size: relax.ShapeExpr) -> np.ndarray:
    attrs, layout = call.attrs, str(call.attrs["layout"])
    if str(attrs["method"]) == "cubic" and int(attrs["cubic_exclude"]):
        raise NotImplementedError("resize2d with method cubic that excludes what lies outside")
    names = ("method", "coordinate_transformation_mode", "rounding_method")
    method, coordinates, rounding = (str(attrs[name]) for name in names)
    sizes = [int(value) for value in size.values]
    resized = resize(to_layout(x, layout, "NHWC"), sizes, method, coordinates, rounding, float(attrs["cubic_alpha"]))
    return to_layout(resized, "NHWC", layout)


def _weighted(x: np.ndarray, axis: int, first: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Sums of as many neighbours as there are ``weights``, from ``first`` on; the edges are repeated outside."""
    spread = [-1 if each == axis else 1 for each in range(4)]
    total = np.zeros((), np.float32)
    for step, weight in enumerate(weights):
        rows = x.take(np.clip(first.astype(int) + step, 0, x.shape[axis] - 1), axis=axis)
        total = total + rows * weight.astype(x.dtype).reshape(spread)
    return total


def _cubic(share: np.ndarray, a: float) -> list[np.ndarray]:
    """Keys' cubic convolution (1981) with parameter ``a``: weights of the four neighbours."""
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (share, 1 - share)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (share + 1, 2 - share)]
    return [far[0], near[0], near[1], far[1]]


def _coordinates(size: int, length: int, mode: str) -> np.ndarray:
    i = np.arange(length, dtype=np.float64)
    if mode == "half_pixel":
        return (i + 0.5) * size / length - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) * size / length - 0.5 if length > 1 else i * 0
    if mode == "align_corners":
        return i * (size - 1) / max(length - 1, 1)
    if mode == "asymmetric":
        return i * size / length
    raise NotImplementedError(f"resize2d with coordinates by {mode}")


def _nearest(at: np.ndarray, rounding: str, size: int) -> np.ndarray:
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round": np.round,
        "floor": lambda v: np.floor(v + 1e-5),
        "ceil": lambda v: np.ceil(v - 1e-5),
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "": lambda v: np.ceil(v - 0.5),
    }
    if rounding not in methods:
        raise NotImplementedError(f"resize2d with rounding by {rounding}")
    return np.clip(methods[rounding](at).astype(int), 0, size - 1)


OPERATORS: dict[str, Operator] = {
    "image.resize2d": _resize2d,
}
