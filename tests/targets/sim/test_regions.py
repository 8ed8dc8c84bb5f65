"""What a guest program marks and asks, and what it is answered (docs/simulator.md)."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from bitkiln.targets.sim import MODEL_VERSION

Run = Callable[..., "Ran"]  # noqa: F821 - the class of conftest.py


def test_each_region_has_its_own_report(run_guest: Run) -> None:
    ran = run_guest("regions")
    assert [report["region"] for report in ran.reports] == [10, 11, 12, 13, 14]
    for i, report in enumerate(ran.reports):
        assert report["mix"]["fp_mac"] == 1000 * (i + 1)
        assert report["cycles"] == pytest.approx(4000 * (i + 1), abs=400 if i else 2000)
        assert sum(report["where"].values()) == report["cycles"]
        assert sum(report["mix"].values()) == report["instructions"]
        assert report["complete"] is True
        assert report["unknown"] == {}
        assert report["stopped"] is False
        assert report["cores"] == 1
        assert "blocks" not in report
        assert "marks" not in report
    assert json.loads(ran.stdout) == ran.reports[-1], "READ answers with the last report"


def test_time_is_put_down_to_its_cause(run_guest: Run) -> None:
    where = run_guest("regions").reports[-1]["where"]
    assert where["dependency"] > 0.4 * sum(where.values())
    assert where["dram"] == 0


def test_paths_are_markers_too(run_guest: Run) -> None:
    (report,) = run_guest("paths").reports
    assert report["region"] == 42
    assert report["mix"]["fp_mac"] == 1000


def test_the_model_says_what_it_is(run_guest: Run) -> None:
    params = {"cpu": {"mhz": 700, "l2_kib": 256, "cores": 4}, "dram": {"latency_ns": 100, "bandwidth_mb_s": 4400}}
    identity, early, small = map(json.loads, run_guest("identify", params=params).stdout.splitlines())
    assert identity["model"] == MODEL_VERSION
    assert (identity["mhz"], identity["l2_kib"]) == (700, 256)
    assert (identity["dram_latency_ns"], identity["dram_bandwidth_mb_s"]) == (100, 4400)
    assert early["error"] == "no region ended yet"
    assert small["error"] == "buffer too small"
    assert small["size"] > 100


def test_without_the_model_nothing_is_answered(guest: str) -> None:
    import subprocess

    from bitkiln.targets.sim.emulator import emulator

    done = subprocess.run(
        [*emulator().command("qemu-aarch64"), str(guest), "identify"], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines() == ["A53ASK?"] * 3


def test_caches_stay_warm_until_told_otherwise(run_guest: Run) -> None:
    first, second, third, cold = run_guest("cold").reports
    assert first["memory"]["dram_lines_read"] >= 256
    assert second["memory"]["l1d_misses"] == third["memory"]["l1d_misses"] == 0
    assert third["cycles"] <= second["cycles"] < first["cycles"] / 2
    assert cold["memory"]["dram_lines_read"] >= 256
    assert cold["cycles"] > 2 * third["cycles"]


def test_a_region_past_its_limit_ends_the_program(run_guest: Run) -> None:
    ran = run_guest("limit")
    assert ran.returncode == -signal.SIGXCPU
    short, long = ran.reports
    assert short["stopped"] is False
    assert long["stopped"] is True
    assert long["limit"] == 50000
    assert 50000 < long["cycles"] < 50100


def test_a_limit_may_be_an_option(run_guest: Run) -> None:
    ran = run_guest("regions", options=["limit=10000"])
    assert ran.returncode == -signal.SIGXCPU
    assert [report["stopped"] for report in ran.reports] == [False, False, True]


def test_a_program_may_survive_its_limit(run_guest: Run) -> None:
    ran = run_guest("survive")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["stopped"] is True


def test_unknown_instructions_are_counted_and_named(run_guest: Run) -> None:
    (report,) = run_guest("unknown").reports
    assert report["complete"] is False
    assert report["unknown"] == {"aesmc": 2, "sha256su0": 1}
    assert report["mix"]["unknown"] == 3


def test_hot_blocks_are_listed_on_request(run_guest: Run) -> None:
    with_blocks, without = run_guest("blocks").reports
    hottest, second = with_blocks["blocks"]
    assert [text for text, _ in hottest["code"]][:2] == ["fmla v0.4s, v1.4s, v2.4s", "subs x0, x0, #1"]
    assert sum(cycles for _, cycles in hottest["code"]) == pytest.approx(4, abs=0.1)
    assert hottest["cycles"] == pytest.approx(4 * hottest["executions"], rel=0.05)
    assert hottest["object"].endswith("guest")
    assert second["code"][0][0].startswith("ldr x9")
    assert "blocks" not in without
    assert with_blocks["cycles"] > without["cycles"]


def test_threads_are_counted_and_the_slowest_decides(run_guest: Run) -> None:
    (report,) = run_guest("threads").reports
    assert report["cores"] == 2
    assert report["mix"]["fp_mac"] == 30000
    assert 80000 < report["cycles"] < 120000
