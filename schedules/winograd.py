"""Winograd's minimal filtering F(m, 3): m outputs of a 3-tap filter from m + 2 inputs with m + 2 multiplications.

Transforms are short lists of stages; a stage gives each of its values as a sparse sum of values of the stage before. The
factorisation shares sums and differences between the rows of the textbook matrices (Lavin and Gray, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Rows of {index: coefficient}.
Stage = tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Transform:
    """F(``outputs``, 3) along one axis."""

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


_PAIRS: Stage = ({0: 1}, {1: 1, 2: 1}, {1: 1, 2: -1}, {3: 1, 4: 1}, {3: 1, 4: -1}, {5: 1})

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


def transform_weights(weights: np.ndarray, along_y: Transform, along_x: Transform) -> np.ndarray:
    """Weights [O, 3, 3, I] as float64 [points_y, points_x, O, I]."""
    return np.einsum("py,qx,oyxi->pqoi", along_y.weight, along_x.weight, weights.astype("float64"))
