"""Several simulated cores: they run at once, share what they share, and do so the same way every time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest


def team(run_guest: Callable, work: str, *options: str) -> dict[str, Any]:
    """The report of a warm round in which four threads do the same work each."""
    (report,) = [each for each in run_guest("team", work, options=options).reports if each["region"] == 4]
    return report


@pytest.mark.parametrize("arguments", [["stream"], ["count"], ["compute", "asleep"]])
def test_a_team_takes_the_same_cycles_every_time(run_guest: Callable, arguments: list[str]) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        runs = [run_guest("team", *arguments).reports for _ in range(4)]
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert all(run == runs[0] for run in runs), [run[-1]["cycles"] for run in runs]


def test_four_cores_compute_at_once(run_guest: Callable) -> None:
    report = team(run_guest, "compute")
    assert report["cores"] == 4
    assert report["mix"]["fp_mac"] == 80000
    assert 80000 < report["cycles"] < 84000
    assert all(core["cycles"] - core["spinning"] > 79000 for core in report["threads"])


def test_a_thread_that_sleeps_is_woken_in_simulated_time(run_guest: Callable) -> None:
    (asleep,) = run_guest("team", "compute", "asleep").reports
    assert team(run_guest, "compute")["cycles"] + 6000 < asleep["cycles"] < 120000
    slower = run_guest("team", "compute", "asleep", options=["wake_latency=60000"]).reports[0]
    assert slower["cycles"] > asleep["cycles"] + 50000


def test_cores_share_the_bandwidth_of_memory(run_guest: Callable) -> None:
    report = team(run_guest, "stream", "dram_row_ns=0")
    mb_s = report["memory"]["dram_lines_read"] * 64 / report["cycles"] * report["mhz"]
    assert report["memory"]["dram_lines_read"] >= 4 << 14
    assert 0.85 * 2200 < mb_s <= 2210
    assert report["memory"]["dram_waits"] > report["cycles"]
    assert team(run_guest, "stream", "dram_row_ns=0", "dram_total_mb_s=8800")["cycles"] < 0.5 * report["cycles"]


def test_cores_that_read_different_rows_wait_for_a_bank_of_memory(run_guest: Callable) -> None:
    """Four streams, each in rows of its own: a bank for each does not hold them up, one for all does."""
    options = ("dram_row_ns=6000", "dram_banks=1"), ("dram_row_ns=6000", "dram_banks=16")
    one, several = (team(run_guest, "stream", *each)["cycles"] for each in options)
    assert one > 1.2 * several


def test_cores_share_l2(run_guest: Callable) -> None:
    """Four streams of 1 MiB fit an L2 of 8 MiB and not one of 512 KiB."""
    assert team(run_guest, "stream", "l2_kib=8192")["memory"]["dram_lines_read"] < 100


def test_a_line_that_all_write_goes_from_core_to_core(run_guest: Callable) -> None:
    report = team(run_guest, "count")
    assert report["memory"]["snoops"] > 1000
    assert team(run_guest, "compute")["memory"]["snoops"] < 40


def test_atomic_counts_are_right(run_guest: Callable) -> None:
    assert run_guest("team", "count").stdout == f"{4 * 500 * 30}\n"


@pytest.mark.parametrize("how", ["fork", "leave"])
def test_a_program_may_fork_or_leave_while_others_wait(run_guest: Callable, how: str) -> None:
    ran = run_guest("team", how)
    assert ran.returncode == 0
    assert [report["region"] for report in ran.reports] == ([4, 1] if how == "fork" else [4])


def test_clocks_and_sleeps_are_simulated(run_guest: Callable) -> None:
    ran = run_guest("sleep", params={"cpu": {"mhz": 700}})
    slept = int(ran.stdout)
    assert 5_000_000 <= slept < 5_100_000
    assert ran.reports[0]["cycles"] == pytest.approx(slept * 0.7, rel=0.02)
