"""How a photo becomes a network's input, by Pillow and numpy: what image.c does on the board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bitkiln.pipeline.errors import InputError

#: Of the resized photo, before it is cropped: beyond it stand photos a thousand times as long as they are wide.
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class Placement:
    """The photo, ``photo`` (width, height) large, is resized to ``size``; the network's input begins at ``start`` of that."""

    photo: tuple[int, int]
    size: tuple[int, int]
    start: tuple[int, int]

    def on_photo(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points of the network's input lie on the photo, in its pixels."""
        return (
            (x + self.start[0]) * self.photo[0] / self.size[0],
            (y + self.start[1]) * self.photo[1] / self.size[1],
        )


def place(photo: tuple[int, int], how: Mapping[str, Any]) -> Placement:
    """Where a photo (width, height) lies, by ``how``, the manifest's preprocessing."""
    (width, height), wide, high = photo, how["width"], how["height"]
    if how["resize"] == "short-side":
        side = min(photo)
        size = (how["resize_to"] * width // side, how["resize_to"] * height // side)
        return Placement(photo, size, (round((size[0] - wide) / 2), round((size[1] - high) / 2)))
    if how["resize"] == "letterbox":
        if np.float32(wide) / np.float32(width) < np.float32(high) / np.float32(height):
            size = (wide, max(1, height * wide // width))
        else:
            size = (max(1, width * high // height), high)
        return Placement(photo, size, (-((wide - size[0]) // 2), -((high - size[1]) // 2)))
    return Placement(photo, (wide, high), (0, 0))


def prepare(image: Image.Image, how: Mapping[str, Any], dtype: str) -> np.ndarray:
    """The input of ``image``, of RGB or "L", as the runner's ``plain_image`` gives it: [1, H, W, C] or [1, C, H, W]."""
    if dtype not in ("float32", "uint8", "int8"):
        raise InputError(f"the input is {dtype}: images become float32, uint8 or int8 only")
    placement = place(image.size, how)
    if placement.size[0] * placement.size[1] > _MOST_PIXELS:
        raise InputError(
            f"an image of {image.size[0]} x {image.size[1]} would be resized to {placement.size}: crop it first"
        )
    image = image.convert("L" if how["channel_order"] == "GREY" else "RGB")
    # One axis after the other: Pillow 13 begins with the axis that costs less, earlier ones with the rows.
    for size in ((placement.size[0], image.size[1]), placement.size):
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(*image.size[::-1], -1)
    if how["channel_order"] == "BGR":
        pixels = pixels[..., ::-1]
    window = np.full((how["height"], how["width"], pixels.shape[2]), np.float32(how.get("fill", 0)))
    left, top = placement.start
    inside = pixels[max(top, 0) : top + how["height"], max(left, 0) : left + how["width"]]
    window[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    values = (window - np.float32(how["mean"])) * np.float32(how["scale"])
    if dtype != "float32":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return np.ascontiguousarray(values if how["layout"] == "NHWC" else values.transpose(2, 0, 1))[None]
