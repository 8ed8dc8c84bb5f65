"""Tuning: the fastest kernels for a set of networks, searched on boards.

Every task's untuned default is measured first; then the tasks that promise most get the trials. Every finished trial is on
disk before the next begins, so a run may be ended at any moment and the next goes on where it stopped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.board import SharedBoards, TrackerBoard
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.boards.tracker import NoBoard, TrackerClient
from bitkiln.pipeline.errors import SetupError
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.records import COMMITTED, Record, Records, append, log_file, on_cores
from bitkiln.pipeline.support import interrupts
from bitkiln.pipeline.support.threads import counts_for
from bitkiln.pipeline.tune.belief import compare_identity
from bitkiln.pipeline.tune.builder import Builder
from bitkiln.pipeline.tune.farm import CheckedBoards
from bitkiln.pipeline.tune.progress import Display, print_summary, total_seconds
from bitkiln.pipeline.tune.search import Search, cost_models
from bitkiln.pipeline.tune.space import Point
from bitkiln.pipeline.tune.tasks import Task, extract_tasks
from bitkiln.pipeline.tune.trials import PATIENCE, Expected, Trials
from bitkiln.schedules.workload import Generic, Tunable
from bitkiln.targets import Target
from bitkiln.targets.sim import unlike

#: Trials of one task between two decisions on which task comes next.
BATCH = 8
#: What is left of a task's promise after a batch without improvement; below FORGOTTEN it gets no more trials.
FADING = 0.5
FORGOTTEN = 0.1
#: The gain that is assumed for a task at its bound, or, by Winograd's transform, below it.
NEAR_ROOF = 0.1
#: The share of all time below which a function without an operator of its own gets no trials.
MINOR = 0.03
#: A batch that makes its task faster by 1 / HOPE or more restores its full promise.
HOPE = 8.0


Answer = TypeVar("Answer")

#: Seconds for the threads of a crew to end: when all is done, and when they are to give up what they do.
JOIN_SECONDS, ABANDON_SECONDS = 5.0, 0.2


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many trials of this run, or after so many minutes."""

    trials: int
    minutes: float | None = None


@dataclass(eq=False)
class TaskState:
    """A task, and how far its tuning has come."""

    task: Task
    search: Search
    default: Record | None = None
    best: Record | None = None
    trials: int = 0
    failures: int = 0
    promise: float = 1.0
    expected: tuple[Expected, ...] | None = None

    @property
    def workload(self) -> Tunable:
        """The task's workload."""
        return self.task.workload

    @property
    def key(self) -> str:
        """The workload's key."""
        return self.task.key

    @property
    def name(self) -> str:
        """What reports call the task."""
        return self.task.name

    @property
    def roof_seconds(self) -> float:
        """The least that a direct computation takes; transforms may beat it."""
        return self.task.roof_seconds

    @property
    def threads(self) -> int:
        """For how many it is tuned."""
        return self.task.threads

    @property
    def occurrences(self) -> int:
        """How many layers have it."""
        return self.task.occurrences

    @property
    def gain(self) -> float:
        """Seconds of network time that tuning it further may save: what is above the roof, times its promise."""
        if self.best is None or self.search.exhausted or self.promise < FORGOTTEN:
            return 0.0
        above = max(self.best.seconds - self.task.roof_seconds, NEAR_ROOF * self.best.seconds)
        return self.occurrences * above * self.promise

    def take(self, record: Record) -> bool:
        """Count a trial; whether it is the best so far. The default stays where nothing beats it."""
        self.trials += 1
        # One that was stopped early for being slow has not failed.
        self.failures += not record.ok and record.status != "stopped"
        if record.ok and record.knobs == self.task.default:
            self.default = record
        if not record.ok or (self.best is not None and record.rank >= self.best.rank):
            return False
        self.best = record
        return True


