"""Constants as operands of an epilogue: the smallest shape that says the same."""

from __future__ import annotations

import numpy as np


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
