"""Comparing: what belongs together, and what is said of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bitkiln import targets
from bitkiln.pipeline import api, schema
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.verdict import compare as stage
from bitkiln.pipeline.verdict.compare_page import render
from tests.pipeline.test_schema import wrong


def cell(name: str, macs: int, binary: bool = False, ms: float | None = None) -> schema.Cell:
    return {
        "name": name, "kind": "conv2d", "binary": binary, "macs": macs, "weight_bytes": 4, "bound_ms": 1.0, "ms": ms,
    }  # fmt: skip


def names(rows: list[list[schema.Cell | None]]) -> list[list[str | None]]:
    return [[None if each is None else each["name"] for each in row] for row in rows]


def test_layers_of_one_name_belong_together() -> None:
    a = [cell("stem", 10), cell("body", 20), cell("head", 30)]
    b = [cell("stem", 10), cell("body", 25, True), cell("extra", 5), cell("head", 30)]
    assert names(stage.align([a, b])) == [["stem", "stem"], ["body", "body"], [None, "extra"], ["head", "head"]]


def test_where_names_differ_work_tells() -> None:
    a = [cell("a", 10), cell("b", 20), cell("c", 30)]
    b = [cell("x", 10), cell("y", 30)]
    c = [cell("k", 20), cell("l", 30)]
    assert names(stage.align([a, b, c])) == [["a", "x", None], ["b", None, "k"], ["c", "y", "l"]]


def test_a_model_and_its_bundle(built: schema.Build, classifier, bundle: Path) -> None:
    found = stage.compare(
        [stage.of_model(classifier, targets.load("rasp3b"), "small"), stage.of_bundle(bundle, True, "b")]
    )
    assert not wrong(found, schema.Compare)
    model, compiled = found["items"]
    assert model["ms"] is None and compiled["ms"] and "simulated Cortex-A53" in (compiled["measured_by"] or "")
    assert model["macs"] == compiled["macs"] and model["binary_macs"] == compiled["binary_macs"]
    measured = [row[1]["ms"] for row in found["layers"] if row[1] is not None]
    assert sum(measured) == pytest.approx(compiled["ms"])
    paired = [row for row in found["layers"] if all(row)]
    assert len(paired) == len(found["layers"]), "each layer of the model is a step of its bundle"
    assert all(row[0]["name"] == row[1]["name"] for row in paired)


def test_builds_and_profiles_are_items_too(built: schema.Build, tmp_path: Path) -> None:
    profile = Path(built["folder"]) / "profile.json"
    found = api.compare(built["folder"], profile, measure=False)
    assert [item["kind"] for item in found["items"]] == ["bundle", "profile"]
    assert found["items"][0]["ms"] is None and found["items"][1]["ms"] == built["ms"]
    said = io.StringIO()
    stage.print_comparison(found, Console(file=said, width=200))
    assert "B measured by: simulated Cortex-A53" in said.getvalue()
    assert all(len(line) <= 200 for line in said.getvalue().splitlines())
    for text in ("{}", "nonsense", json.dumps({"schema": "bitkiln.profile/1", "target": "rasp3b", "steps": 3})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match=r"x\.json: not what bitkiln profile --json prints"):
            api.compare(tmp_path / "x.json")


def test_the_page_escapes_names(classifier) -> None:
    item = stage.of_model(replace(classifier, name="m"), targets.load("rasp3b"), "<script>alert(1)</script>\x1b[2J")
    page = render(stage.compare([item, item]))
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert "http" not in page and "prefers-color-scheme:dark" in page
