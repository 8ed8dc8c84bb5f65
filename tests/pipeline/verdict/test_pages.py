"""Every page in a real browser, on a phone, a laptop and a wide screen, light and dark: no errors, no requests, nothing beyond
the window's edge, the same structure everywhere; keys, zoom, search, filter and sorting do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from bitkiln import targets
from bitkiln.pipeline import api, schema
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.inspect import page as inspect_page
from bitkiln.pipeline.verdict import card as cards
from bitkiln.pipeline.verdict.compare_page import render as comparison
from tests.pipeline.verdict.test_card import with_accuracy

WIDTHS = (390, 1280, 2560)
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}

#: In each page: what stands in it, then what it does when it is used, for the page around it to ask.
PROBE = """<script>
window.errors = [];
window.addEventListener('error', function (event) { window.errors.push(event.message); });
window.probe = function () {
  function all(selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); }
  function texts(selector) { return all(selector).map(function (each) { return each.textContent.trim(); }); }
  function key(name) { document.body.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true })); }
  function type(field, text) { field.value = text; field.dispatchEvent(new Event('input')); }
  function sorted(table, head) {
    var heads = all(table + ' th'), at = heads.map(function (each) { return each.textContent.trim(); }).indexOf(head);
    heads[at].querySelector('button').click();
    return { sort: heads[at].getAttribute('aria-sort'), column: all(table + ' tbody tr').map(function (row) {
      return row.cells[at].textContent.trim(); }) };
  }
  var seen = { width: document.documentElement.scrollWidth, window: innerWidth,
    paper: getComputedStyle(document.body).backgroundColor, tags: {},
    requests: performance.getEntriesByType('resource').length };
  all('body *').forEach(function (each) { seen.tags[each.tagName] = (seen.tags[each.tagName] || 0) + 1; });
  USED
  seen.errors = window.errors;
  return seen;
};
</script>"""

USED = {
    "inspect": """
      var draw = document.querySelector('.draw'); seen.before = draw.style.transform; key('0'); seen.all = draw.style.transform;
      key('1'); key('+'); seen.closer = draw.style.transform; key('j'); seen.first = texts('.node.on b'); key('j'); key('k');
      seen.again = texts('.node.on b'); type(document.getElementById('search'), 'bconv_36'); seen.hits = texts('.node.hit b');
      key('Escape'); seen.left = all('.node.on').length;""",
    "profile": "seen.ms = sorted('table.sortable', 'ms'); seen.dots = all('circle').length;",
    "compare": "seen.macs = sorted('#layers', 'MACs'); sorted('#layers', 'MACs'); seen.back = sorted('#layers', 'MACs');",
    "card": "seen.facts = texts('.facts th');",
    "gallery": """
      seen.up = (sorted('#cards', 'ms'), sorted('#cards', 'ms')); type(document.getElementById('filter'), 'fast');
      seen.shown = texts('#cards tbody tr:not(.hidden) a'); seen.best = all('circle.best').length;""",
}

#: Holds every page in frames of each width and mode, and gathers what they say.
AROUND = """<!doctype html><meta charset="utf-8"><body><script>
var wanted = FRAMES;
wanted.forEach(function (each) {
  var frame = document.createElement('iframe');
  frame.name = each.name; frame.width = each.width; frame.height = 900; frame.style.colorScheme = each.mode;
  frame.src = each.page;
  document.body.appendChild(frame);
});
window.addEventListener('load', function () {
  var seen = {};
  wanted.forEach(function (each) { seen[each.name] = window.frames[each.name].probe(); });
  document.documentElement.setAttribute('data-seen', JSON.stringify(seen));
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def pages(built: schema.Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of a page of each kind."""
    folder = tmp_path_factory.mktemp("gallery")
    card = cards.make_card([Path(built["folder"])])
    for name, ms, right in (("fast", 10.0, 60), ("right", 50.0, 90), ("neither", 60.0, 55)):
        cards.write(with_accuracy(card, name, ms, right), folder / name)
    found = api.compare("card-binary", "card-float")
    original = schema.Reference(what="top 1", value="40 %", source="x" * 90, here="10 ms on 1 core")
    return {
        "inspect": inspect_page.render(inspect_model(load_model("card-binary"), [targets.load("rasp3b")])),
        "profile": (Path(built["folder"]) / "profile.html").read_text(encoding="utf-8"),
        "compare": comparison(found),
        "card": cards.page({**with_accuracy(card, "fast", 10.0, 60), "published": [original], "notes": ["y" * 90]}),
        "gallery": Path(api.gallery(folder)["page"]).read_text(encoding="utf-8"),
    }


@pytest.fixture(scope="module")
def seen(browser: str, pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each page says of itself, by kind, width and mode: all of them in one browser."""
    folder = tmp_path_factory.mktemp("pages")
    frames = []
    for kind, text in pages.items():
        probe = PROBE.replace("USED", USED[kind])
        (folder / f"{kind}.html").write_text(text.replace("<body>", f"<body>{probe}"), encoding="utf-8")
        for width in WIDTHS:
            frames += [
                {"name": f"{kind} {width} {mode}", "page": f"{kind}.html", "width": width, "mode": mode}
                for mode in PAPER
            ]
    around = folder / "around.html"
    around.write_text(AROUND.replace("FRAMES", json.dumps(frames)), encoding="utf-8")
    text = _dumped(browser, around, folder)
    found = re.search(r'data-seen="([^"]*)"', text)
    assert found, text[-3000:]
    result: dict[str, Any] = json.loads(unescape(found.group(1)))
    assert len(result) == len(frames)
    return result


def _dumped(browser: str, page: Path, folder: Path) -> str:
    """What the browser makes of a page once it is loaded, and what it says. None of its processes is left behind."""
    # Nothing of the browser's own goes out either; pages in files may ask each other.
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND",
               "--allow-file-access-from-files", "--window-size=2600,1000", f"--user-data-dir={folder / 'user'}"]  # fmt: skip
    with (folder / "said").open("w+b") as said:
        command = [browser, *options, "--dump-dom", page.as_uri()]
        # Its children may outlive it and hold a pipe open: a file has no such end to wait for.
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(240)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        said.seek(0)
        return said.read().decode(errors="replace")


@pytest.mark.parametrize("kind", USED)
def test_pages_are_whole_at_any_width_in_both_modes(seen: dict[str, Any], kind: str) -> None:
    rows = {name: row for name, row in seen.items() if name.startswith(f"{kind} ")}
    for name, row in rows.items():
        assert row["errors"] == [] and row["requests"] == 0, name
        assert row["width"] <= row["window"] == int(name.split()[1]), (
            f"{name}: something stands beyond the window's edge"
        )
        assert row["paper"] == PAPER[name.split()[2]], name
    assert len({json.dumps(row["tags"], sort_keys=True) for row in rows.values()}) == 1


@pytest.mark.parametrize("kind", USED)
def test_pages_name_no_other_place(pages: dict[str, str], kind: str) -> None:
    assert not re.search(r'(?:src|href)="(?:https?:)?//|url\(', pages[kind])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_graph_by_keys(seen: dict[str, Any], width: int) -> None:
    row = seen[f"inspect {width} dark"]
    assert row["before"] != row["all"] != row["closer"], "0 shows the whole graph, + comes closer"
    assert row["first"] == row["again"] == ["conv_1"] and "bconv_36" in row["hits"] and row["left"] == 0


def test_tables_are_sorted_and_filtered(seen: dict[str, Any], built: schema.Build) -> None:
    times = [float(cell) for cell in seen["profile 1280 light"]["ms"]["column"]]
    assert times == sorted(times, reverse=True) and seen["profile 1280 light"]["ms"]["sort"] == "descending"
    compared = seen["compare 1280 light"]
    assert compared["macs"]["sort"] == "descending" and compared["back"]["sort"] is None
    assert compared["macs"]["column"][-1] == "", "rows without a figure come last"
    assert sorted(compared["back"]["column"]) == sorted(compared["macs"]["column"]) != compared["back"]["column"]
    gallery = seen["gallery 390 dark"]
    assert gallery["up"]["sort"] == "ascending" and gallery["up"]["column"] == ["10.00", "50.00", "60.00"]
    assert gallery["shown"] == ["fast"] and gallery["best"] == 2


def test_a_card_has_its_rows(seen: dict[str, Any]) -> None:
    facts = seen["card 390 light"]["facts"]
    assert {"Accuracy", "Performance", "Size", "Input", "Output"} <= set(facts)
