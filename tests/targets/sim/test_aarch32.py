"""Guests in AArch32 state: what instructions cost, and that a region of A32 and T32 code is wholly known."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bitkiln import targets
from bitkiln.targets.sim import Reports, facts32, microbench, qemu_command
from bitkiln.targets.sim.build import SOURCES
from bitkiln.targets.toolchain import toolchain

GUEST = Path(__file__).parent / "guest32.c"


@pytest.fixture(scope="module")
def cycles() -> dict[str, int]:
    """Of every fact and both sides of every pair, by name."""
    pairs = facts32.shadows()
    a32 = [*(first for first, _ in pairs), *facts32.OWN]
    a64 = [second for _, second in pairs]
    found = dict(zip((fact.name for fact in a32), microbench.run(a32, dialect=facts32.A32), strict=True))
    return found | dict(zip((fact.name for fact in a64), microbench.run(a64), strict=True))


def test_an_instruction_costs_what_the_same_operation_costs_in_a64(cycles: dict[str, int]) -> None:
    wrong = [
        f"{first.name}: {cycles[first.name]}, not {cycles[second.name]}"
        for first, second in facts32.shadows()
        if cycles[first.name] != cycles[second.name]
    ]
    assert wrong == []


def test_what_has_no_counterpart_costs_what_its_source_says(cycles: dict[str, int]) -> None:
    assert [f"{fact.name}: {cycles[fact.name]}" for fact in facts32.OWN if cycles[fact.name] != fact.cycles] == []


def test_every_row_names_a_row_of_the_table_of_a64() -> None:
    known = set(re.findall(r'^\{ "(\w+)"', (SOURCES / "rules.c").read_text(), re.MULTILINE))
    text = (SOURCES / "rules32.c").read_text()
    rows = re.findall(r'^\{ "(\w+)"', text, re.MULTILINE)
    costs = re.findall(r'\s"([A-Z]\w*)", (?:E_\w+(?: \| E_\w+)*|0), \d', text)
    assert len(rows) == len(costs) > 70
    assert set(costs) <= known


@pytest.fixture(scope="module", params=["-marm", "-mthumb"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's program as A32 and as T32 code; its libc is T32."""
    program = tmp_path_factory.mktemp("guest32") / "guest"
    cross = toolchain(targets.load("rasp3b32"))
    flags = [request.param, "-O2", "-static", "-pthread"]
    command = [*cross.command, *flags, str(GUEST), "-o", str(program), "-lm"]
    subprocess.run(command, check=True, timeout=120, env=cross.environment)
    return program


def run(guest: Path, out: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The reports of a run and what the guest printed."""
    command, environment = qemu_command(
        {"userland": targets.load("rasp3b32").userland}, [str(guest), *arguments], options=[f"out={out}"]
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return Reports(out).new(), done.stdout


def test_a_region_of_libc_is_known_and_repeats(guest: Path, tmp_path: Path) -> None:
    (first,), said = run(guest, tmp_path / "one", "libc")
    (second,), _ = run(guest, tmp_path / "two", "libc")
    assert first["unknown"] == {} and first["complete"]
    assert first["cycles"] == second["cycles"]
    assert f'"cycles": {first["cycles"]},' in said  # The guest read the report itself.


def test_a_prefetch_is_seen_by_its_address(guest: Path, tmp_path: Path) -> None:
    (with_hints,), _ = run(guest, tmp_path / "with", "ahead", "1")
    (without,), _ = run(guest, tmp_path / "without", "ahead", "0")
    assert with_hints["memory"]["hints"] >= 1000 and with_hints["memory"]["hints_unseen"] == 0
    assert with_hints["cycles"] < 0.75 * without["cycles"]


def test_threads_share_the_work_in_simulated_time(guest: Path, tmp_path: Path) -> None:
    (report,), said = run(guest, tmp_path / "threads", "threads")
    assert report["cores"] == 3
    assert 2_000_000 <= int(said) < 20_000_000  # Nanoseconds that the guest's clock counted while it slept 2 ms.