def tune(
    models: Sequence[Model],
    target: Target,
    logs: Path,
    budget: Budget,
    tracker: str | None = None,
    key: str | None = None,
    boards: int | None = None,
    console: Console | None = None,
    threads: Sequence[int] | None = None,
) -> list[TaskState]:
    """Tune ``models`` for ``target``, appending records to the folder ``logs``; gives what became of each task.

    Kernels are tuned for each number of ``threads``, which is the board's cores unless given.
    Boards are those with ``key`` at ``tracker`` ("HOST:PORT"); without a tracker, ``boards`` simulated ones. Raises BoardError
    when no board is left, SetupError, RecordError; all finished trials are on disk by then.
    """
    tasks = extract_tasks(models, target, counts_for(target, threads))
    if not tasks and console:
        console.print(f"nothing to tune: no layer of {', '.join(model.name for model in models)} leaves a choice")
    return tune_tasks(tasks, target, logs, budget, tracker, key, boards, console) if tasks else []


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    logs: Path,
    budget: Budget,
    tracker: str | None = None,
    key: str | None = None,
    boards: int | None = None,
    console: Console | None = None,
) -> list[TaskState]:
    """As ``tune``, for tasks that are known already."""
    with ExitStack() as stack:
        builder = Builder()
        stack.callback(builder.close)
        address, name = stack.enter_context(_boards(target, tracker, key, boards))
        client = TrackerClient(address)
        # A tracker and boards that this run started itself are started again where they die; others are there or not.
        patience = PATIENCE if tracker is None else 0.0
        count = _patiently(lambda: client.require(name).count, patience)
        console = console or Console(quiet=True)
        every = TrackerBoard(client, name)
        # Boards that this run started itself are all alike, and nobody else's.
        board: SharedBoards = (
            every if tracker is None else CheckedBoards(every, target, builder, partial(_say, console))
        )
        tuning = Tuning(tasks, Trials(builder, board, count), logs, builder.workers + count)
        identity = _patiently(board.identity, patience)
        if differs := compare_identity(identity, target):
            console.print(f"warning: {identity['measured_by']}: {differs}", highlight=False, markup=False)
        return tuning.run(budget, identity["measured_by"], count, console)


