"""The table of assumptions: options that the model has, one line for each."""

from __future__ import annotations

import pytest

from benchmarks import assumptions
from bitkiln.pipeline.boards.board import LocalBoard
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.targets import load


def test_all_options_are_the_models() -> None:
    options = {option for each in assumptions.ASSUMPTIONS for option in each.options}
    names = dict(option.split("=") for option in options)
    simulator = LocalBoard(load("rasp3b"), options=tuple(options)).identity()["simulator"]
    assert all(name == "rule" or simulator[name] >= 0 for name in names)


def test_assumptions_differ() -> None:
    assert len({each.options for each in assumptions.ASSUMPTIONS}) == len(assumptions.ASSUMPTIONS)
    assert assumptions.ASSUMPTIONS[0].options == (), "the first line is the model as it is"


def test_the_table_goes_between_its_marks() -> None:
    text = assumptions.markdown(["net"], [1, 4], [["as it is", "10.0", "3.0"]])
    assert text.splitlines()[0] == "| ms, if on silicon | net, 1 thread | net, 4 threads |"
    document = f"before\n{assumptions.BEGIN}\nold\n{assumptions.END}\nafter\n"
    assert assumptions.into(document, text) == f"before\n{assumptions.BEGIN}\n{text}{assumptions.END}\nafter\n"
    with pytest.raises(BitkilnError, match="no lines"):
        assumptions.into("nothing here", text)
