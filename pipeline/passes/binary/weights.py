"""Weights that are +-s in each output channel, some of them perhaps zero, or what they are instead."""

from __future__ import annotations

import numpy as np

from bitkiln.pipeline.passes.binary.verdict import NotBinary

#: How much magnitudes of one channel's weights may differ, relative to their mean: rounding of an exporter's arithmetic.
TOLERANCE = 1e-4


def binary_weights(weight: np.ndarray, expected: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale of each output channel (float64 [O]) and signs (float32 +-1) of ``weight`` OHWI, or NotBinary.

    ``expected`` says that what meets the weights is binary: then the user will want to know why they are not, and exact
    zeros may be among them, whose sign is 0.
    """
    if not np.isfinite(weight).all():
        raise NotBinary("its weights are not finite", expected)
    size = np.abs(weight.reshape(len(weight), -1))
    counted = np.maximum((size > 0).sum(axis=1), 1) if expected else size.shape[1]
    scales = size.sum(axis=1, dtype=np.float64) / counted
    if not scales.any():
        raise NotBinary("all its weights are zero", expected)
    zero = (size == 0) & (expected and scales[:, None] > 0)
    uneven = np.flatnonzero((np.abs(size - scales[:, None]) * ~zero).max(axis=1) > TOLERANCE * scales)
    if len(uneven):
        raise NotBinary(_what_instead(weight, int(uneven[0])), expected)
    if not expected and (size.shape[1] == 1 or np.all(weight >= 0)):
        # One weight a channel, or equal ones, have equal magnitudes without meaning anything by it.
        raise NotBinary("float weights", False)
    signs = np.where(weight > 0, np.float32(1), np.float32(-1))
    return scales, np.where(zero.reshape(weight.shape), np.float32(0), signs)


def _what_instead(weight: np.ndarray, channel: int) -> str:
    """What the weights are, of which output channel ``channel`` is not +-s."""
    size = np.abs(weight)
    peaks = size.reshape(len(weight), -1).max(axis=1)[:, None, None, None]
    zeros = int((size == 0).sum())
    if zeros and np.all((size == 0) | (peaks - size <= TOLERANCE * peaks)):
        if np.all(weight >= 0):
            return f"its weights take the values 0 and {peaks.max():.4g}, not +-s"
        return f"ternary weights: {zeros} of {weight.size} are zero"
    if _scaled_by_input(size):
        return "the magnitude of its weights differs between input channels, which cannot be taken out of the sum"
    values = np.unique(weight[channel])
    if len(values) == 2:
        return f"its weights take the values {values[0]:.4g} and {values[1]:.4g} in output channel {channel}, not +-s"
    low, high = size[channel].min(), size[channel].max()
    return f"float weights: magnitudes in output channel {channel} go from {low:.4g} to {high:.4g}"


def _scaled_by_input(size: np.ndarray) -> bool:
    """Are magnitudes ``size`` OHWI a factor of each output channel times one of each input channel?"""
    rows = size.mean(axis=(1, 2, 3), dtype=np.float64)[:, None, None, None]
    columns = size.mean(axis=(0, 1, 2), dtype=np.float64)
    return size.shape[3] > 1 and bool(np.all(np.abs(size - rows * columns / size.mean()) <= TOLERANCE * rows))
