"""A profile as a self-contained HTML page: a bar for each layer and a roofline plot, no script, nothing to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable

from bitkiln.pipeline.profile import CAUSES, LayerProfile, Profile, describe_causes, dram_mb_s, shown_percent
from bitkiln.pipeline.support.page import BINARY, FLOAT, page, shown
from bitkiln.targets import Target

COLOURS = dict(
    zip(CAUSES, ("#3b6ea8", "#7fa7d1", "#9bbf85", "#e0c15a", "#d9822b", "#b05a7a", "#8d8d8d", "#5f5f5f"), strict=True)
)
#: Cycles of which the board does not say what they were spent on.
UNKNOWN = "#c9d3de"

#: Turns a value into a position along one axis of the plot.
Axis = Callable[[float], float]


def render(profile: Profile, target: Target) -> str:
    """The page as text."""
    longest = max((layer.cycles for layer in profile.layers), default=1.0)
    rows = "\n".join(_row(layer, longest) for layer in profile.layers)
    key = "".join(f'<span><i style="background:{colour}"></i>{cause}</span>' for cause, colour in COLOURS.items())
    body = f"""<h1>{shown(profile.bundle)}: {profile.ms:.2f} ms a frame</h1>
<p class="note">Target {shown(profile.target)}, {shown(target.description)}. Measured by: {shown(profile.measured_by)}.</p>
<h2>Where the cycles go, layer by layer</h2><p class="key">{key}</p>
<table><tr><th class="t">layer</th><th class="t">kind</th><th>ms</th><th>share</th><th>MAC/cycle</th><th>% of roof</th>
<th class="t" style="width:40%">cycles</th></tr>
{rows}
</table>
<h2>Roofline</h2>
<p class="note">Each dot is a layer; its area grows with its share of the time. The lines are the bounds of {_cores(profile)}:
peak MACs a cycle, and DRAM bandwidth for the weights that have to be read once a frame. MACs are those of a direct convolution:
Winograd's method needs fewer multiplications, so a layer computed by it may stand above its roof.</p>
{_roofline(profile, target)}"""
    return page(f"{profile.bundle} on {profile.target}", body)


def _cores(profile: Profile) -> str:
    return "one core" if profile.threads == 1 else f"{profile.threads} cores"


def _row(layer: LayerProfile, longest: float) -> str:
    roof = shown_percent(layer.roof_percent)
    rate = f"{layer.mac_per_cycle:.2f}" if layer.macs else ""
    return (
        f'<tr><td class="t">{shown(layer.called)}</td><td class="t">{shown(layer.kind)}</td><td>{layer.ms:.3f}</td>'
        f"<td>{layer.share:.1%}</td><td>{rate}</td><td>{roof}</td>"
        f'<td title="{shown(describe_causes(layer))}"><div class="bar">{_segments(layer, longest)}</div></td></tr>'
    )


def _segments(layer: LayerProfile, longest: float) -> str:
    if not layer.causes:
        return f'<i style="width:{100 * layer.cycles / longest:.2f}%;background:{UNKNOWN}"></i>'
    widths = [(COLOURS[cause], 100 * layer.causes.get(cause, 0.0) / longest) for cause in CAUSES]
    return "".join(f'<i style="width:{width:.2f}%;background:{colour}"></i>' for colour, width in widths if width > 0)


def _roofline(profile: Profile, target: Target) -> str:
    """Attained MACs a cycle over MACs a byte of weights, both logarithmic, as inline SVG."""
    width, height, left, bottom = 900, 420, 60, 40
    low_x, high_x, low_y, high_y = -1.0, 4.5, -1.5, 2.0

    def px(intensity: float) -> float:
        return left + (min(max(math.log10(intensity), low_x), high_x) - low_x) / (high_x - low_x) * (width - left - 20)

    def py(rate: float) -> float:
        return 20 + (high_y - min(max(math.log10(rate), low_y), high_y)) / (high_y - low_y) * (height - bottom - 20)

    parts = [_grid(px, py, (low_x, high_x), (low_y, high_y))]
    bandwidth = dram_mb_s(target, profile.threads) / target.mhz
    for kind, colour in (("f32", FLOAT), ("binary", BINARY)):
        peak = profile.threads * target.cpu[f"peak_{kind}_mac_per_cycle"]
        corner = peak / bandwidth
        start, end = 10**low_x, 10**high_x
        points = f"{px(start)},{py(start * bandwidth)} {px(corner)},{py(peak)} {px(end)},{py(peak)}"
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = f"{'float' if kind == 'f32' else 'binary'} roof, {peak:g} MAC/cycle"
        parts.append(f'<text x="{px(end) - 190}" y="{py(peak) - 6}">{label}</text>')
    for layer in profile.layers:
        if layer.macs and layer.cycles:
            parts.append(_dot(layer, px, py))
    parts.append(f'<text x="{width // 2 - 80}" y="{height - 4}">MACs a byte of weights</text>')
    parts.append(
        f'<text x="14" y="{height // 2 + 40}" transform="rotate(-90 14 {height // 2 + 40})">MACs a cycle</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="roofline plot">{"".join(parts)}</svg>'


def _grid(px: Axis, py: Axis, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    lines = []
    for exponent in range(math.ceil(x_range[0]), math.floor(x_range[1]) + 1):
        x = px(10.0**exponent)
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="{py(10 ** y_range[1])}" y2="{py(10 ** y_range[0])}" stroke="#eef1f5"/>'
        )
        lines.append(f'<text x="{x - 8}" y="{py(10 ** y_range[0]) + 16}">{10.0**exponent:g}</text>')
    for exponent in range(math.ceil(y_range[0]), math.floor(y_range[1]) + 1):
        y = py(10.0**exponent)
        lines.append(
            f'<line y1="{y}" y2="{y}" x1="{px(10 ** x_range[0])}" x2="{px(10 ** x_range[1])}" stroke="#eef1f5"/>'
        )
        lines.append(f'<text x="30" y="{y + 4}">{10.0**exponent:g}</text>')
    return "".join(lines)


def _dot(layer: LayerProfile, px: Axis, py: Axis) -> str:
    colour = BINARY if layer.binary else FLOAT
    radius = 4 + 22 * math.sqrt(layer.share)
    place = f'cx="{px(layer.intensity):.1f}" cy="{py(layer.mac_per_cycle):.1f}" r="{radius:.1f}"'
    title = f"{shown(layer.called)}: {layer.mac_per_cycle:.2f} MAC/cycle, {layer.ms:.3f} ms"
    return f'<circle {place} fill="{colour}" fill-opacity="0.45" stroke="{colour}"><title>{title}</title></circle>'
