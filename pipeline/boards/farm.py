"""Several boards at once: simulated ones behind a tracker, and the list of those that a tracker knows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards.simulated import Machine, SimulatedBoards
from bitkiln.pipeline.boards.tracker import Address, TrackerClient, TrackerProcess
from bitkiln.targets import Target

DEFAULT_TRACKER_PORT = 9190


@contextmanager
def simulated_farm(
    target: Target,
    count: int | None = None,
    tracker: Address | None = None,
    key: str | None = None,
    port: int = 0,
    timing: bool = True,
) -> Iterator[tuple[Address, str]]:
    """Simulated boards behind a tracker (our own on loopback where none is given): gives the tracker's address and the key.

    ``count`` None starts as many as there are processors, at most 4.
    """
    key = key or target.name
    with ExitStack() as stack:
        if tracker is None:
            process = TrackerProcess(port=port)
            stack.callback(process.stop)
            tracker = process.address
        count = count or max(1, min(4, os.cpu_count() or 1))
        stack.enter_context(SimulatedBoards(Machine(target, timing), tracker, key, count))
        yield tracker, key


def list_boards(tracker: str) -> list[schema.TrackedBoards]:
    """The tracker's boards by key, as plain rows."""
    return schema.plain(TrackerClient(Address.parse(tracker)).boards())


def print_boards(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows of ``list_boards`` as a table."""
    if not rows:
        console.print("the tracker has no boards")
        return
    table = Table("key", "boards", "free", "busy", "clients waiting", "addresses", box=None)
    for row in rows:
        busy = row["count"] - row["free"]
        numbers = map(str, (row["count"], row["free"], busy, row["waiting"]))
        table.add_row(row["key"], *numbers, ", ".join(row["addresses"]))
    console.print(table)


def serve_simulated(target: Target, tracker: str | None, key: str | None, count: int, console: Console) -> None:
    """Run simulated boards, and a tracker where none is named, until interrupted."""
    address = Address.parse(tracker) if tracker else None
    with simulated_farm(target, count, address, key, port=DEFAULT_TRACKER_PORT) as (where, name):
        boards = "1 simulated board" if count == 1 else f"{count} simulated boards"
        console.print(f"{boards} with the key {name!r} at the tracker {where}; Ctrl-C stops them")
        console.print(f"try: tune --target {target.name} --tracker {where} --key {name}")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopping")
