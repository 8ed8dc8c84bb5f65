"""Sums of 16 bits never overflow, and nothing of the weights gets lost."""

import numpy as np
import pytest

from bitkiln.schedules.qconv2d.segments import LENGTHS, laid, panels, plan

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
        case "few":
            return rng.integers(-128, 128, (channels, steps)) * (np.arange(steps) % 7 == 3)
    return np.zeros((channels, steps), int)


KINDS = ("uniform", "normal", "lowest", "alternating", "nine bits", "few", "zero")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_segment_leaves_16_bits_and_all_weights_are_there(kind, length):
    weights = drawn(kind, 20, 90)
    found = laid(weights, CHANNELS, length)
    segments = found.weights.astype(int).reshape(len(found.counts), -1, length, CHANNELS)
    positive, negative = np.maximum(segments, 0).sum(axis=2), np.maximum(-segments, 0).sum(axis=2)
    # Of all data of 8 bits, those that make the largest and the smallest sum.
    assert (127 * positive + 128 * negative).max() <= 32767
    assert (128 * positive + 127 * negative).max() <= 32768
    for steps, parts, count, panel in zip(
        found.steps, found.weights, found.counts, panels(weights, CHANNELS), strict=True
    ):
        total = np.zeros((90, CHANNELS), int)
        np.add.at(total, steps[: count * length], parts[: count * length].astype(int))
        assert (panel == total.T).all()
        assert not parts[count * length :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_has_room_for_every_panel(kind):
    weights = drawn(kind, 20, 70)
    found = plan(weights, CHANNELS)
    assert found.length in LENGTHS
    assert laid(weights, CHANNELS, found.length).counts.max() == found.segments


def test_small_weights_make_long_segments():
    found = plan(np.random.default_rng(0).integers(-7, 8, (16, 256)), CHANNELS)
    assert (found.length, found.segments) == (LENGTHS[-1], 256 // LENGTHS[-1])


def test_normal_weights_take_hardly_more_steps_than_they_are():
    found = plan(drawn("normal", 64, 256), CHANNELS)
    assert found.length >= 5 and found.length * found.segments <= 1.15 * 256
