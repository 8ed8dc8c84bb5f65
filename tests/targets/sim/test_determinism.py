"""The same program takes the same cycles, wherever it lies in memory and whatever else the host does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def test_cycles_do_not_depend_on_addresses_or_load(run_guest: Callable) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        runs = [run_guest("work", PADDING="x" * 700 * i) for i in range(5)]
    finally:
        busy.kill()
        busy.wait()
    assert len({run.stdout for run in runs}) > 1, "the addresses did not vary"
    for region in range(3):
        cycles = [run.reports[region]["cycles"] for run in runs]
        assert max(cycles) <= 1.005 * min(cycles), cycles


def test_warm_regions_repeat(run_guest: Callable) -> None:
    first, second, third = (report["cycles"] for report in run_guest("work").reports)
    assert first > second
    assert abs(third - second) <= 0.005 * second
