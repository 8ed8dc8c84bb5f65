"""Sparse constants of TensorFlow Lite made dense.

The schema stores a tensor as TACO does (Kjolstad et al., 2017): its axes, and those of the blocks it is cut into, in an order
of traversal, each a level that is dense or lists, for each position of the level above, the indices that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Level:
    """A level of the traversal: ``size`` positions where it is dense, else ``segments`` of ``indices``."""

    size: int
    segments: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()


def densified(
    values: np.ndarray, shape: tuple[int, ...], order: tuple[int, ...], blocks: tuple[int, ...], levels: Sequence[Level]
) -> np.ndarray:
    """The dense tensor of ``shape``; ValueError where the levels do not describe one.

    ``order`` are the axes in their order of traversal, those from the rank on being those of blocks, and ``blocks`` the axis
    that each of them cuts.
    """
    rank = len(shape)
    if sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order):
        raise ValueError("its axes are not those of its shape")
    if any(not 0 <= axis < rank for axis in blocks) or len({*blocks}) != len(blocks):
        raise ValueError("its blocks cut axes that are not there")
    sizes = {axis: levels[order.index(rank + at)].size for at, axis in enumerate(blocks)}
    if any(size < 1 or shape[axis] % size for axis, size in sizes.items()):
        raise ValueError("its blocks do not fit its shape")
    places = np.zeros((1, len(order)), np.int64)  # index at each level, of each element so far
    above = np.zeros(1, np.int64)  # the position of each element at the level above
    for at, level in enumerate(levels):
        if not level.segments:
            count = np.full(len(above), level.size)
            indices = np.tile(np.arange(level.size), len(above))
            positions = (above[:, None] * level.size + np.arange(level.size)).reshape(-1)
        else:
            segments, all_indices = np.array(level.segments), np.array(level.indices, np.int64)
            if above.max(initial=0) + 1 >= len(segments) or np.any(np.diff(segments) < 0) or segments[0] < 0:
                raise ValueError("its segments are out of order")
            if segments[-1] > len(all_indices):
                raise ValueError("its segments reach beyond its indices")
            first, last = segments[above], segments[above + 1]
            count = last - first
            positions = np.concatenate(
                [np.arange(a, b) for a, b in zip(first, last, strict=True)] or [np.zeros(0, int)]
            )
            positions = positions.astype(np.int64)
            indices = all_indices[positions]
        if count.sum() > values.size:
            raise ValueError("it has fewer values than places for them")
        places = np.repeat(places, count, axis=0)
        places[:, at] = indices
        above = positions
    if len(above) and above.max() >= values.size:
        raise ValueError("it has fewer values than places for them")
    where = []
    for axis, extent in enumerate(shape):
        index = places[:, order.index(axis)]
        if axis in sizes:
            index = index * sizes[axis] + places[:, order.index(rank + blocks.index(axis))]
        if np.any(index < 0) or np.any(index >= extent):
            raise ValueError("it has indices outside of its shape")
        where.append(index)
    dense = np.zeros(shape, values.dtype.newbyteorder("="))
    dense[tuple(where)] = values[above]
    return dense
