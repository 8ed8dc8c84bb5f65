"""Which boards of a farm may measure: what sets one aside, and how it comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitkiln.pipeline.boards import roster
from bitkiln.pipeline.boards.answers import Measurement
from bitkiln.pipeline.boards.roster import Roster, read_standings

GOOD = Measurement("seconds", 1e-3, "board", "a Pi", 1200, cpu="Cortex-A53")


class Watch:
    """Time that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def boards(said: list[str], watch: Watch, tmp_path: Path) -> Roster:
    """Two boards that did the common kernel in 1.2 million cycles."""
    made = Roster(said.append, watch, tmp_path / "boards.json")
    for name in ("a:1", "b:1"):
        assert made.must_check(name)
        assert made.checked(name, GOOD, "")
        assert not made.must_check(name)
    return made


def test_a_third_that_differs_a_little_is_reported_and_measures(boards: Roster, said: list[str]) -> None:
    assert boards.checked("c:1", replace(GOOD, value=1.02e-3), "")
    assert not said
    assert boards.checked("d:1", replace(GOOD, value=1.05e-3), "")
    assert len(said) == 1 and "d:1" in said[0] and "+5.0%" in said[0]


def test_cycles_compare_not_times(boards: Roster, said: list[str]) -> None:
    # Throttled to half its clock, a board takes twice the time and as many cycles.
    assert boards.checked("c:1", replace(GOOD, value=2e-3, clock_mhz=600), "")
    assert not said


@pytest.mark.parametrize(
    ("found", "problem"), [(replace(GOOD, value=2e-3), ""), (replace(GOOD, value=0.5e-3), ""), (GOOD, "it lies")]
)
def test_one_that_differs_much_or_lies_is_set_aside_and_comes_back(
    boards: Roster, said: list[str], watch: Watch, found: Measurement, problem: str
) -> None:
    assert not boards.checked("c:1", found, problem)
    assert boards.aside("c:1") and "c:1" in said[-1]
    assert not boards.aside("a:1")
    watch.now += roster.ASIDE + 1
    assert not boards.aside("c:1") and boards.must_check("c:1"), "it has to prove itself again"
    assert boards.checked("c:1", GOOD, "")
    assert "back" in said[-1]


@pytest.mark.parametrize("lie", [0.3e-3, 0.7e-3, 3e-3])
def test_one_that_lies_from_the_beginning_sets_the_others_aside_no_longer_than_it_takes_to_know(
    said: list[str], watch: Watch, lie: float
) -> None:
    boards = Roster(said.append, watch)
    assert boards.checked("liar:1", replace(GOOD, value=lie), "")
    assert not boards.checked("a:1", GOOD, ""), "of two nobody knows"
    assert boards.aside("a:1") and not boards.aside("liar:1")
    assert boards.checked("b:1", GOOD, "")
    assert boards.aside("liar:1") and "liar:1" in "".join(said[-3:])
    assert not boards.aside("a:1") and not boards.must_check("a:1")
    assert any("a:1 is back" in line for line in said)


def test_one_that_lies_again_waits_longer(boards: Roster, watch: Watch) -> None:
    for seconds in (roster.ASIDE, 2 * roster.ASIDE, 4 * roster.ASIDE):
        boards.checked("c:1", GOOD, "it lies")
        watch.now += seconds - 1
        assert boards.aside("c:1")
        watch.now += 2
        assert not boards.aside("c:1")


def test_one_that_dies_too_often(boards: Roster, watch: Watch) -> None:
    for _ in range(roster.MOST_LOSSES - 1):
        boards.lost("a:1", "no answer in 5 s")
        assert not boards.aside("a:1")
        assert boards.must_check("a:1"), "who knows what came back"
        watch.now += 10
    boards.lost("a:1", "no answer in 5 s")
    assert "no answer in 5 s" in boards.aside("a:1")


def test_losses_long_ago_are_forgotten(boards: Roster, watch: Watch) -> None:
    for _ in range(2 * roster.MOST_LOSSES):
        boards.lost("a:1", "no answer")
        watch.now += roster.LOSS_SECONDS
    assert not boards.aside("a:1")


@pytest.mark.parametrize("unfit", [replace(GOOD, health={"throttled": True}), replace(GOOD, steady=False)])
def test_one_that_is_throttled_or_unsteady_for_long(boards: Roster, unfit: Measurement) -> None:
    for found in (unfit, unfit, GOOD, unfit, unfit):
        boards.measured("a:1", found)
    assert not boards.aside("a:1")
    boards.measured("a:1", unfit)
    assert boards.aside("a:1")


def test_when_all_are_aside_the_reasons_are_given(boards: Roster) -> None:
    boards.checked("a:1", GOOD, "it lies")
    both = ["a:1", "b:1"]
    assert not boards.all_aside(both)
    boards.checked("b:1", GOOD, "it lies, too")
    assert "a:1: it lies" in boards.all_aside(both) and "it lies, too" in boards.all_aside(both)


def test_those_that_are_not_there_any_more_do_not_stand_for_others(boards: Roster) -> None:
    for name in ("a:1", "b:1"):
        boards.checked(name, GOOD, "it lies")
    # As many as are set aside, but a new one among them.
    assert not boards.all_aside(["a:1", "c:1"])
    assert boards.all_aside(["a:1"])


def test_one_that_is_still_throttled_does_not_come_back(boards: Roster, watch: Watch) -> None:
    throttled = replace(GOOD, health={"throttled": True})
    for _ in range(3):
        boards.measured("a:1", throttled)
    watch.now += roster.ASIDE
    assert not boards.checked("a:1", throttled, "") and "throttled" in boards.aside("a:1")
    watch.now += roster.LONGEST_ASIDE
    assert boards.checked("a:1", GOOD, "") and not boards.aside("a:1")


def test_what_was_learned_is_kept_for_people_to_see(boards: Roster, tmp_path: Path) -> None:
    boards.lost("a:1", "power cut\x1b[2J")
    boards.checked("b:1", GOOD, "it lies")
    known = read_standings(tmp_path / "boards.json")
    assert known["a:1"].failure.startswith("power cut") and known["a:1"].failure.isprintable()
    assert (known["b:1"].aside, known["b:1"].clock_mhz) == ("it lies", 1200)
    assert known["a:1"].sample_cycles == pytest.approx(1.2e6)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 5}', "[" * 100_000, '{"a": {"aside": 1}}'])
def test_a_damaged_file_costs_nothing(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "boards.json"
    path.write_text(text)
    assert read_standings(path) == {}
    assert Roster(said.append, file=path).checked("a:1", GOOD, "")
    assert "a:1" in read_standings(path)