def _patiently(ask: Callable[[], Answer], seconds: float) -> Answer:
    """What ``ask`` gives. Raises NoBoard where there is no board, or no tracker, for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except NoBoard:
            if time.monotonic() >= deadline:
                raise
            with interrupts.waiting():
                time.sleep(0.5)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


@contextmanager
def _boards(target: Target, tracker: str | None, key: str | None, count: int | None) -> Iterator[tuple[Address, str]]:
    """The tracker's address and the boards' key; simulated boards live while the context does."""
    if tracker is not None:
        yield Address.parse(tracker), key or target.name
        return
    if (why := unlike(target)) is not None:
        raise SetupError(f"{why}: give --tracker HOST:PORT with boards of that kind")
    with simulated_farm(target, count, key=key) as farm:
        yield farm


class Tuning:
    """A run: tasks, the trials they get, and the records these leave."""

    def __init__(self, tasks: Sequence[Task], trials: Trials, folder: Path, width: int) -> None:
        models = cost_models(tasks)
        self.states = [TaskState(task, Search(task, models[task.family])) for task in tasks]
        self.trials = trials
        self.folder = folder
        self.width = width

    def run(self, budget: Budget, measured_by: str, boards: int, console: Console) -> list[TaskState]:
        """Tune until the budget is used up or nothing improves any more."""
        self._recall(measured_by)
        deadline = time.monotonic() + 60 * budget.minutes if budget.minutes else None
        display = Display(console, self.states, budget.trials, measured_by, boards, deadline)
        try:
            with display, Crew(self.width, self.trials.abandon) as crew:
                defaults = self._measure_defaults(crew, display)
                self._leave_minor()
                self._search(crew, display)
            display.ended(defaults)
        finally:
            print_summary(self.states, console, measured_by)
        return self.states

    def _recall(self, measured_by: str) -> None:
        """Take in what earlier runs on the same kind of board have found, and note what others found as worth a try."""
        known = Records([folder for folder in (self.folder, COMMITTED) if folder.is_dir()])
        for state in self.states:
            usable = [record for name in state.task.target.records for record in known.of(state.key, name)]
            usable = [record for record in usable if state.task.space.positions(record.knobs) is not None]
            rig = (on_cores(measured_by, state.task.threads), state.task.threads, state.task.target.name)
            mine = [record for record in usable if (record.measured_by, record.threads, record.target) == rig]
            for record in _distinct(mine):
                state.take(record)
            state.search.learn(mine)
            state.search.suggest(_fastest(record for record in usable if record.ok and record not in mine))

    def _measure_defaults(self, crew: Crew, display: Display) -> int:
        """Measure the defaults that are not known yet; gives how many."""
        unknown = [state for state in self.states if state.default is None]
        # A budget too small for all goes to what takes longest.
        unknown.sort(key=lambda state: -state.occurrences * state.task.roof_seconds)
        unknown = unknown[: display.budget]
        for state, (expected, record) in crew.map(lambda state: self.trials.reference(state.task), unknown):
            state.expected = expected
            self._keep(state, record, display)
            state.search.learn([record])
        return len(unknown)

    def _leave_minor(self) -> None:
        """General kernels are worth a search where they take a share of the time that is felt."""
        for state in self.states:
            alike = [other for other in self.states if other.threads == state.threads]
            minor = MINOR * total_seconds(alike, tuned=False)
            if (
                isinstance(state.workload, Generic)
                and state.default
                and state.occurrences * state.default.seconds < minor
            ):
                state.promise = 0.0

    def _search(self, crew: Crew, display: Display) -> None:
        while display.done < display.budget and not display.over:
            state = max(self.states, key=lambda state: state.gain)
            if state.gain <= 0.0:
                display.note("nothing improves any more")
                return
            self._batch(state, min(BATCH, display.budget - display.done), crew, display)

    def _batch(self, state: TaskState, count: int, crew: Crew, display: Display) -> None:
        """Give a task up to ``count`` trials."""
        points = state.search.propose(count)
        if state.expected is None:
            # Known from an earlier run: its results, to hold the candidates' against, are not in the records.
            state.expected, _ = self.trials.reference(state.task)
        before = state.best
        assert before is not None

        def attempt(point: Point) -> Record:
            assert state.expected is not None and state.best is not None
            return self.trials.candidate(state.task, point, state.expected, state.best)

        found = []
        for _, record in crew.map(attempt, points):
            self._keep(state, record, display)
            found.append(record)
        state.search.learn(found)
        assert state.best is not None
        improvement = 1 - state.best.seconds / before.seconds
        state.promise = min(1.0, max(state.promise * FADING, HOPE * improvement))

    def _keep(self, state: TaskState, record: Record, display: Display) -> None:
        """A trial has ended: first of all its record goes to disk."""
        append(log_file(self.folder, record.workload, record.target), record)
        display.trial(state, record, state.take(record))


def _distinct(records: Iterable[Record]) -> list[Record]:
    """One record for each point, the fastest."""
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        identity = tuple(sorted(record.knobs.items()))
        if identity not in best or record.seconds < best[identity].seconds:
            best[identity] = record
    return list(best.values())


def _fastest(records: Iterable[Record], count: int = 2) -> list[Point]:
    return [dict(record.knobs) for record in sorted(records, key=lambda record: record.seconds)[:count]]


class Crew:
    """Threads that do a batch of jobs side by side.

    When left by an error, jobs not begun are dropped and ``abandon`` has to end those in flight.
    """

    def __init__(self, size: int, abandon: Callable[[], None]) -> None:
        self._abandon = abandon
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]
        self._leaving = False

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self._leaving = True
        for _ in self._threads:
            self._jobs.put(None)
        if kind is not None:
            self._abandon()
        deadline = time.monotonic() + (JOIN_SECONDS if kind is None else ABANDON_SECONDS)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(item, result) for each item, as they come; an error of a job is raised here."""
        results: queue.SimpleQueue[tuple[Any, Any, BaseException | None]] = queue.SimpleQueue()

        def job(item: Any) -> None:
            try:
                results.put((item, function(item), None))
            except BaseException as error:
                results.put((item, None, error))

        jobs = [partial(job, item) for item in items]
        for each in jobs:
            self._jobs.put(each)
        for _ in jobs:
            with interrupts.waiting():
                item, result, error = results.get()
            if error is not None:
                raise error
            yield item, result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._leaving:
                job()
