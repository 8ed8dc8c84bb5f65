"""Building: stages, what is kept of them, and the verdict."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import BundleError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.verdict import build as stage
from bitkiln.pipeline.verdict.printing import lines, preparation
from tests.pipeline.test_schema import wrong
from tests.pipeline.verdict.conftest import UNTUNED


def again(model: Model, folder: Path) -> tuple[schema.Build, str]:
    """Build once more: the result and what was said."""
    said = io.StringIO()
    return stage.build(model, None, folder, UNTUNED, Console(file=said, width=200)), said.getvalue()


def test_a_build_says_all_there_is_to_say(built: schema.Build) -> None:
    assert not wrong(built, schema.Build)
    assert built["passed"] and built["totals"]["binary"] > 0
    assert built["ms"] and built["roof_share"] == pytest.approx(built["bound_ms"] / built["ms"])
    assert built["speeds"][0]["threads"] == 1 and "simulated Cortex-A53" in built["speeds"][0]["measured_by"]
    assert [dear["ms"] for dear in built["dearest"]] == sorted((dear["ms"] for dear in built["dearest"]), reverse=True)
    assert json.loads((Path(built["folder"]) / "build.json").read_text()) == built
    assert all(Path(page).read_text().startswith("<!doctype html>") for page in built["pages"])


def test_the_verdict_is_ten_lines(built: schema.Build) -> None:
    said = list(lines(built))
    assert len(said) == 10
    text = "\n".join(said)
    assert built["bundle"] in text and "bitkiln run" in text and "10 labels" in text and "(128, 128, 128)" in text


def test_a_second_build_keeps_everything(built: schema.Build, classifier: Model, tmp_path: Path) -> None:
    shutil.copytree(built["folder"], tmp_path / "small")
    made, _ = again(classifier, tmp_path / "small")
    assert all(each["kept"] for each in made["stages"] if each["name"] != "tune")
    assert made["ms"] == built["ms"]


def test_an_interrupted_build_goes_on(
    built: schema.Build, classifier: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(built["folder"], folder)
    for name in ("verify", "profile"):
        (folder / "stages" / f"{name}.json").unlink()
    (folder / "stages" / "check.json").write_text("{ torn")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "verify_bundle", interrupted)
        again(classifier, folder)
    made, _ = again(classifier, folder)
    kept = {each["name"]: each["kept"] for each in made["stages"]}
    assert kept["check"] and kept["compile"] and not kept["verify"] and not kept["profile"]


def test_another_model_is_compiled_anew(built: schema.Build, classifier: Model, tmp_path: Path) -> None:
    shutil.copytree(built["folder"], tmp_path / "small")
    made, _ = again(replace(classifier, labels=classifier.labels[::-1]), tmp_path / "small")
    assert not any(each["kept"] for each in made["stages"])


def test_what_no_build_made_is_left_alone(classifier: Model, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(BundleError, match="mine: exists and no build made it"):
        again(classifier, tmp_path / "mine")


def test_a_gain_is_said_and_so_is_none(built: schema.Build) -> None:
    task = schema.Task(
        workload="w", occurrences=1, default_ms=4.0, best_ms=2.0, gain=2.0, trials=9, failures=0, knobs={}
    )
    tuning = schema.Tune(
        schema="bitkiln.tune/1", models=["m"], target="rasp3b", logs="l", default_ms=4.0, best_ms=2.0, gain=2.0,
        measured_by="x", tasks=[task],
    )  # fmt: skip
    faster = "\n".join(lines({**built, "tuning": tuning}))
    assert "2.00 times: tuned layers 4.00 ms by default, 2.00 ms now" in faster
    same = "\n".join(lines({**built, "tuning": {**tuning, "gain": 1.0, "best_ms": 4.0}}))
    assert "nothing: in 9 trials" in same


@pytest.mark.parametrize(
    ("resize", "words"),
    [("stretch", "stretched to 8 x 6"), ("short-side", "short side to 9"), ("letterbox", "bars of 114")],
)
def test_preparation_in_words(resize: str, words: str) -> None:
    how = {"width": 8, "height": 6, "resize": resize, "resize_to": 9, "fill": 114.0, "channel_order": "BGR"}
    assert words in preparation({**how, "mean": [0.5], "scale": [2.0]})


@pytest.mark.parametrize(
    ("kind", "binary", "said"),
    [
        ("conv2d", False, "in floats, 120% of its roof, by Winograd's method"),
        ("bconv2d", True, "on bits, 120% of its roof"),
        ("qconv2d", False, "in 8 bits, 120% of the roof of floats"),
    ],
)
def test_what_a_step_computes_with_and_how_near_its_roof_it_is(kind: str, binary: bool, said: str) -> None:
    step: Any = {"kind": kind, "binary": binary, "macs": 9, "roof_share": 1.2, "causes": {}, "cycles": 100.0}
    assert stage.why(step, "") == said
