"""Cards and galleries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bitkiln.pipeline import api, schema
from bitkiln.pipeline.bundle import open_bundle
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.verdict import card as stage
from bitkiln.pipeline.verdict import gallery
from bitkiln.pipeline.verdict.evaluate.counting import interval
from tests.pipeline.test_schema import wrong


@pytest.fixture
def card(built: schema.Build) -> schema.Card:
    return stage.make_card([Path(built["folder"])], notes=["Trained by <b>nobody</b> | at all"])


def with_accuracy(card: schema.Card, name: str, ms: float, right: int) -> schema.Card:
    """The card as if its network were that fast and that often right."""
    rate = interval(right, 100)
    accuracy: schema.Evaluate = {
        "schema": "bitkiln.evaluate/1", "bundle": "b", "model": name, "network_sha256": "", "images": "i", "count": 100,
        "task": "classify", "classes": 10, "confidence": 0.95, "top1": rate, "top5": rate,
        "objects": None, "map50": None, "map": None, "by_class": [], "failed": [], "measured_by": "m", "results": "r",
    }  # fmt: skip
    speed: schema.Speed = {"target": "rasp3b", "threads": 1, "ms": ms, "measured_by": "simulated"}
    return {**card, "model": name, "accuracy": accuracy, "speeds": [speed]}


def test_a_card_has_what_a_build_found(card: schema.Card, built: schema.Build) -> None:
    assert not wrong(card, schema.Card)
    assert card["speeds"] == built["speeds"] and card["accuracy"] is None
    rows = {row["name"]: row for row in card["architecture"]}
    assert rows["first"]["binary"] and rows["first"]["padding"] == [1, 1, 1, 1] and rows["first"]["shape"][-1] > 0
    assert sum(row["macs"] for row in rows.values()) == card["macs"]


def test_accuracy_counts_only_for_the_same_network(built: schema.Build, card: schema.Card, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    shutil.copytree(built["folder"], folder)
    known = with_accuracy(card, "small", 1.0, 80)["accuracy"]
    digest = open_bundle(folder / "bundle").manifest["files"]["model.so"]["sha256"]
    for network, accuracy in (("0" * 64, None), (digest, 0.8)):
        text = json.dumps({**known, "network_sha256": network})
        (folder / "bundle-evaluation.json").write_text(text)
        found = stage.make_card([folder])["accuracy"]
        assert (found and found["top1"]["value"]) == accuracy


def test_cards_are_written_in_three_forms(card: schema.Card, tmp_path: Path) -> None:
    markdown, page, data = (path.read_text() for path in stage.write(card, tmp_path / "small"))
    assert json.loads(data) == card
    assert "&lt;b>nobody" in markdown and "\\| at all" in markdown
    assert "<b>nobody" not in page and "&lt;b&gt;nobody" in page and "prefers-color-scheme:dark" in page
    assert "10 classes, such as thing 0" in markdown and "simulated Cortex-A53" in page


def test_a_bundle_alone_has_a_card_of_steps(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "alone")
    found = stage.make_card([tmp_path / "alone"])
    assert not wrong(found, schema.Card) and found["speeds"] == []
    assert found["architecture"][0]["name"] == "lv"
    assert "not measured" in stage.markdown(found)


def test_one_card_is_of_one_model(bundle: Path, compiled_toy: Path) -> None:
    with pytest.raises(InputError, match="is of toy, not of small"):
        stage.make_card([bundle, compiled_toy])


def test_figures_stand_beside_the_originals(card: schema.Card, built: schema.Build, tmp_path: Path) -> None:
    folder = tmp_path / "card-float"
    shutil.copytree(built["folder"], folder)
    manifest = folder / "bundle" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "small"', '"name": "card-float"', 1))
    speed: schema.Speed = {"target": "rasp3b-700", "threads": 4, "ms": 12.5, "measured_by": "simulated, 4 cores, v2"}
    made = folder / "build.json"
    made.write_text(json.dumps({**built, "speeds": [speed]}))
    found = stage.make_card([folder])
    rows = {row["what"]: (row["value"], row["here"]) for row in found["published"]}
    assert rows["Raspberry Pi 3 (Raspbian) at 700 MHz"] == ("590 ms", "12.50 ms on 4 cores (simulated, v2)")
    assert rows["top 1 on ILSVRC2012"] == ("60.11 %", "not evaluated") and rows["uncompressed size"][0] == "98 MB"
    assert all("ELL gallery" in row["source"] for row in found["published"])
    assert "590 ms" in stage.page(found) and "| 590 ms | 12.50 ms" in stage.markdown(found)


def test_a_gallery_marks_the_best(card: schema.Card, tmp_path: Path) -> None:
    for name, ms, right in (("fast", 10.0, 60), ("right", 50.0, 90), ("neither", 60.0, 55)):
        stage.write(with_accuracy(card, name, ms, right), tmp_path / name)
    stage.write(card, tmp_path / "unknown")
    found = gallery.entries(tmp_path, tmp_path / "index.html")
    assert {entry["name"] for entry in found if entry["best"]} == {"fast", "right"}
    made = api.gallery(tmp_path, title="Mine & yours")
    assert not wrong(made, schema.Gallery)
    text = Path(made["page"]).read_text()
    assert (
        text.count("<circle") == 3
        and text.count("<tr data-cores") == 3 + len(card["speeds"])
        and 'href="fast/card.html"' in text
    )
    assert "Mine &amp; yours" in text and "<polyline" in text and "http" not in text


def test_a_gallery_without_figures_says_so(card: schema.Card, tmp_path: Path) -> None:
    stage.write(card, tmp_path / "x")
    assert "nothing to plot" in Path(api.gallery(tmp_path)["page"]).read_text()


def test_what_is_no_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cards in there"):
        gallery.entries(tmp_path, tmp_path / "index.html")
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(InputError, match=r"card\.json: no card"):
        gallery.entries(tmp_path, tmp_path / "index.html")
