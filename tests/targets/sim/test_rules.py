"""The rule table: every published fact comes out, and no row can change unnoticed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bitkiln.targets.sim import facts, microbench
from bitkiln.targets.sim.build import SOURCES

_ROWS = re.findall(
    r'\{ "(\w+)",.*?(HALVES_\w+), (\d), [^,]+,\s*(\d+),\d+,(\d+),\s*(\d+),\d+,(\d+),',
    (SOURCES / "rules.c").read_text(),
    re.DOTALL,
)
"""Of each row: name, halves, first, occ, busy, lat, acc."""


NO_RESULT = {"PREFETCH", "B_COND", "B", "BR", "RET", "HINT", "BARRIER"}
"""Rows of instructions that write no register: their latency means nothing."""


def failing(known: Sequence[microbench.Fact], program: Path, options: Sequence[str] = ()) -> list[str]:
    cycles = microbench.run(known, options=options, program=program)
    return [
        f"{fact.name}: {fact.cycles}, not {got}" for fact, got in zip(known, cycles, strict=True) if got != fact.cycles
    ]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "facts"


def test_every_fact_comes_out(program: Path) -> None:
    known = facts.all_facts()
    microbench.build(known, program)
    assert failing(known, program) == []


def test_rows_are_all_found() -> None:
    names = [row[0] for row in _ROWS]
    assert names == re.findall(r'^\{ "(\w+)"', (SOURCES / "rules.c").read_text(), re.MULTILINE)
    assert len(names) > 80
    assert {timing.row for timing in facts.TIMINGS} | {row for row, *_ in facts.SEQUENCES} >= set(names)


def mutations(row: tuple[str, ...]) -> list[str]:
    name, halves, first, occ, busy, lat, acc = row
    other = {"HALVES_NONE": 2, "HALVES_ONE": 2, "HALVES_BOTH": 1, "HALVES_BY_WIDTH": 1}[halves]
    changed = [f"halves:{other}", f"occ:{int(occ) + 1}"]
    if name not in NO_RESULT:
        changed.append(f"lat:{int(lat) + 7}")
    if halves != "HALVES_ONE":
        changed.append(f"first:{1 - int(first)}")
    if int(busy):
        changed.append(f"busy:{int(busy) + 1}")
    if int(acc):
        changed.append("acc:0")
    return [f"rule={name}.{column}" for column in changed]


@pytest.mark.parametrize("row", _ROWS, ids=[row[0] for row in _ROWS])
def test_a_changed_row_makes_facts_fail(program: Path, row: tuple[str, ...]) -> None:
    known = [fact for fact in facts.all_facts() if fact.name.startswith(f"{row[0]}:")]
    microbench.build(known, program)
    assert failing(known, program) == []
    assert [mutation for mutation in mutations(row) if not failing(known, program, [mutation])] == []


PARAMETERS = ("B: ", "fma_load_gap: ", "mispredict: ", "unaligned_load: ", "split_store: ")


@pytest.mark.parametrize(
    "option",
    ["taken_gap=4", "fma_load_gap=0", "fma_load_gap=5", "mispredict=8", "unaligned_load=0", "split_store=0"],
)
def test_a_changed_parameter_makes_facts_fail(program: Path, option: str) -> None:
    known = [fact for fact in facts.all_facts() if fact.name.startswith(PARAMETERS)]
    microbench.build(known, program)
    assert failing(known, program, [option])


def test_cycle_counter_measurements_of_silicon(shared: Path) -> None:
    path = shared / "prototypes/a53sim/micro_facts.json"
    if not path.exists():
        pytest.skip("needs ../shared/prototypes/a53sim/micro_facts.json")
    known = [replace(fact, end_is_address="saxpy_q_full" in fact.name) for fact in microbench.load(path)]
    differences = [abs(got - fact.cycles) for fact, got in zip(known, microbench.run(known), strict=True)]
    assert differences.count(0) == 135
