"""A build's verdict on a terminal: ten lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitkiln.pipeline import schema
from bitkiln.pipeline.support.text import printable


def lines(made: schema.Build) -> Iterator[str]:
    """What runs, on bits or not, how fast, what was gained, what costs most, how photos are prepared, what to type next."""
    yield f"{made['model']} on {made['target']}: {made['verdict']}"
    if not made["passed"]:
        yield from (f"  {reason}" for reason in made["reasons"][:4])
    yield f"on bits:  {_bits(made['totals'])}"
    yield f"time:     {_time(made)}"
    yield f"gained:   {_gained(made)}"
    for at, dear in enumerate(made["dearest"]):
        name = printable(dear["name"], 40)
        label = "dearest:" if at == 0 else ""
        yield f"{label:<9} {name}: {dear['ms']:.2f} ms, {dear['share']:.0%}: {dear['why']}"
    yield f"photos:   {_photos(made)}"
    pages = ", ".join(Path(page).name for page in made["pages"])
    yield f"bundle:   {made['bundle']}, {made['file_bytes'] / 1e6:.1f} MB; pages in {made['folder']}: {pages}"
    yield f"next:     {'  or  '.join(made['next'])}"


def _bits(totals: schema.Totals) -> str:
    macs = totals["binary_macs"] + totals["float_macs"]
    share = f", {totals['binary_macs'] / macs:.0%} of the MACs" if macs else ""
    return f"{totals['binary']} of {totals['convolutions']} convolutions and dense layers{share if totals['binary'] else ''}"


def _time(made: schema.Build) -> str:
    if made["ms"] is None or made["roof_share"] is None:
        return f"not measured: no simulated board times {made['target']}; the bound is {made['bound_ms']:.4g} ms"
    bound = f"bound {made['bound_ms']:.4g} ms" + (" of direct convolutions" if made["roof_share"] > 1 else "")
    return f"{timed(made['speeds'])}; {made['roof_share']:.0%} of the roof on one ({bound})"


def timed(speeds: Sequence[schema.Speed]) -> str:
    """Times of one board and what measured them, which is the same for any number of cores."""
    times = [f"{each['ms']:.2f} ms on {_cores(each['threads'])}" for each in speeds]
    clocks = dict.fromkeys(re.sub(r", \d+ cores?\b", "", each["measured_by"]) for each in speeds)
    return f"{', '.join(times)} ({'; '.join(clocks)})"


def _cores(threads: int) -> str:
    return "1 core" if threads == 1 else f"{threads} cores"


def _gained(made: schema.Build) -> str:
    kernels, tuning = made["kernels"], made["tuning"]
    untuned = kernels.get("default", 0)
    if tuning is None:
        return _recorded(made["by_records"], kernels.get("tuned", 0)) + (
            f"; {untuned} kernels by default, which tuning may make faster" if untuned else ""
        )
    known = f"{kernels.get('tuned', 0)} kernels by tuning records, {untuned} by default"
    if not tuning["tasks"]:
        return "nothing: no layer leaves a choice of kernels"
    gain, trials = tuning["gain"] or 1.0, sum(task["trials"] for task in tuning["tasks"])
    times = f"tuned layers {tuning['default_ms']:.2f} ms by default, {tuning['best_ms']:.2f} ms now ({tuning['measured_by']})"
    if gain >= 1.005:
        return f"{gain:.2f} times: {times}; {known}"
    if trials <= len(tuning["tasks"]):
        return f"nothing yet: the time ended with the {trials} defaults, before the search (--minutes); {known}"
    return f"nothing: in {trials} trials no kernel beat what defaults and records gave; {known}"


def _recorded(gain: schema.Gain | None, kernels: int) -> str:
    """What records of earlier tuning gain for so many kernels, in words."""
    if gain is None:
        return f"not tuned now; {kernels} kernels by tuning records" if kernels else "not tuned now"
    times = (
        f"{gain['kernels']} kernels {gain['default_ms']:.2f} ms by default, {gain['best_ms']:.2f} ms by tuning records"
    )
    return f"{gain['gain']:.2f} times: {times}" if gain["gain"] >= 1.005 else f"nothing: {times}"


def _photos(made: schema.Build) -> str:
    how = made["preprocessing"]
    labels = f"{made['labels']} labels" if made["labels"] else "no labels (--labels FILE)"
    if not how:
        return f"the input is no image, or the file does not say how one is prepared (--mean, --scale, ...); {labels}"
    return f"{preparation(how)}; {labels}"


def preparation(how: dict[str, Any]) -> str:
    """How an image becomes the input, in words."""
    size = f"{how['width']} x {how['height']}"
    resized = {
        "stretch": f"stretched to {size}",
        "short-side": f"short side to {how.get('resize_to')}, centre crop {size}",
        "letterbox": f"fitted into {size} between bars of {how.get('fill', 0):g}",
    }[how["resize"]]
    mean, scale = (", ".join(f"{value:.6g}" for value in how[name]) for name in ("mean", "scale"))
    steps = [f"({mean}) subtracted"] if any(how["mean"]) else []
    steps += [f"times ({scale})"] if set(how["scale"]) != {1.0} else []
    return f"{resized}, {how['channel_order']}, {', '.join(steps) or 'pixels of 0 to 255 as they are'}"
