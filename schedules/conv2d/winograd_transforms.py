"""Winograd's minimal filtering F(m, r): m outputs of an r-tap filter from m + r - 1 inputs with as many multiplications.

Transforms are short lists of stages; a stage gives each of its values as a sparse sum of values of the stage before. The
factorisation shares sums and differences between the rows of the textbook matrices (Lavin and Gray, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitkiln.schedules.conv2d.packing import Sum

#: Rows of {index: coefficient}.
Stage = tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Transform:
    """F(``outputs``, r) along one axis; ``weight`` has a column for each of the r taps."""

    outputs: int
    data: tuple[Stage, ...]
    weight: np.ndarray
    result: tuple[Stage, ...]

    @property
    def points(self) -> int:
        """Inputs of a tile, and multiplications."""
        return len(self.weight)


def matrix(stages: tuple[Stage, ...], inputs: int) -> np.ndarray:
    """The matrix that ``stages`` amount to."""
    product = np.eye(inputs)
    for stage in stages:
        product = np.array([sum(value * product[index] for index, value in row.items()) for row in stage])
    return product


def _interpolation(points: Sequence[float], taps: int) -> np.ndarray:
    """The weight transform of interpolation at ``points`` and infinity (Toom and Cook), for monic data polynomials."""
    rows = [
        [point**tap / math.prod(point - other for other in points if other != point) for tap in range(taps)]
        for point in points
    ]
    return np.array([*rows, [0.0] * (taps - 1) + [1.0]])


_PAIRS: Stage = ({0: 1}, {1: 1, 2: 1}, {1: 1, 2: -1}, {3: 1, 4: 1}, {3: 1, 4: -1}, {5: 1})

#: F(m, 3) by m.
TRANSFORMS = {
    # No saving: three taps are three multiplications. Along one axis it leaves the other its own filter.
    1: Transform(1, (({0: 1}, {1: 1}, {2: 1}),), np.eye(3), (({0: 1, 1: 1, 2: 1},),)),
    2: Transform(
        2,
        (({0: 1, 2: -1}, {1: 1, 2: 1}, {2: 1, 1: -1}, {1: 1, 3: -1}),),
        np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        (({0: 1}, {1: 1, 2: 1}, {1: 1, 2: -1}, {3: 1}), ({0: 1, 1: 1}, {2: 1, 3: -1})),
    ),
    4: Transform(
        4,
        (
            (
                {4: 1, 0: 4, 2: -5},
                {4: 1, 2: -4},
                {3: 1, 1: -4},
                {4: 1, 2: -1},
                {3: 1, 1: -1},
                {5: 1, 1: 4, 3: -5},
            ),
            ({0: 1}, {1: 1, 2: 1}, {1: 1, 2: -1}, {3: 1, 4: 2}, {3: 1, 4: -2}, {5: 1}),
        ),
        np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        (_PAIRS, ({0: 1, 1: 1, 3: 1}, {2: 1, 4: 2}, {1: 1, 3: 4}, {5: 1, 2: 1, 4: 8})),
    ),
}

#: Along an axis that a convolution's sum goes along as it is: a tile is a point.
POINT = Transform(1, (({0: 1},),), np.eye(1), (({0: 1},),))


#: F(4, 4), for two taps of every four: interpolation at 0, 1, -1, 2, -2, 1/2 and infinity. With d'[i] = d[i+1] - d[i] / 2 it is
#: the data transform of F(4, 3), and one sum more. As exact as F(4, 3).
FOUR_TAPS = Transform(
    4,
    (
        (*({i + 1: 1, i: -0.5} for i in range(6)), {1: 1}, {3: 1}, {5: 1}),
        (
            {4: 1, 0: 4, 2: -5},
            {4: 1, 2: -4},
            {3: 1, 1: -4},
            {4: 1, 2: -1},
            {3: 1, 1: -1},
            {8: 1, 6: 4, 7: -5},
            {5: 1, 1: 4, 3: -5},
        ),
        ({0: 1}, {1: 1, 2: 1}, {1: 1, 2: -1}, {3: 1, 4: 2}, {3: 1, 4: -2}, {5: 1}, {6: 1}),
    ),
    _interpolation((0, 1, -1, 2, -2, 0.5), 4),
    (
        (*_PAIRS, {6: 1}),
        (
            {0: 1, 1: 1, 3: 1, 5: 1},
            {2: 1, 4: 2, 5: 0.5},
            {1: 1, 3: 4, 5: 0.25},
            {6: 1, 2: 1, 4: 8, 5: 0.125},
        ),
    ),
)


#: Values that ``Unfolded`` weights of three taps have.
STORED = 3


@dataclass(frozen=True)
class Unfolded:
    """Weights along an axis as three values, and positions of F(m, 3) made of them.

    ``stored`` are the values' rows. The first and the last are the first and the last position; ``made`` has the stages of the
    others, two at a time.
    """

    stored: np.ndarray
    made: tuple[tuple[Stage, ...], ...]


#: Along an axis of m outputs.
UNFOLDED = {
    2: Unfolded(np.diag([1, 1 / 2, 1]), ((({0: 1 / 2, 2: 1 / 2}, {1: 1}), ({0: 1, 1: 1}, {0: 1, 1: -1})),)),
    4: Unfolded(
        np.diag([1 / 4, -1 / 6, 1]),
        (
            (({0: -2 / 3, 2: -1 / 6}, {1: 1}), ({0: 1, 1: 1}, {0: 1, 1: -1})),
            (({0: 1 / 6, 2: 1 / 6}, {1: 1}), ({0: 1, 1: -1 / 2}, {0: 1, 1: 1 / 2})),
        ),
    ),
}


def weight_sums(along_y: np.ndarray, along_x: np.ndarray) -> tuple[Sum, ...]:
    """What matrices of rows of taps make of a kernel: each pair of their rows as a sum of its taps, row by row."""
    factors = np.einsum("py,qx->pqyx", along_y, along_x).reshape(len(along_y) * len(along_x), -1)
    return tuple(tuple((tap, float(row[tap])) for tap in np.flatnonzero(row).tolist()) for row in factors)
