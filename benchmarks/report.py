"""Rows of measurements, and the table that people read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

OURS = "bitkiln"
FAILED = "not measured: "
#: Lines of a document between which the table belongs.
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
#: Characters of a line of Markdown, at most.
LINE = 150


@dataclass(frozen=True)
class Row:
    """One engine on one work. ``cycles`` and ``ms`` are None where it could not run; ``how`` then says why.

    ``bound_ms`` is the least time that ``threads`` cores of ``target`` could take. ``how`` names what measured it.
    """

    work: str
    engine: str
    cycles: int | None
    ms: float | None
    bound_ms: float
    target: str
    how: str
    threads: int = 1


def to_json(rows: Sequence[Row]) -> str:
    """A list of objects with the fields of Row."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines: a line for each work, its bound, every engine's ms, and two ratios.

    "x bound" is our time as a multiple of the bound; "x faster" is the best other engine's time as a multiple of ours.
    """
    engines = list(dict.fromkeys(row.engine for row in rows))
    ours = [OURS] if OURS in engines else []
    others = [engine for engine in engines if engine != OURS]
    heads = ["ms", "bound", *ours, *others]
    heads += ["x bound"] if ours else []
    heads += ["x faster"] if ours and others else []
    works = dict.fromkeys(row.work for row in rows)
    return heads, [_line([row for row in rows if row.work == work], ours, others) for work in works]


def _line(rows: Sequence[Row], ours: Sequence[str], others: Sequence[str]) -> list[str]:
    times = {row.engine: row.ms for row in rows}
    bound = rows[0].bound_ms
    cells = [rows[0].work, _ms(bound), *(_ms(times.get(engine)) for engine in (*ours, *others))]
    own = times.get(OURS)
    best = min((times[engine] for engine in others if times.get(engine)), default=None)
    if ours:
        cells.append(f"{own / bound:.2f}" if own else "-")
    if ours and others:
        cells.append(f"{best / own:.2f}" if own and best else "-")
    return cells


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What one must know to read the table: how each engine was measured, on which works if not all alike, and failures."""
    lines = []
    for engine in dict.fromkeys(row.engine for row in rows):
        works: dict[str, list[str]] = {}
        for row in rows:
            if row.engine == engine and row.cycles is not None:
                works.setdefault(row.how, []).append(row.work)
        alike = len(works) == 1
        lines += [
            f"{engine}: {how}" if alike else f"{engine}, {', '.join(names)}: {how}" for how, names in works.items()
        ]
    return lines + [f"{row.engine}, {row.work}: {row.how}" for row in rows if row.cycles is None]


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """The table with its notes as a section of Markdown."""
    heads, lines = table(rows)
    rules = ["---", *(["---:"] * (len(heads) - 1))]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *lines))
    lists = [textwrap.fill(f"- {note}", LINE, subsequent_indent="  ", break_on_hyphens=False) for note in notes(rows)]
    return f"{title}\n\n{body}\n\n" + "".join(f"{text}\n" for text in lists)


def into_document(document: str, section: str) -> str:
    """``document`` with ``section`` between its marks; the section alone where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{section}{end}{after}" if begin and end else section


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print the table and its notes."""
    heads, lines = table(rows)
    console.print(title, markup=False, highlight=False)
    grid = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        justify = "left" if head == "ms" else "right"
        grid.add_column(head, justify=justify, style="bold" if head == OURS else None, no_wrap=True)
    for cells in lines:
        grid.add_row(*cells)
    console.print(grid)
    for note in notes(rows):
        console.print(note, style="dim", markup=False, soft_wrap=True)
