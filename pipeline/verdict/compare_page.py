"""A comparison as a page."""

from __future__ import annotations

from bitkiln.pipeline import schema
from bitkiln.pipeline.support.templating import render as render_template
from bitkiln.pipeline.verdict.compare import factor


def render(found: schema.Compare) -> str:
    """The page as text."""
    items = found["items"]
    times = [cell["ms"] or cell["bound_ms"] or 0.0 for row in found["layers"] for cell in row if cell is not None]
    return render_template(
        "verdict/templates/compare.html",
        title=" and ".join(item["name"] for item in items) if len(items) < 3 else f"{len(items)} variants",
        items=items,
        letters=[chr(ord("A") + at) for at in range(len(items))],
        factors=[factor(item, items[0]) for item in items],
        layers=found["layers"],
        longest=max(times, default=1.0) or 1.0,
    )
