"""The timing model held against a board: what its figures say of the model's assumptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import against
from benchmarks.assumptions import ASSUMPTIONS
from bitkiln import targets
from bitkiln.pipeline.evidence import read_part
from bitkiln.targets.sim import evidence

RASP3B = targets.load("rasp3b")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "evidence"
    evidence.build(path, RASP3B)
    return path


def probes(program: Path, *options: str) -> dict[str, float]:
    _, _, rows = read_part("probes", evidence.on_model(program, "probes", RASP3B, options), "the model")
    return {row.name: row.cycles for row in rows}


@pytest.mark.parametrize("index", [1, 2, 4, 5, 9, 11])
def test_a_board_on_which_an_assumption_holds_is_recognised(program: Path, index: int) -> None:
    assumption = ASSUMPTIONS[index]
    if assumption.options[0].startswith("rule="):
        pytest.skip("told by sequences, not by probes")
    plain, other = probes(program), probes(program, *assumption.options)
    assert against.verdict(assumption, plain, plain, other).says.startswith("no")
    assert against.verdict(assumption, other, plain, other).says.startswith("yes")
    between = {name: (plain[name] + other[name]) / 2 for name in plain}
    assert against.verdict(assumption, between, plain, other).says == "undecided"


def test_what_no_row_tells_is_not_measured() -> None:
    same = {"chase": 100.0}
    assert against.verdict(ASSUMPTIONS[1], same, same, same).says == "not measured"


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert against.main(tmp_path / "none.json", markdown=False) == 2
    assert "none.json" in capsys.readouterr().err
