"""Prefetch instructions act as a load that nobody waits for, wherever their address comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PREFETCHES = ("plain", "offset", "unscaled", "index", "moved", "loaded", "product")


def ahead(run_guest: Callable, way: str, *options: str) -> dict[str, Any]:
    """The report of a walk over lines that no prefetcher foresees, each fetched eight turns ahead in this way."""
    return run_guest("ahead", way, options=options).reports[-1]


@pytest.mark.parametrize("way", PREFETCHES)
def test_a_prefetch_fetches_as_early_as_a_load(run_guest: Callable, way: str) -> None:
    report = ahead(run_guest, way)
    assert report["memory"]["hints"] >= 1000
    assert report["memory"]["hints_unseen"] == 0
    assert report["cycles"] == pytest.approx(ahead(run_guest, "load")["cycles"], rel=0.03)
    assert report["cycles"] < 0.75 * ahead(run_guest, "none")["cycles"]


@pytest.mark.parametrize("way", ["unmapped", "code"])
def test_what_brings_no_data_helps_nobody(run_guest: Callable, way: str) -> None:
    report = ahead(run_guest, way)
    assert report["cycles"] == pytest.approx(ahead(run_guest, "none")["cycles"], rel=0.05)
    assert report["memory"]["hints_dropped"] == (1000 if way == "unmapped" else 0)


def test_prefetches_can_be_left_out(run_guest: Callable) -> None:
    assert ahead(run_guest, "plain", "prefetch_hints=0")["cycles"] > 1.3 * ahead(run_guest, "plain")["cycles"]


def test_nothing_waits_for_a_prefetch_but_for_a_load(run_guest: Callable) -> None:
    limited = "past_miss=8"
    assert ahead(run_guest, "plain", limited)["cycles"] == pytest.approx(ahead(run_guest, "plain")["cycles"], rel=0.01)
    assert ahead(run_guest, "load", limited)["cycles"] > 1.2 * ahead(run_guest, "load")["cycles"]
