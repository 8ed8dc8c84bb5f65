"""How many products of whole numbers a sum of 16 bits holds: segments planned from the weights.

Data are any numbers of int8, of magnitude up to 128. So products may be added up in 16 bits as long as the magnitudes of their
weights sum to 255 at most. A *segment* is a fixed number of steps, the same for a whole layer, each of which multiplies one
input channel of a tap by the weights of a panel of output channels. A panel takes its steps in an order of its own: what a
segment holds is chosen, from the next few steps in the order of memory, so that no output channel's weights sum to more than
that, and all channels come close to it alike. Where nothing fits, a part of a step's weights is taken, and the rest left for
another segment. Steps whose weights are all zero are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

#: Segments that the micro-kernel has loops for.
LENGTHS = (2, 3, 4, 5, 6, 7, 8, 12, 16)
#: The most that magnitudes of a segment's weights may sum to: 255 * 128 is the largest multiple of 128 below 2**15.
BUDGET = 255
#: Steps, in the order of memory, that a segment is chosen from: what they read stays in the L1 cache.
WINDOW = 32
#: Panels that a length of segments is judged by.
_JUDGED = 16
#: Cycles of a step and of a widening, for 8 pixels.
_STEP_CYCLES, _WIDEN_CYCLES = 10, 16


@dataclass(frozen=True)
class Plan:
    """``length``: steps of a segment. ``segments``: those of the panel that has most."""

    length: int
    segments: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Each panel's steps in the order they are taken.

    ``steps``: int [panels, steps], what is multiplied; ``weights``: int16 [panels, steps, channels], by what. ``counts``: the
    segments of each panel, at least 1; what follows them has weights of zero.
    """

    steps: np.ndarray
    weights: np.ndarray
    counts: np.ndarray


def panels(weights: np.ndarray, channels: int) -> np.ndarray:
    """Weights [O, K] as [panels, channels, K]; where O is no multiple, the last panel repeats channels before it."""
    firsts = [min(first, len(weights) - channels) for first in range(0, len(weights), channels)]
    return np.stack([weights[first : first + channels] for first in firsts])


def plan(weights: np.ndarray, channels: int) -> Plan:
    """The segments that cost least for weights int [O, K] in panels of ``channels``."""
    mean = max(1.0, float(np.abs(weights).mean()))
    # A few lengths around what the average weight lets expect.
    likely = [length for length in LENGTHS if length <= max(LENGTHS[0], BUDGET / mean)]
    costs: dict[int, int] = {}
    few = weights[:: max(1, len(weights) // (_JUDGED * channels))][: _JUDGED * channels]
    for length in LENGTHS[max(0, len(likely) - 4) : len(likely) + 1]:
        costs[length] = int(laid(few, channels, length).counts.sum()) * (length * _STEP_CYCLES + _WIDEN_CYCLES)
    best = min(costs, key=lambda each: costs[each])
    return Plan(best, int(laid(weights, channels, best).counts.max()))


def laid(weights: np.ndarray, channels: int, length: int) -> Layout:
    """Weights int [O, K] in panels of ``channels`` and segments of ``length``."""
    parts = panels(weights.astype(np.int16), channels)
    return _laid(parts.tobytes(), parts.shape, length)


@lru_cache(maxsize=8)
def _laid(content: bytes, shape: tuple[int, int, int], length: int) -> Layout:
    weights = (
        np.frombuffer(content, np.int16).reshape(shape).transpose(0, 2, 1).astype(np.int32)
    )  # [panel, step, channel]
    left = np.abs(weights).astype(np.float32)  # exact, and faster to divide
    pool = _Pool(left)
    steps, parts = [], []
    while pool.busy.any():
        slack = np.full((shape[0], shape[1]), BUDGET, np.float32)
        for slot in range(length):
            step, part = pool.take(slack, length - slot)
            slack -= part
            steps.append(step)
            parts.append(part)
    order = np.stack(steps, axis=1) if steps else np.zeros((shape[0], length), np.int64)
    rows = np.arange(shape[0])[:, None]
    taken = np.stack(parts, axis=1) if parts else np.zeros((shape[0], length, shape[1]), np.int64)
    found = (taken * np.sign(weights[rows, order])).astype(np.int16)
    used = found.reshape(shape[0], -1, length * shape[1]).any(axis=-1)
    return Layout(order, found, np.maximum(1, used.sum(axis=-1)))


class _Pool:
    """Of each panel, the steps that come next; ``left`` [panel, step, channel] is what of their magnitudes is not yet taken."""

    def __init__(self, left: np.ndarray) -> None:
        panels_, steps, channels = left.shape
        self._left = np.concatenate([left, np.zeros((panels_, 1, channels), left.dtype)], axis=1)
        self._nothing = steps
        # Each panel's steps that are not all zero, in order; then steps of nothing.
        alive = left.any(axis=-1)
        order = np.argsort(~alive, axis=1, kind="stable")
        order = np.where(np.take_along_axis(alive, order, axis=1), order, steps)
        self._order = np.pad(order, ((0, 0), (0, WINDOW)), constant_values=steps)
        self._window = self._order[:, :WINDOW].copy()
        self._next = np.full(panels_, WINDOW)
        self._rows = np.arange(panels_)

    @property
    def busy(self) -> np.ndarray:
        """The panels that have steps left: bool [panels]."""
        found: np.ndarray = (self._window != self._nothing).any(axis=1)
        return found

    def take(self, slack: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
        """For each panel a step and the magnitudes of it that fit ``slack``, where ``slots`` are left of the segment."""
        there = self._window != self._nothing
        sizes = self._left[self._rows[:, None], self._window]  # [panel, window, channel]
        shares = (sizes * (1 / (slack[:, None] + np.float32(0.5)))).max(axis=-1)
        fits = there & (shares < 1)
        # The best uses of the scarcest channel what is due to a slot; the oldest goes first, to keep to the order of memory.
        score = np.where(fits, np.abs(shares * slots - 1), np.inf)
        best = score.argmin(axis=1)
        if slots > 1:
            first = np.where(there, self._window, self._nothing + 1).argmin(axis=1)
            oldest = (slack == BUDGET).all(axis=1) & fits[self._rows, first]
            best = np.where(oldest, first, best)
        # Where none fits, as much as fits of the one of which most does.
        none = np.flatnonzero(~fits.any(axis=1))
        parts = np.minimum(sizes[none], slack[none, None]).sum(axis=-1)
        best[none] = np.where(there[none], parts, -1).argmax(axis=1)
        step = self._window[self._rows, best]
        part = np.minimum(self._left[self._rows, step], slack)
        self._left[self._rows, step] -= part
        done = ~self._left[self._rows, step].any(axis=1) & (step != self._nothing)
        self._window[self._rows[done], best[done]] = self._order[self._rows[done], self._next[done]]
        self._next[done] = np.minimum(self._next[done] + 1, self._order.shape[1] - 1)
        return np.where(step == self._nothing, 0, step), part
