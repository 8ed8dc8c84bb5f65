"""What our HTML pages have in common: one file each, nothing to fetch, the same colours and letters."""

from __future__ import annotations

from html import escape

from bitkiln.pipeline.support.text import printable

#: Colours of binary and of float layers, and of all others.
BINARY, FLOAT, OTHER = "#d9822b", "#3b6ea8", "#8a97a6"

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1d2733;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{padding:.25rem .5rem;border-bottom:1px solid #e3e8ee;text-align:right}td.t,th.t{text-align:left}
.bar{display:flex;height:1rem;background:#f2f4f7}.bar i{display:block;height:100%}
.key span{margin-right:1rem;white-space:nowrap}.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}
svg text{font:12px system-ui,sans-serif;fill:#1d2733}.note{color:#5a6775}
"""


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A page with the HTML ``body``; ``title`` is text, ``style`` comes after what all pages share."""
    code = f"<script>{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{shown(title)}</title><style>{STYLE}{style}</style>
{body}
{code}</html>
"""


def shown(text: str, limit: int = 0) -> str:
    """Text out of a file as HTML, at most ``limit`` characters of it."""
    return escape(printable(text, limit))
