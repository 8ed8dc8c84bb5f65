"""Where the taps of a convolution lie in memory, and how extents split into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitkiln.schedules.conv2d.images import Piece
from bitkiln.schedules.workload import Conv2d, QConv2d


@dataclass(frozen=True)
class Run:
    """``count`` equal tiles of ``size`` elements, one after the other from element ``first`` on.

    ``used`` elements of each are real; a tile is filled up to ``size``.
    """

    first: int
    count: int
    size: int
    used: int


def split(extent: int, tile: int, least: int = 1) -> list[Run]:
    """``extent`` as whole tiles and one rest, which is filled up to a multiple of ``least``."""
    whole, rest = divmod(extent, tile)
    runs = [Run(0, whole, tile, tile)] if whole else []
    return [*runs, Run(whole * tile, 1, -(-rest // least) * least, rest)] if rest else runs


@dataclass(frozen=True)
class Geometry:
    """Where the taps lie; offsets are in elements.

    ``padded``: height, width and channels of the image that is read, with its border. ``rows``: offset of each row of taps
    from a pixel's first tap; a row is a run of ``row_length`` adjacent elements: a whole row of the kernel where its taps are
    neighbours, else one tap. ``pixels``: offset of each output pixel's first tap.
    """

    padded: tuple[int, int, int]
    rows: tuple[int, ...]
    row_length: int
    pixels: np.ndarray

    @property
    def size(self) -> int:
        """Elements of the image that is read."""
        return self.padded[0] * self.padded[1] * self.padded[2]


def geometry(workload: Conv2d | QConv2d) -> Geometry:
    """Where the taps of ``workload`` lie."""
    top, left, bottom, right = workload.padding
    height, width, channels = workload.height + top + bottom, workload.width + left + right, workload.channels
    (kernel_y, kernel_x), (step_y, step_x) = workload.kernel, workload.dilation
    pitch = width * channels
    if workload.groups == 1 and (step_x == 1 or kernel_x == 1):
        rows, length = [y * step_y * pitch for y in range(kernel_y)], kernel_x * channels
    else:
        rows = [y * step_y * pitch + x * step_x * channels for y in range(kernel_y) for x in range(kernel_x)]
        length = channels // workload.groups
    y, x = np.mgrid[0 : workload.conv_size[0], 0 : workload.conv_size[1]]
    pixels = y * (workload.strides[0] * pitch) + x * (workload.strides[1] * channels)
    return Geometry((height, width, channels), tuple(rows), length, pixels.ravel())


def geometry_of_pieces(workload: Conv2d, pieces: Sequence[Piece]) -> Geometry:
    """As ``geometry``, of a pointwise ``workload`` that reads ``pieces`` of one size: each of them is a row.

    Offsets of rows count from each piece's own image.
    """
    width = pieces[0].width
    y, x = np.mgrid[0 : workload.conv_size[0], 0 : workload.conv_size[1]]
    pixels = (y * (workload.strides[0] * workload.width) + x * workload.strides[1]) * width
    rows = tuple(piece.first for piece in pieces)
    return Geometry((workload.height, workload.width, width), rows, pieces[0].count, pixels.ravel())
