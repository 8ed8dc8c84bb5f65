"""Rows of measurements, and the table that people read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from benchmarks import published

OURS = "bitkiln"
#: On the networks that are quantised for other engines.
OURS_INT8 = "bitkiln-int8"
OWN = (OURS, OURS_INT8)
FAILED = "not measured: "
#: The name of the part of a document in which the table belongs, between a line `<!-- NAME -->` and a line `<!-- /NAME -->`.
SECTION = "bench"
#: Characters of a line of Markdown, at most.
LINE = 150
#: An error, of an output's norm, that is more than another order of additions makes.
WORTH_SAYING = 0.001


@dataclass(frozen=True)
class Row:
    """One engine on one work. ``cycles`` and ``ms`` are None where it could not run; ``how`` then says why.

    ``bound_ms`` is the least time that ``threads`` cores of ``target`` could take. ``how`` names what measured it; ``error`` is
    how far another engine's output was off, of its norm.
    """

    work: str
    engine: str
    cycles: int | None
    ms: float | None
    bound_ms: float
    target: str
    how: str
    threads: int = 1
    error: float | None = None


def to_json(rows: Sequence[Row]) -> str:
    """A list of objects with the fields of Row."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines: a line for each work, its bound, every engine's ms, and two ratios.

    "x bound" is our time as a multiple of the bound; "x faster" is the best other engine's time as a multiple of ours, and
    "x int8" the same of quantised networks. An engine that ran nothing has no column.
    """
    engines = list(dict.fromkeys(row.engine for row in rows if row.ms is not None))
    ours = [engine for engine in OWN if engine in engines]
    others = [engine for engine in engines if engine not in OWN]
    heads = ["ms", "bound", *ours, *others, *(head for head, _ in _ratios(ours, others))]
    works = dict.fromkeys(row.work for row in rows)
    return heads, [_line([row for row in rows if row.work == work], ours, others) for work in works]


def _line(rows: Sequence[Row], ours: Sequence[str], others: Sequence[str]) -> list[str]:
    times = {row.engine: row.ms for row in rows}
    bound = rows[0].bound_ms
    cells = [rows[0].work, _ms(bound), *(_ms(times.get(engine)) for engine in (*ours, *others))]
    for _, (engine, against) in _ratios(ours, others):
        own = times.get(engine)
        best = min(
            (time for other in against if (time := bound if other == _BOUND else times.get(other))), default=None
        )
        over = own / best if own and best else None
        cells.append("-" if over is None else f"{over if against == (_BOUND,) else 1 / over:.2f}")
    return cells


#: Stands for the bound among engines.
_BOUND = "bound"


def _ratios(ours: Sequence[str], others: Sequence[str]) -> list[tuple[str, tuple[str, tuple[str, ...]]]]:
    """The heads of the columns of ratios, each with our engine and what it is held against."""
    floats, int8 = (tuple(each for each in others if is_int8(each) is quantised) for quantised in (False, True))
    found: list[tuple[str, tuple[str, tuple[str, ...]]]] = [("x bound", (OURS, (_BOUND,)))] if OURS in ours else []
    found += [("x faster", (OURS, floats))] if OURS in ours and floats else []
    return found + ([("x int8", (OURS_INT8, int8))] if OURS_INT8 in ours and int8 else [])


def is_int8(engine: str) -> bool:
    """Whether an engine runs quantised networks, which compare with their like alone."""
    return engine.endswith("int8")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What one must know to read the table: how each engine was measured, on which works if not all alike, and failures."""
    lines = []
    for engine in dict.fromkeys(row.engine for row in rows):
        of_engine = [row for row in rows if row.engine == engine]
        for measured in (True, False):
            works: dict[str, list[str]] = {}
            for row in of_engine:
                if (row.cycles is not None) == measured:
                    works.setdefault(row.how, []).append(row.work)
            alike = len(works) == 1 and (measured or len(works[next(iter(works))]) == len(of_engine))
            for how, names in works.items():
                lines.append(f"{engine}: {how}" if alike else f"{engine}, {', '.join(names)}: {how}")
        off = [row.error for row in of_engine if row.error is not None]
        if off and max(off) >= WORTH_SAYING:
            lines.append(f"{engine}: its outputs are {min(off):.1%} to {max(off):.1%} off the reference's")
    return lines


def summary(tables: Sequence[Sequence[Row]]) -> str:
    """A table in Markdown of all whole networks: for each number of threads our ms, the best other engine's, and the ratio.

    A line below names the network where another engine comes nearest.
    """
    tables = [[row for row in rows if " conv " not in row.work] for rows in tables]
    counts = [rows[0].threads for rows in tables if rows]
    claims = {
        row.work: claim for rows in tables for row in rows if (claim := published.of(row.work, row.target, row.threads))
    }
    heads = ["ms", *(["published"] if claims else [])]
    heads += [head for count in counts for head in (f"bitkiln, {_threads(count)}", "best other", "x faster")]
    lines, ratios = [], []
    kinds = dict.fromkeys((row.work, is_int8(row.engine)) for rows in tables for row in rows if row.ms)
    for work, quantised in sorted(kinds, key=lambda kind: kind[1]):
        name = f"{work}, int8" if quantised else work
        cells = [name, *([f"{claims[work].ms:g}" if name in claims else "-"] if claims else [])]
        for rows in tables:
            alike = [row for row in rows if row.work == work and is_int8(row.engine) is quantised]
            times = {row.engine: row.ms for row in alike if row.ms}
            own = times.pop(OURS_INT8 if quantised else OURS, None)
            best = min(times, key=lambda engine: times[engine], default=None)
            cells += [_ms(own), f"{_ms(times[best])} {best}" if best else "-"]
            cells.append(f"{times[best] / own:.2f}" if best and own else "-")
            if best and own:
                ratios.append((times[best] / own, f"{name} on {_threads(rows[0].threads)}, {best}"))
        lines.append(cells)
    text = _markdown([heads, *lines])
    sources = dict.fromkeys(claim.source for claim in claims.values())
    text += "".join(f"\n{textwrap.fill(f'{source}.', LINE)}\n" for source in sources)
    return text + (f"\nNearest: {min(ratios)[1]}, {min(ratios)[0]:.2f} times our time.\n" if ratios else "")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    rules = ["---", *(["---:"] * (len(lines[0]) - 1))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (lines[0], rules, *lines[1:]))


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """The table with its notes as a section of Markdown."""
    heads, lines = table(rows)
    body = _markdown([heads, *lines])
    lists = [textwrap.fill(f"- {note}", LINE, subsequent_indent="  ", break_on_hyphens=False) for note in notes(rows)]
    return f"{title}\n\n{body}\n" + "".join(f"{text}\n" for text in lists)


def into_document(document: str, section: str, name: str = SECTION) -> str:
    """``document`` with ``section`` as its part ``name``; the section alone where it has no such part."""
    before, begin, rest = document.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}{begin}\n{section}{end}{after}" if begin and end else section


def show(rows: Sequence[Row], title: str, console: Console) -> None:
    """Print the table and its notes."""
    heads, lines = table(rows)
    console.print(title, markup=False, highlight=False)
    grid = Table(box=box.SIMPLE_HEAD)
    for head in heads:
        justify: JustifyMethod = "left" if head == "ms" else "right"
        grid.add_column(head, justify=justify, style="bold" if head == OURS else None, no_wrap=True)
    for cells in lines:
        grid.add_row(*cells)
    console.print(grid)
    for note in notes(rows):
        console.print(note, style="dim", markup=False, soft_wrap=True)
