"""Pages in a real browser: no errors, no requests, nothing wider than the window, light and dark, zoom and search by keys."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitkiln import targets
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.inspect import inspect_model, page

#: Runs in the page: reports what went wrong, and what keys did, into its title.
PROBE = """<script>
window.errors = [];
window.addEventListener('error', function (event) { window.errors.push(event.message); });
window.addEventListener('load', function () {
  function key(name) { document.body.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true })); }
  var width = document.documentElement.scrollWidth, draw = document.querySelector('.draw'), before = draw.style.transform;
  var visible = getComputedStyle(document.body).backgroundColor;
  key('0'); var all = draw.style.transform; key('j');
  var chosen = document.querySelector('.node.on b').textContent;
  var search = document.getElementById('search');
  search.value = 'bconv_36'; search.dispatchEvent(new Event('input'));
  var hits = Array.prototype.map.call(document.querySelectorAll('.node.hit b'), function (node) { return node.textContent; });
  key('Escape');
  document.documentElement.setAttribute('data-probe', JSON.stringify({ errors: window.errors, width: width,
    window: innerWidth, before: before, all: all, chosen: chosen, hits: hits, paper: visible,
    after: document.querySelectorAll('.node.on').length }));
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the binary card, with the probe in it."""
    path = tmp_path_factory.mktemp("pages") / "card.html"
    text = page.render(inspect_model(load_model("card-binary"), [targets.load("rasp3b")]))
    path.write_text(text.replace("<body>", f"<body>{PROBE}"), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(500, False), (1400, True), (2560, False)])
def test_the_page_of_a_network(browser: str, probed: Path, tmp_path: Path, width: int, dark: bool) -> None:
    import json
    from html import unescape

    options = [f"--window-size={width},900", f"--user-data-dir={tmp_path}", "--no-sandbox", "--disable-gpu"]
    options += ["--headless=new", "--virtual-time-budget=3000", "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([browser, *options, probed.as_uri()], capture_output=True, text=True, timeout=180)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(unescape(found.group(1)))
    assert seen["errors"] == []
    assert seen["width"] <= seen["window"], "nothing stands beyond the window's edge"
    assert seen["chosen"] == "conv_1" and "bconv_36" in seen["hits"] and seen["after"] == 0
    assert seen["before"] != seen["all"], "0 shows the whole graph"
    assert (seen["paper"] == "rgb(20, 24, 29)") == dark
    assert not re.search(r'(?:src|href)="(?:https?:)?//', done.stdout)
