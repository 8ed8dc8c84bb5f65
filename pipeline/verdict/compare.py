"""Variants of a network side by side: models, bundles and profiles, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitkiln import targets
from bitkiln.pipeline import bundle as bundles
from bitkiln.pipeline import profile as profiles
from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import BitkilnError, InputError
from bitkiln.pipeline.inspect import inspect_model
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.profile import LayerWork
from bitkiln.pipeline.run import timed
from bitkiln.pipeline.support.checked import table
from bitkiln.pipeline.support.files import MOST_BYTES, read_file
from bitkiln.pipeline.support.text import count, printable, size
from bitkiln.targets import Target

#: Of the names of two variants, the share that must be in both for names to tell which layers belong together.
SAME_NAMES = 0.5
#: What a row of a comparison is called that gathers what has no MACs.
OTHERS = "everything else"


@dataclass(frozen=True)
class Item:
    """One of the things that are compared: its totals, and a cell for each layer that multiplies, in order, then the rest."""

    totals: schema.Compared
    cells: tuple[schema.Cell, ...]


def compare(items: Sequence[Item]) -> schema.Compare:
    """Layers of all ``items`` in rows, those that belong together in one."""
    return {
        "schema": "bitkiln.compare/1",
        "items": [item.totals for item in items],
        "layers": align([item.cells for item in items]),
    }


def of_model(model: Model, target: Target, name: str) -> Item:
    """A model that is not compiled: bounds alone."""
    found = inspect_model(model, [target])
    if found.problems:
        raise BitkilnError(f"{name} cannot be compiled: {found.problems[0]}")
    cells = [
        _cell(
            row.name, row.kind, bool(row.binary), row.macs, row.packed_bytes + row.constant_bytes, found.bound_ms(row), None
        )
        for row in found.rows
        if row.macs
    ]  # fmt: skip
    totals = _totals(name, "model", target, cells, found.bounds[0].ms)
    return Item(totals, (*cells, _others([], None)))


def of_bundle(folder: Path, measure: bool, name: str) -> Item:
    """A bundle, measured on the simulated board where that is wanted and can be."""
    bundle = bundles.open_bundle(folder)
    target = bundle.target
    measured = profiles.profile_bundle(folder).as_json() if measure and timed(target, 1) else None
    times = {step["name"]: step["ms"] for step in measured["steps"]} if measured else {}
    rows = [
        (LayerWork(*(step[field] for field in ("name", "kind", "macs", "binary", "weight_bytes"))), step)
        for step in bundle.manifest["steps"]
    ]
    cells = [
        _cell(
            step.get("layer") or work.name, work.kind, work.binary, work.macs, int(work.weight_bytes),
            work.roof_cycles(target) / (target.mhz * 1e3), times.get(work.name),
        )
        for work, step in rows
        if work.macs
    ]  # fmt: skip
    rest = [times[work.name] for work, _ in rows if not work.macs and work.name in times]
    by = measured["measured_by"] if measured else None
    bound = sum(cell["bound_ms"] or 0.0 for cell in cells)
    files = sum(file["size"] for file in bundle.manifest["files"].values())
    totals = _totals(name, "bundle", target, cells, bound, measured["ms"] if measured else None, by, files)
    return Item(totals, (*cells, _others(rest, measured)))


def of_profile(path: Path, name: str) -> Item:
    """A profile that ``bitkiln profile --json`` printed. Raises InputError for another file."""
    try:
        found: Any = table(read_file(path), MOST_BYTES)
        if found.get("schema") != "bitkiln.profile/1":
            raise ValueError
        target = targets.load(found["target"])
        steps = found["steps"]
        cells = [
            _cell(
                str(step["layer"] or step["name"]), str(step["kind"]), bool(step["binary"]), int(step["macs"]),
                int(step["weight_bytes"]), float(step["bound_ms"]), float(step["ms"]),
            )
            for step in steps
            if step["macs"]
        ]  # fmt: skip
        rest = [float(step["ms"]) for step in steps if not step["macs"]]
        by, ms, bound = str(found["measured_by"]), float(found["ms"]), float(found["bound_ms"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "not what bitkiln profile --json prints"
        raise InputError(f"{path}: {why}") from None
    return Item(_totals(name, "profile", target, cells, bound, ms, by), (*cells, _others(rest, found)))


def _cell(
    name: str, kind: str, binary: bool, macs: int, weight_bytes: int, bound: float | None, ms: float | None
) -> schema.Cell:
    return {
        "name": name,
        "kind": kind,
        "binary": binary,
        "macs": macs,
        "weight_bytes": weight_bytes,
        "bound_ms": bound,
        "ms": ms,
    }


def _others(times: Sequence[float], measured: Any) -> schema.Cell:
    return _cell(OTHERS, "", False, 0, 0, None, sum(times) if measured else None)


def _totals(
    name: str,
    kind: str,
    target: Target,
    cells: Sequence[schema.Cell],
    bound: float,
    ms: float | None = None,
    measured_by: str | None = None,
    file_bytes: int | None = None,
) -> schema.Compared:
    return {
        "name": name,
        "kind": kind,
        "target": target.name,
        "ms": ms,
        "measured_by": measured_by,
        "bound_ms": bound,
        "macs": sum(cell["macs"] for cell in cells),
        "binary_macs": sum(cell["macs"] for cell in cells if cell["binary"]),
        "weight_bytes": sum(cell["weight_bytes"] for cell in cells),
        "file_bytes": file_bytes,
    }


def align(columns: Sequence[Sequence[schema.Cell]]) -> list[list[schema.Cell | None]]:
    """Rows of cells that belong together: by name where variants share names, else by their MACs, in order."""
    rows: list[list[schema.Cell | None]] = [[cell] for cell in columns[0]]
    for at, column in enumerate(columns[1:], 1):
        rows = _joined(rows, column, at)
    return rows


def _joined(
    rows: list[list[schema.Cell | None]], column: Sequence[schema.Cell], width: int
) -> list[list[schema.Cell | None]]:
    heads = [next(cell for cell in row if cell is not None) for row in rows]
    shared = {cell["name"] for cell in heads} & {cell["name"] for cell in column} - {OTHERS}
    by_name = len(shared) >= SAME_NAMES * max(1, min(len(heads), len(column)) - 1)
    mine, theirs = ([_mark(cell, by_name) for cell in cells] for cells in (heads, column))
    joined: list[list[schema.Cell | None]] = []
    for _, a, b, c, d in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        for at in range(max(b - a, d - c)):
            left: list[schema.Cell | None] = list(rows[a + at]) if a + at < b else [None] * width
            right = column[c + at] if c + at < d else None
            head = heads[a + at] if a + at < b else None
            if head is not None and right is not None and not by_name and _mark(head, False) != _mark(right, False):
                # Of two runs of layers that differ, those with other work stand in rows of their own.
                joined += [[*left, None], [*([None] * width), right]]
            else:
                joined.append([*left, right])
    return joined


def _mark(cell: schema.Cell, by_name: bool) -> Any:
    return cell["name"] if by_name or not cell["macs"] else cell["macs"]


def print_comparison(found: schema.Compare, console: Console) -> None:
    """The totals, then the layers, on a terminal."""
    items = found["items"]
    letters = [chr(ord("A") + at) for at in range(len(items))]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "what", "board"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "bound ms", "x A", "MMACs", "on bits", "weights", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("name", overflow="ellipsis", no_wrap=True)
    for letter, item in zip(letters, items, strict=True):
        share = f"{item['binary_macs'] / item['macs']:.0%}" if item["macs"] else ""
        files = size(item["file_bytes"]) if item["file_bytes"] is not None else ""
        figures = (_ms(item["ms"]), _ms(item["bound_ms"]), factor(item, items[0]), f"{item['macs'] / 1e6:.1f}", share)
        table.add_row(
            letter, item["kind"], item["target"], *figures, size(item["weight_bytes"]), files, _text(item["name"])
        )
    console.print(table)
    for letter, item in zip(letters, items, strict=True):
        if item["measured_by"]:
            console.print(f"{letter} measured by: {item['measured_by']}", highlight=False, markup=False)
    if len(items) > 1 and any(item["ms"] is None for item in items):
        console.print("x A: of measured times where both have one, else of bounds", highlight=False, markup=False)
    console.print(_layers(found, letters))


def _layers(found: schema.Compare, letters: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", overflow="ellipsis", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    measured = [item["ms"] is not None for item in found["items"]]
    for letter, has_times in zip(letters, measured, strict=True):
        table.add_column(letter, no_wrap=True)
        if has_times:
            table.add_column(f"{letter} ms", justify="right", no_wrap=True)
        table.add_column("bound", justify="right", no_wrap=True, style="dim")
    for row in found["layers"]:
        if not any(measured) and not any(cell["macs"] for cell in row if cell is not None):
            continue
        first = next(cell for cell in row if cell is not None)
        cells: list[Text] = []
        for cell, has_times in zip(row, measured, strict=True):
            what = "" if cell is None or not cell["macs"] else "bits" if cell["binary"] else "float"
            style = "green" if what == "bits" else ""
            cells.append(Text(what, style))
            if has_times:
                cells.append(Text(_ms(cell["ms"] if cell else None)))
            cells.append(Text(_ms(cell["bound_ms"] if cell else None)))
        table.add_row(_text(first["name"]), count(first["macs"]) if first["macs"] else "", *cells)
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def factor(item: schema.Compared, first: schema.Compared) -> str:
    """How many times an item's time is that of the first: of bounds, where one of them was not measured."""
    measured = item["ms"] is not None and first["ms"] is not None
    mine, theirs = (item["ms"], first["ms"]) if measured else (item["bound_ms"], first["bound_ms"])
    return f"{mine / theirs:.2f}" if mine and theirs else ""


def _text(name: str) -> Text:
    return Text(printable(name, 48))
