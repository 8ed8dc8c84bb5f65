"""Weights that are +-s, and what is said of others (see also test_recognise_binary)."""

from __future__ import annotations

import numpy as np
import pytest

from bitkiln.pipeline.passes.binary.verdict import NotBinary
from bitkiln.pipeline.passes.binary.weights import binary_weights

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("channels", [1, 3, 130])
def test_scales_and_signs(channels):
    signs = RNG.choice([-1.0, 1.0], (5, 3, 2, channels))
    scales = np.array([2.0, 1e-3, 0.7, 1e6, 0.0])
    noise = 1 + 1e-6 * RNG.normal(size=signs.shape)
    found, turned = binary_weights((signs * scales[:, None, None, None] * noise).astype(np.float32), expected=True)
    np.testing.assert_allclose(found, scales, rtol=1e-5)
    np.testing.assert_array_equal(turned[:4], signs[:4])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value):
    weight = np.ones((2, 1, 1, 4), np.float32)
    weight[1, 0, 0, 2] = value
    with pytest.raises(NotBinary, match="not finite"):
        binary_weights(weight, expected=True)


def test_equal_weights_mean_nothing_without_signs_before_them():
    with pytest.raises(NotBinary) as caught:
        binary_weights(np.full((4, 3, 3, 1), 1 / 9, np.float32), expected=False)
    assert not caught.value.suspicious
    scales, _ = binary_weights(np.full((4, 3, 3, 1), 1 / 9, np.float32), expected=True)
    np.testing.assert_allclose(scales, 1 / 9)
