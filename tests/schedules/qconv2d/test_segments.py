"""Sums of 16 bits never overflow, and nothing of the weights gets lost."""

import numpy as np
import pytest

from bitkiln.schedules.qconv2d.segments import LENGTHS, panels, plan, spilled

CHANNELS = 8


def drawn(kind, channels, steps):
    rng = np.random.default_rng(steps)
    match kind:
        case "uniform":
            return rng.integers(-128, 128, (channels, steps))
        case "normal":
            values = rng.normal(size=(channels, steps))
            return np.round(values / np.abs(values).max(axis=1, keepdims=True) * 127).astype(int)
        case "lowest":
            return np.full((channels, steps), -128)
        case "alternating":
            return np.where(np.arange(steps) % 2, 127, -128) * np.ones((channels, 1), int)
        case "nine bits":
            return rng.choice([-255, 255], (channels, steps))
    return np.zeros((channels, steps), int)


KINDS = ("uniform", "normal", "lowest", "alternating", "nine bits", "zero")


def worst(kept, length):
    """The largest and the smallest sum of a segment, over all data of 8 bits, whatever part of it was added up."""
    filled = np.pad(kept, ((0, 0), (0, -kept.shape[1] % length))).reshape(len(kept), -1, length)
    positive, negative = np.maximum(filled, 0).sum(axis=-1), np.minimum(filled, 0).sum(axis=-1)
    return (127 * positive - 128 * negative).max(), (127 * negative - 128 * positive).min()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_segment_leaves_16_bits(kind, length):
    weights = drawn(kind, CHANNELS, 50)
    kept, steps = spilled(weights, length)
    highest, lowest = worst(kept, length)
    assert highest <= 32767 and lowest >= -32768
    assert set(np.flatnonzero((kept != weights).any(axis=0))) == set(steps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_holds_what_its_panels_spill(kind):
    weights = drawn(kind, 20, 70)
    found = plan(weights, CHANNELS)
    assert found.length in LENGTHS
    assert max(len(spilled(panel, found.length)[1]) for panel in panels(weights, CHANNELS)) == found.spill


def test_small_weights_make_long_segments_that_spill_nothing():
    found = plan(np.random.default_rng(0).integers(-7, 8, (16, 256)), CHANNELS)
    assert (found.length, found.spill) == (LENGTHS[-1], 0)
