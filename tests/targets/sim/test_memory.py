"""The memory hierarchy: parameters act as their names say, and count what they should."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def cycles(run_guest: Callable, *options: str) -> tuple[int, int]:
    """Of a sweep over 16 KiB: from DRAM, and from L1."""
    reports = run_guest("cold", options=options).reports
    return reports[3]["cycles"], reports[2]["cycles"]


def test_a_cold_sweep_reads_each_line_once(run_guest: Callable) -> None:
    memory = run_guest("cold").reports[3]["memory"]
    assert 256 <= memory["dram_lines_read"] <= 280
    assert memory["l1d_accesses"] >= 256
    assert memory["tlb_misses"] >= 4


@pytest.mark.parametrize(
    "slower",
    ["dram_latency_ns=280", "dram_bandwidth_mb_s=800", "prefetch_lines=0", "tlb_walk=300", "utlb_miss=100"],
)
def test_slower_memory_shows_in_a_cold_sweep(run_guest: Callable, slower: str) -> None:
    cold, warm = cycles(run_guest)
    slow_cold, slow_warm = cycles(run_guest, slower)
    assert slow_cold > 1.02 * cold
    assert slow_warm <= 1.02 * warm


def test_a_small_l1_misses_what_a_large_one_holds(run_guest: Callable) -> None:
    _, fits = cycles(run_guest)
    _, spills = cycles(run_guest, "l1d_kib=8")
    assert spills > 1.5 * fits


@pytest.mark.parametrize("slower", ["l2_latency=60", "l2_line=40"])
def test_a_slower_l2_shows_where_l1_is_too_small(run_guest: Callable, slower: str) -> None:
    _, spills = cycles(run_guest, "l1d_kib=8", "prefetch_lines=0")
    _, slow = cycles(run_guest, "l1d_kib=8", "prefetch_lines=0", slower)
    assert slow > 1.1 * spills


def test_the_clock_changes_what_memory_costs(run_guest: Callable) -> None:
    fast, _ = cycles(run_guest, "mhz=1400")
    slow, _ = cycles(run_guest, "mhz=700")
    assert slow < 0.8 * fast, "the same memory takes fewer cycles of a slower clock"


def test_random_replacement_repeats_and_differs_from_the_least_recently_used(run_guest: Callable) -> None:
    options = ("l1_random=1", "l2_random=1", "tlb_random=1")

    def sweep(*more: str) -> int:
        return run_guest("cold", options=["l1d_kib=16", "l1d_ways=4", *more]).reports[2]["memory"]["l1d_misses"]

    assert sweep(*options) == sweep(*options)
    assert sweep(*options) != sweep()
    assert len({sweep(*options, f"seed={seed}") for seed in range(4)}) > 1
