"""Thresholds against the steps they stand for, at every sum that a layer can have."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings

from bitkiln.pipeline.passes.binary.thresholds import NotMonotone, find_thresholds
from tests.property import plain
from tests.property.draws import Draw, draws


@settings(max_examples=300)
@given(draws())
def test_thresholds_are_exact_at_every_sum(d: Draw):
    size = (d.whole(1, 2), d.whole(1, 2), d.whole(1, 4))
    reach = d.whole(1, 300)
    steps = d.steps(size)
    sign_zero, invert = d.pick([1, -1]), d.rng.random(size[2]) < 0.5
    with np.errstate(all="ignore"):
        try:
            found = find_thresholds(steps, sign_zero, invert, size, reach)
        except NotMonotone:
            assume(False)
        sums = np.arange(-reach, reach + 1)
        values = np.broadcast_to(sums[:, None, None, None].astype(np.float32), (len(sums), *size))
        wanted = plain.signs(
            plain.stepped([s for s, _ in steps], values, [v for _, v in steps if v is not None]), sign_zero
        )
    turned = np.where(found.flip, -sums[:, None, None, None], sums[:, None, None, None])
    several = found.value if found.value.ndim in (2, 4) else [found.value]
    actual = np.logical_xor.reduce([turned >= value for value in several])
    np.testing.assert_array_equal(np.broadcast_to(actual, wanted.shape), wanted ^ invert)
