"""The table's whole networks as a picture: a bar for each engine, SVG without scripts or outside fonts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.report import OURS, OURS_INT8, Row

_WIDTH, _BAR, _GAP, _LEFT, _RIGHT = 760, 20, 26, 120, 90
_COLOURS = {OURS: "#d9822b", OURS_INT8: "#d9822b"}
_OTHER = "#9db4cc"


def to_svg(rows: Sequence[Row], title: str) -> str:
    """Bars as long as each engine's time, a group for each network; single layers are left out."""
    works = [work for work in dict.fromkeys(row.work for row in rows) if " " not in work]
    parts, y = [f'<text x="0" y="18" font-size="15">{escape(title)}</text>'], 44
    for work in works:
        group = [row for row in rows if row.work == work and row.ms]
        parts.append(f'<text x="0" y="{y}" font-weight="bold">{escape(work)}</text>')
        parts += _bars(group, y + 8)
        y += 8 + len(group) * _BAR + _GAP
    body = "\n".join(parts)
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#1d2733"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img" {style}>\n'
        f'<rect width="{_WIDTH}" height="{y}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _bars(group: Sequence[Row], top: int) -> list[str]:
    longest = max((row.ms or 0 for row in group), default=1)
    parts = []
    for place, row in enumerate(sorted(group, key=lambda row: row.ms or 0)):
        y = top + place * _BAR
        width = (_WIDTH - _LEFT - _RIGHT) * (row.ms or 0) / longest
        colour = _COLOURS.get(row.engine, _OTHER)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(row.engine)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="{_BAR - 5}" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 14}">{row.ms:.1f} ms</text>')
    return parts
