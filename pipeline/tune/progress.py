"""What the user sees of a tuning run: a live table on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bitkiln.pipeline.records import Record, on_cores
from bitkiln.schedules.workload import Tunable


class TaskRow(Protocol):
    """A task's state, as far as it is shown."""

    default: Record | None
    best: Record | None
    trials: int
    failures: int

    @property
    def workload(self) -> Tunable:
        """What its kernel has to compute."""

    @property
    def roof_seconds(self) -> float:
        """The least that a direct computation takes; transforms may beat it."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def threads(self) -> int:
        """For how many it is tuned."""

    @property
    def occurrences(self) -> int:
        """How often the network runs it."""


def speed(record: Record, workload: Tunable) -> str:
    """A record's figure for people: "123,456 cycles = 0.103 ms, 30.1 MAC/cycle"."""
    cycles = record.value if record.unit == "cycles" else record.seconds * (record.clock_mhz or 0) * 1e6
    text = f"{1e3 * record.seconds:.3f} ms"
    if record.unit == "cycles":
        text = f"{cycles:,.0f} cycles = {text}"
    return f"{text}, {workload.macs / cycles:.1f} MAC/cycle" if cycles and workload.macs else text


def total_seconds(rows: Sequence[TaskRow], tuned: bool) -> float:
    """Time of all layers, by the best record or by the default; tasks not measured yet count nothing."""
    records = [(row, row.best if tuned else row.default) for row in rows]
    return sum(row.occurrences * record.seconds for row, record in records if record)


@dataclass
class Display:
    """Shows ``rows``, the tasks; ``budget`` is the number of trials this run may make."""

    console: Console
    rows: Sequence[TaskRow]
    budget: int
    measured_by: str
    boards: int
    deadline: float | None = None
    done: int = 0
    current: str = ""
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._warned: set[str] = set()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Display:
        known = sum(row.trials for row in self.rows)
        already = f", {known} trials known from earlier runs" if known else ""
        boards = "1 board" if self.boards == 1 else f"{self.boards} boards"
        tasks = "1 task" if len(self.rows) == 1 else f"{len(self.rows)} tasks"
        self._print(f"tuning {tasks} on {boards} ({self.measured_by}), at most {self.budget} trials{already}")
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def trial(self, row: TaskRow, record: Record, improved: bool) -> None:
        """A trial has ended."""
        self.done += 1
        position = list(self.rows).index(row) + 1
        share = self._share(row)
        best = f"best {speed(row.best, row.workload)}" if row.best else "no result yet"
        self._warn(record)
        what = "default" if record.default else record.status if not record.ok else "new best" if improved else "slower"
        share_text = f", {share:.0%} of the time" if share else ""
        self.current = (
            f"trial {self.done}/{self.budget}, task {position}/{len(self.rows)} {row.name}: {what}; {best}{share_text}; "
            f"{self._left()}"
        )
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif self.done in (1, self.budget) or self.done % 10 == 0 or not record.ok or (improved and not record.default):
            # Without a terminal a line for each trial would be many that say "slower".
            self._print(self.current)

    def ended(self, defaults: int) -> None:
        """Say so where the time was over before anything but ``defaults`` was measured, and what a search would take."""
        if not self.over or self.done > defaults:
            return
        missing = sum(row.best is None for row in self.rows)
        each = (time.monotonic() - self.began) / max(1, self.done)
        minutes = each * (missing + 2 * len(self.rows)) / 60 + (time.monotonic() - self.began) / 60
        self._print(
            f"the time was over before the search began: {self.done} of {len(self.rows)} defaults were measured and nothing "
            f"else; a first search takes about {max(1, round(minutes))} minutes (--minutes), and goes on from here"
        )

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._print(text)

    def _warn(self, record: Record) -> None:
        """Say once that a board is not fit to measure."""
        problem = "a board is throttled (heat or supply voltage)" if record.health.get("throttled") else record.message
        if record.ok and problem and problem not in self._warned:
            self._warned.add(problem)
            self._print(f"warning: {problem}: its times scatter")

    def _left(self) -> str:
        elapsed = time.monotonic() - self.began
        left = elapsed / max(1, self.done) * (self.budget - self.done)
        if self.deadline is not None:
            left = min(left, self.deadline - time.monotonic())
        return f"{max(0, int(left)) // 60}:{max(0, int(left)) % 60:02d} left"

    def _share(self, row: TaskRow) -> float:
        """Its part of the network's time; 0 until all of that is known."""
        alike = [other for other in self.rows if other.threads == row.threads]
        if any(other.best is None for other in alike):
            return 0.0
        total = total_seconds(alike, tuned=True)
        return row.occurrences * row.best.seconds / total if row.best and total else 0.0

    def _table(self) -> Group:
        table = summary_table(self.rows)
        return Group(table, Text(self.current))

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


def summary_table(rows: Sequence[TaskRow]) -> Table:
    """Default against best, task by task, the costliest first."""
    table = Table(box=None, pad_edge=False)
    for name in ("layers", "default ms", "best ms", "gain", "MAC/cycle", "of roof", "share", "trials"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(5, len(name)))
    table.add_column("task", overflow="ellipsis", no_wrap=True)
    totals = {row.threads: 0.0 for row in rows}
    for threads in totals:
        totals[threads] = total_seconds([row for row in rows if row.threads == threads], tuned=True)
    cost = {id(row): row.occurrences * row.best.seconds if row.best else 0.0 for row in rows}
    for row in sorted(rows, key=lambda row: -cost[id(row)]):
        trials = f"{row.trials}" + (f" ({row.failures} failed)" if row.failures else "")
        if row.default is None or row.best is None:
            table.add_row(str(row.occurrences), "", "", "", "", "", "", trials, row.name)
            continue
        gain = f"{row.default.seconds / row.best.seconds:.2f}x"
        rate = speed(row.best, row.workload).rpartition(", ")[2].partition(" MAC")[0] if row.workload.macs else ""
        share = f"{cost[id(row)] / totals[row.threads]:.0%}" if totals[row.threads] else ""
        roof = f"{row.roof_seconds / row.best.seconds:.0%}" if row.roof_seconds else ""
        figures = (f"{1e3 * row.default.seconds:.3f}", f"{1e3 * row.best.seconds:.3f}", gain, rate, roof, share, trials)
        table.add_row(str(row.occurrences), *figures, row.name)
    return table


def print_summary(rows: Sequence[TaskRow], console: Console, measured_by: str) -> None:
    """The final table, which a terminal shows already, and its last line."""
    if not console.is_terminal:
        console.print(summary_table(rows))
    for threads in dict.fromkeys(row.threads for row in rows):
        alike = [row for row in rows if row.threads == threads]
        before, after = total_seconds(alike, tuned=False), total_seconds(alike, tuned=True)
        if not after:
            continue
        gain = f"{before / after:.2f} times faster" if before > 1.005 * after else "no faster kernels were found"
        by = on_cores(measured_by, threads)
        console.print(
            f"tuned layers: {1e3 * before:.2f} ms by default, {1e3 * after:.2f} ms tuned, {gain} ({by})",
            highlight=False,
        )
