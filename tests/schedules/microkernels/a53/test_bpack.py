"""What the generated packing of patches promises without being run."""

from __future__ import annotations

import re

import pytest

from bitkiln.schedules.microkernels.a53.bpack import PackPairs

_BYTES = {"q": 16, "d": 8, "s": 4}


@pytest.mark.parametrize(("runs", "run_bytes"), [(1, 2), (3, 24), (3, 6), (1, 72), (9, 14), (4, 80)])
def test_exactly_the_panel_is_written(runs, run_bytes):
    """Threads share a panel: not a byte may be written behind a pair's words."""
    text = PackPairs(runs, run_bytes).assembly()
    stores = [(_BYTES[width], int(at)) for width, at in re.findall(r"str ([qds])\d+, \[x0, #(\d+)\]", text)]
    loops = "2:" in text.split()
    written = 2 * run_bytes if loops else 2 * runs * run_bytes
    assert sorted(at for _, at in stores) == [at for _, at in stores]
    assert sum(size for size, _ in stores) == written
    assert max(at + size for size, at in stores) == written


def test_long_runs_are_looped_over():
    assert PackPairs(3, 3 * 512).assembly().count("\n") < 80
