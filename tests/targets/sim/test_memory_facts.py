"""Memory benchmarks come out as on a real Pi 3, and move as their parameters say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitkiln.targets.sim import memory_facts

BY_NAME = {fact.name: fact for fact in memory_facts.FACTS}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("memory") / "memory"
    memory_facts.build(built)
    return built


@pytest.mark.parametrize("fact", memory_facts.FACTS, ids=BY_NAME)
def test_a_benchmark_takes_what_it_takes_on_silicon(program: Path, fact: memory_facts.MemoryFact) -> None:
    assert abs(fact.error(memory_facts.run(fact, program))) < 0.15


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("memset", "dram_write_mb_s=1000", 1000), ("memset", "dram_bandwidth_mb_s=1500", 1500)],
)
def test_stores_go_as_fast_as_memory_takes_them(program: Path, name: str, option: str, value: float) -> None:
    assert memory_facts.run(BY_NAME[name], program, [option]) == pytest.approx(value, rel=0.03)
    assert memory_facts.run(BY_NAME["memcpy"], program, ["dram_write_mb_s=0"]) == pytest.approx(1060, rel=0.05)


def test_what_was_just_stored_may_come_later(run_guest, program: Path) -> None:
    late, early = (run_guest("stored", options=[f"store_forward={cycles}"]).reports[0]["cycles"] for cycles in (3, 0))
    assert late == pytest.approx(early + 3 * 1000, rel=0.02)


def test_errors_are_distances_from_the_measured_range() -> None:
    fact = memory_facts.MemoryFact("x", (), 100, 120, "ns")
    assert [fact.error(value) for value in (110, 90, 150)] == pytest.approx([0, -0.1, 0.25])
