"""How many products of whole numbers a sum of 16 bits holds: segments planned from the weights.

Data are any numbers of int8. A sum of products with the weights w reaches from -(128 P + 127 N) to 127 P + 128 N, where P is
the sum of the positive weights and N that of the others' magnitudes. A segment is a fixed number of steps, the same for a
whole layer. What of a segment's weights would let a sum leave 16 bits is *spilled*: taken out of the segment and multiplied
apart, in 32 bits. A step spills for all channels of a panel at once, so the steps that help most channels go first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Segments that the micro-kernel has loops for.
LENGTHS = (2, 3, 4, 5, 6, 7, 8, 12, 16)
#: Cycles of a step beside its products, of a widening, and of a step of the spill (simulated), for 8 pixels.
_STEP_CYCLES, _WIDEN_CYCLES, _SPILL_CYCLES = 10, 16, 24
_LOW, _HIGH = 128, 127
_MOST, _LEAST = 32767, -32768


@dataclass(frozen=True)
class Plan:
    """``length``: steps of a segment. ``spill``: steps that the panel with most of them spills."""

    length: int
    spill: int


def panels(weights: np.ndarray, channels: int) -> np.ndarray:
    """Weights [O, K] as [panels, channels, K]; where O is no multiple, the last panel repeats channels before it."""
    count = -(-len(weights) // channels)
    firsts = [min(panel * channels, max(0, len(weights) - channels)) for panel in range(count)]
    whole = np.zeros((max(len(weights), channels), weights.shape[1]), np.int32)
    whole[: len(weights)] = weights
    return np.stack([whole[first : first + channels] for first in firsts])


def plan(weights: np.ndarray, channels: int) -> Plan:
    """The segments that cost least for weights int [O, K] in panels of ``channels``."""
    parts = panels(weights, channels)
    best, least = Plan(LENGTHS[0], 0), np.inf
    for length in LENGTHS:
        counts = [len(spilled(part, length)[1]) for part in parts]
        segments = -(-weights.shape[1] // length)
        cycles = len(parts) * segments * (length * _STEP_CYCLES + _WIDEN_CYCLES) + sum(counts) * _SPILL_CYCLES
        if cycles < least:
            best, least = Plan(length, max(counts)), cycles
    return best


def spilled(weights: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """What of a panel's weights int [channels, K] stays in segments of ``length``, and the steps that spill the rest.

    Every sum of a segment of what stays fits 16 bits, whatever its data.
    """
    channels, count = weights.shape
    segments = -(-count // length)
    kept = np.zeros((channels, segments * length), np.int32)
    kept[:, :count] = weights
    kept = kept.reshape(channels, segments, length)
    while (over := _over(kept)).any():
        # Of every segment that is too large, the step whose weights, as far as they are too much, are the most.
        helps = np.minimum(np.abs(kept), over[..., None])
        step = helps.sum(axis=0).argmax(axis=-1)
        rows = np.arange(segments)
        taken = kept[:, rows, step]
        less = np.minimum(np.abs(taken), over)
        kept[:, rows, step] = taken - np.sign(taken) * less
    kept = kept.reshape(channels, -1)[:, :count]
    return kept, np.flatnonzero((kept != weights).any(axis=0))


def _over(kept: np.ndarray) -> np.ndarray:
    """By how much the magnitudes of segments [channels, segments, length] have to shrink: int [channels, segments]."""
    positive, negative = np.maximum(kept, 0).sum(axis=-1), np.maximum(-kept, 0).sum(axis=-1)
    above = _HIGH * positive + _LOW * negative - _MOST
    below = _LEAST + _LOW * positive + _HIGH * negative
    return np.maximum(0, -(-np.maximum(above, below) // _HIGH))
