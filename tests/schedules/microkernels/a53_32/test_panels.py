"""The A32 loop over packed pixels by the rules that it is ordered with; its answers are tested with the convolutions."""

from __future__ import annotations

import re

import pytest

from bitkiln.schedules.microkernels.a53_32.panels import Panels


@pytest.mark.parametrize("share", [False, True])
def test_loads_stand_four_cycles_apart(share):
    """Three products between any two: no load then issues four cycles behind a product."""
    text = Panels(share).assembly()
    loop = re.findall(r"^    (vldr|vmla|vmul)", text[text.index("\n2:") : text.index("\n3:")], re.MULTILINE)
    assert loop == ["vldr", "vmla", "vmla", "vmla"] * 16


def test_products_by_lane_name_the_lower_half():
    """The encoding has room for d0..d15 alone."""
    lanes = re.findall(r"vm[lu][al]\.f32 .*, d(\d+)\[", Panels().assembly())
    assert lanes
    assert max(map(int, lanes)) < 16
