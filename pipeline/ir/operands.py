"""Operands of operators: constants in the smallest shape that broadcasts to the same, and their values."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call, GenericConst

from bitkiln.pipeline.ir.graph import array_of, constant, op_name, shape_of


def fits_float32(values: np.ndarray) -> bool:
    """Is none of ``values`` too large for float32?"""
    return bool(np.all(np.abs(values) <= np.finfo(np.float32).max))


def channel_operand(array: np.ndarray, channels: int) -> np.ndarray | None:
    """``array``, broadcast to an image [1, H, W, C], as float32 [C]; None if it differs between pixels."""
    shape = (1,) * (4 - array.ndim) + array.shape
    if len(shape) != 4:
        return None
    image = array.reshape(shape)
    first = image[:, :1, :1, :]
    if image.shape[0] != 1 or not np.array_equal(image, np.broadcast_to(first, image.shape)):
        return None
    return np.broadcast_to(first.reshape(-1), (channels,)).astype(np.float32)


def operand(array: np.ndarray, size: tuple[int, int, int]) -> tuple[str, np.ndarray] | None:
    """``array`` broadcast to an image of ``size`` (H, W, C): "channel" [C] or "element" [H, W, C]; None if it does not fit."""
    try:
        image = np.broadcast_to(array, (1, *size))
    except ValueError:
        return None
    channel = channel_operand(array, size[2])
    if channel is not None:
        return "channel", channel
    return "element", np.array(image[0], dtype=np.float32, order="C")


def is_image(x: relax.Expr) -> bool:
    """Is ``x`` float32 [1, H, W, C]?"""
    shape = shape_of(x)
    return len(shape) == 4 and shape[0] == 1 and str(x.ty.dtype) == "float32"


def is_whole_image(x: relax.Expr) -> bool:
    """Is ``x`` int8 [1, H, W, C]?"""
    shape = shape_of(x)
    return len(shape) == 4 and shape[0] == 1 and str(x.ty.dtype) == "int8"


def float64_of(expr: relax.Expr) -> np.ndarray | None:
    """A float32 constant in float64; None for anything else."""
    array = array_of(expr)
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else None


def reciprocal(values: np.ndarray) -> np.ndarray:
    """1 / ``values``; infinite for zeros."""
    with np.errstate(divide="ignore"):
        return 1 / values


def as_float32(values: np.ndarray) -> GenericConst | None:
    """float64 ``values`` as a constant, unless some are too large for float32."""
    return constant(values) if fits_float32(values) else None


def product(first: np.ndarray, second: np.ndarray) -> GenericConst | None:
    """The product of factors, unless some float32 cannot hold: too large, or denormal though the factors were not.

    (Dead channels have denormal factors to begin with.)
    """
    normal = np.finfo(np.float32).smallest_normal
    lost = (np.abs(first * second) < normal) & (np.abs(first) >= normal) & (np.abs(second) >= normal)
    return None if np.any(lost) else as_float32(first * second)


def clip_bounds(call: Call) -> tuple[float, float]:
    """Low and high of a call of relu, relu6 or clip."""
    match op_name(call):
        case "nn.relu":
            return 0.0, np.inf
        case "nn.relu6":
            return 0.0, 6.0
    low, high = (float(getattr(bound, "value", bound)) for bound in call.args[1:])
    return low, high
