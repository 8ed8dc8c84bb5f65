"""A profile as a self-contained HTML page: each layer's time beside its bound, what it went into, and a roofline plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bitkiln.pipeline.profile import CAUSES, LayerProfile, Profile, describe_causes
from bitkiln.pipeline.support.templating import render as render_template
from bitkiln.targets import Target

COLOURS = dict(
    zip(CAUSES, ("#3b6ea8", "#7fa7d1", "#9bbf85", "#e0c15a", "#d9822b", "#b05a7a", "#8d8d8d", "#5f5f5f"), strict=True)
)
#: Cycles of which the board does not say what they were spent on.
UNKNOWN = "#a9b6c4"
#: Size of the plot and what its axes' figures take; both axes are logarithmic, from and to these powers of ten.
WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 900, 420, 60, 40, 20
ACROSS, UP = (-1.0, 4.5), (-1.5, 2.0)

#: Turns a value into a position along one axis of the plot.
Axis = Callable[[float], float]


def render(profile: Profile, target: Target, others: Mapping[str, str] | None = None) -> str:
    """The page as text; ``others`` are links to pages of the same network, by what they are called."""
    longest = max((layer.cycles for layer in profile.layers), default=1.0) or 1.0
    return render_template(
        "profile/templates/profile.html",
        title=f"{profile.model or profile.bundle}: {profile.ms:.2f} ms a frame",
        profile=profile,
        others=others or {},
        target=target,
        cores="one core" if profile.threads == 1 else f"{profile.threads} cores",
        roof=profile.bound_ms / profile.ms if profile.ms else None,
        colours=COLOURS,
        rows=[
            {"layer": layer, "causes": describe_causes(layer), "parts": _parts(layer, longest)}
            for layer in profile.layers
        ],
        bound_at=[100 * (layer.roof_ms or 0.0) * profile.mhz * 1e3 / longest for layer in profile.layers],
        plot=_plot(profile, target),
    )


def _parts(layer: LayerProfile, longest: float) -> list[tuple[str, str, float]]:
    """What the cycles went into: name, colour and length in percent of the longest layer."""
    if not layer.causes:
        return [("", UNKNOWN, 100 * layer.cycles / longest)]
    parts = [(cause, COLOURS[cause], 100 * layer.causes.get(cause, 0.0) / longest) for cause in CAUSES]
    return [part for part in parts if part[2] > 0]


def _x(intensity: float) -> float:
    low, high = ACROSS
    return LEFT + (min(max(math.log10(intensity), low), high) - low) / (high - low) * (WIDTH - LEFT - EDGE)


def _y(rate: float) -> float:
    low, high = UP
    return EDGE + (high - min(max(math.log10(rate), low), high)) / (high - low) * (HEIGHT - BOTTOM - EDGE)


def _plot(profile: Profile, target: Target) -> dict[str, Any]:
    """Attained MACs a cycle over MACs a byte of weights: the lines of the roofs, and a dot for each layer."""
    bandwidth = target.dram_mb_s(profile.threads) / target.mhz
    start, end = 10 ** ACROSS[0], 10 ** ACROSS[1]
    roofs = []
    for kind, name in (("f32", "float"), ("binary", "binary")):
        peak = profile.threads * target.cpu[f"peak_{kind}_mac_per_cycle"]
        corner = peak / bandwidth
        points = ((start, start * bandwidth), (corner, peak), (end, peak))
        line = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in points)
        roofs.append({"kind": name, "line": line, "y": _y(peak) - 6, "text": f"{name} roof, {peak:g} MAC/cycle"})
    dots = [
        {
            "layer": layer,
            "x": _x(layer.intensity),
            "y": _y(layer.mac_per_cycle),
            "radius": 4 + 22 * math.sqrt(layer.share),
        }
        for layer in profile.layers
        if layer.macs and layer.cycles
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "top": EDGE,
        "bottom": HEIGHT - BOTTOM,
        "right": WIDTH - EDGE,
        "roofs": roofs,
        "dots": sorted(dots, key=lambda dot: -dot["radius"]),
        "across": [
            (_x(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(ACROSS[0]), math.floor(ACROSS[1]) + 1)
        ],
        "up": [(_y(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(UP[0]), math.floor(UP[1]) + 1)],
    }
