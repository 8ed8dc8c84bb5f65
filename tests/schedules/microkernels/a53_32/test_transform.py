"""Winograd's transform of products in A32; its answers are tested with the convolutions."""

from __future__ import annotations

import itertools
import re

import pytest

from bitkiln.schedules.microkernels.a53.sgemm import Finish
from bitkiln.schedules.microkernels.a53_32.transform import ResultTransform

#: F(2, 3): outputs 0+1+2 and 1-2+3 of points.
STAGES = ((((0, 1), (1, 1), (2, 1)), ((1, 1), (2, -1), (3, 1))),)


@pytest.mark.parametrize("finish", [Finish(), Finish(True, "clip", (0.0, 6.0)), Finish(False, "leaky", (0.1,))])
def test_every_output_has_a_place(finish):
    transform = ResultTransform("2x2of3", (4, 4), (STAGES, STAGES), 32, finish)
    assert sorted(transform.places) == list(itertools.product(range(2), range(2)))
    assert sorted(transform.places.values()) == list(range(4))
    assert len(re.findall(r"vst1\.32 .*\[r0\]!", transform.assembly())) == 4


def test_the_bias_is_read_once_a_vector():
    """Every output has the product at point 1 of both axes, so the bias is added there alone."""
    loads = [
        len(re.findall(r"vldr .*\[r2, ", ResultTransform("2x2of3", (4, 4), (STAGES, STAGES), 32, finish).assembly()))
        for finish in (Finish(), Finish(bias=True))
    ]
    assert loads == [0, 2]
