"""How weights become what a kernel reads: sums of taps in double precision, in panels of output channels.

A packing is plain data, so that the same one is done here, where a bundle is compiled, and on the board, where it is opened
(``device/packing.c``): weights that grow by it need not be in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitkiln.schedules.conv2d.geometry import Run

#: Taps that device/packing.c holds of a channel, and sums of an input channel in all positions of a panel.
_MOST_TAPS, _MOST_SUMS = 16, 1280
#: Bytes of taps that are combined at a time, so that they stay in a cache.
_AT_ONCE = 1 << 18

#: What a position's weights are: (tap, factor) in the order in which they are added.
Sum = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Chunk:
    """Output channels that lie together, ``run`` of them, and how each of them is cut in panels."""

    run: Run
    panels: tuple[Run, ...]


@dataclass(frozen=True)
class Packing:
    """Flat float32 weights as float32 [chunk][position][panel][k][channel], panels filled up with zeros, and ``spare`` zeros.

    Tap t of output channel o and input channel k is element ``taps[t] + o * pitch + k``, k below ``depth``. Position p holds
    the sum of ``sums[p]``, which begins with ``zero``, is made in double precision in that order, and rounded once. A sum
    that begins with -0.0 keeps the sign of a zero.
    """

    channels: int
    depth: int
    pitch: int
    taps: tuple[int, ...]
    sums: tuple[Sum, ...]
    chunks: tuple[Chunk, ...]
    spare: int = 0
    zero: float = -0.0

    @property
    def floats(self) -> int:
        """Of the packed weights, without the spare ones."""
        return sum(chunk.run.count * len(self.sums) * _panel_floats(chunk.panels, self.depth) for chunk in self.chunks)

    @property
    def panels(self) -> int:
        """Of all chunks."""
        return sum(chunk.run.count * run.count for chunk in self.chunks for run in chunk.panels)

    @property
    def fits_the_board(self) -> bool:
        """Whether device/packing.c can do it."""
        widest = max(run.size for chunk in self.chunks for run in chunk.panels)
        return len(self.taps) <= _MOST_TAPS and len(self.sums) * widest <= _MOST_SUMS

    def __call__(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The packed weights, of the one array in ``arrays``."""
        (weights,) = arrays
        combined = self._combined(np.ascontiguousarray(weights, "float32").reshape(-1, self.pitch))
        parts = []
        for chunk in self.chunks:
            run = chunk.run
            for first in range(run.first, run.first + run.count * run.size, run.size):
                parts += [pack_panels(rows, chunk.panels) for rows in combined[:, first : first + run.used]]
        return np.concatenate([*parts, np.zeros(self.spare, "float32")])

    def _combined(self, rows: np.ndarray) -> np.ndarray:
        """The sums, [position][channel][k]."""
        result = np.empty((len(self.sums), self.channels, self.depth), "float32")
        step = max(1, _AT_ONCE // (8 * self.depth * len(self.taps)))
        for first in range(0, self.channels, step):
            count = min(step, self.channels - first)
            taps = []
            for at in self.taps:
                row, column = divmod(at, self.pitch)
                taps.append(rows[row + first : row + first + count, column : column + self.depth].astype("float64"))
            for position, terms in enumerate(self.sums):
                total = np.full((count, self.depth), self.zero)
                for tap, factor in terms:
                    total += factor * taps[tap]
                result[position, first : first + count] = total
        return result


def panels_alone(channels: int, depth: int, panels: Sequence[Run], groups: int = 1, spare: int = 0) -> Packing:
    """Weights [group][channel][k], as they are, in panels of each group."""
    whole = Run(0, groups, channels, channels)
    return Packing(channels * groups, depth, depth, (0,), (((0, 1.0),),), (Chunk(whole, tuple(panels)),), spare)


def pack_panels(weights: np.ndarray, panels: Sequence[Run]) -> np.ndarray:
    """``weights`` [channels][k] as [panel][k][size], one panel after the other, filled up with zeros."""
    parts = []
    for run in panels:
        rows = np.zeros((run.count * run.size, weights.shape[1]), "float32")
        rows[: min(len(rows), len(weights) - run.first)] = weights[run.first : run.first + run.count * run.size]
        parts.append(rows.reshape(run.count, run.size, -1).transpose(0, 2, 1).ravel())
    return np.concatenate(parts)


def _panel_floats(panels: Sequence[Run], depth: int) -> int:
    return depth * sum(run.count * run.size for run in panels)
