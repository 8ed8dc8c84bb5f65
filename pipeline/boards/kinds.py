"""The kinds of boards that there are targets of."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitkiln import targets
from bitkiln.pipeline import schema
from bitkiln.targets.sim import unlike


def kinds() -> list[schema.Kind]:
    """A row for each target, by name."""
    return [_kind(targets.load(name)) for name in targets.known()]


def _kind(target: targets.Target) -> schema.Kind:
    return {
        "target": target.name,
        "aliases": list(targets.aliases(target.name)),
        "description": target.description,
        "cpu": target.cpu_name,
        "cores": target.cores,
        "mhz": target.mhz,
        "bits": 64 if target.architecture == "aarch64" else 32,
        "simulated": unlike(target) is None,
    }


def print_kinds(rows: Sequence[schema.Kind], console: Console) -> None:
    """The rows of ``kinds`` as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("--target", "also called", "what it is"):
        table.add_column(name)
    for row in rows:
        table.add_row(row["target"], Text(", ".join(row["aliases"])), Text(row["description"]))
    console.print(table)
