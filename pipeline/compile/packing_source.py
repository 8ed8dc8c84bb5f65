"""The packings of a plan as the C tables of plan.h."""

from __future__ import annotations

from bitkiln.pipeline.compile.plan import ExecutionPlan, PlacedPacking
from bitkiln.schedules.conv2d.geometry import Run
from bitkiln.schedules.conv2d.packing import Packing


def packing_source(plan: ExecutionPlan) -> str:
    """Tables that end with ``packings``; nothing where the board packs nothing."""
    if not plan.packings:
        return ""
    forms = {placed.packing: f"form{index}" for index, placed in enumerate(plan.packings)}
    lines = [line for packing, name in forms.items() for line in _form(packing, name)]
    rows = (_row(placed, forms[placed.packing]) for placed in plan.packings)
    return "\n".join([*lines, "static const bk_packing packings[] = {", *rows, "};"])


def _form(packing: Packing, name: str) -> list[str]:
    """What packings of other weights may share."""
    terms = [f"{{{factor.hex()}, {tap}}}" for terms in packing.sums for tap, factor in terms]
    ends, count = [], 0
    for row in packing.sums:
        ends.append(count := count + len(row))
    panels = [run for chunk in packing.chunks for run in chunk.panels]
    chunks, at = [], 0
    for chunk in packing.chunks:
        chunks.append(f"{{{_tiles(chunk.run)}, {name}_panels + {at}, {len(chunk.panels)}}}")
        at += len(chunk.panels)
    return [
        f"static const int32_t {name}_taps[] = {{{', '.join(map(str, packing.taps))}}};",
        f"static const bk_term {name}_terms[] = {{{', '.join(terms)}}};",
        f"static const int32_t {name}_ends[] = {{{', '.join(map(str, ends))}}};",
        f"static const bk_tiles {name}_panels[] = {{{', '.join(map(_tiles, panels))}}};",
        f"static const bk_chunk {name}_chunks[] = {{{', '.join(chunks)}}};",
    ]


def _row(placed: PlacedPacking, name: str) -> str:
    packing = placed.packing
    return (
        f"{{{placed.source.offset}u, {placed.offset}u, {placed.nbytes}u, {packing.pitch}, {packing.depth}, "
        f"{len(packing.taps)}, {name}_taps, {len(packing.sums)}, {name}_terms, {name}_ends, {packing.zero.hex()}, "
        f"{name}_chunks, {len(packing.chunks)}, {packing.panels}, {placed.one | placed.several << 1}}},"
    )


def _tiles(run: Run) -> str:
    return f"{{{run.first}, {run.count}, {run.size}, {run.used}}}"
