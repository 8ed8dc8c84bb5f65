"""``scripts/validate_search``: holds what a few trials of the search find against the best of many random points of its space.

A task's space is measured point by point, or a thousand random points of a large one; then the search runs, answered from
these measurements where they have its points.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import onnx
from rich.console import Console

from benchmarks import networks
from bitkiln import targets
from bitkiln.pipeline.boards.board import TrackerBoard
from bitkiln.pipeline.boards.farm import simulated_farm
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.cli.options import ThreadCounts
from bitkiln.pipeline.errors import BitkilnError
from bitkiln.pipeline.importers import load_model
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.records import Record, Records, append, log_file
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.pipeline.support.threads import counts_for
from bitkiln.pipeline.tune import BATCH, Crew
from bitkiln.pipeline.tune.builder import Builder
from bitkiln.pipeline.tune.search import Search, cost_models
from bitkiln.pipeline.tune.space import Point
from bitkiln.pipeline.tune.tasks import Task, extract_tasks
from bitkiln.pipeline.tune.trials import Expected, Trials
from bitkiln.targets.scratch import scratch_folder

#: What is meant by a good search: this many trials, and how near to the best of how many random points.
TRIALS, POINTS, WITHIN = 40, 1000, 1.03


@dataclass
class Survey:
    """A task and what has been measured of its space."""

    task: Task
    trials: Trials
    logs: Path
    records: dict[tuple[int | str, ...], Record] = field(default_factory=dict)
    expected: tuple[Expected, ...] | None = None

    def recall(self, records: Iterable[Record]) -> None:
        """Take in records of an earlier run on the same number of simulated cores."""
        for record in records:
            if record.threads == self.task.threads and self.task.space.positions(record.knobs) is not None:
                self.records.setdefault(_identity(record.knobs), record)

    def measure(self, points: Sequence[Point], crew: Crew) -> list[Record]:
        """A record of each point, in the order given."""
        lacking = [point for point in points if _identity(point) not in self.records]
        if lacking:
            self._begin()
        for _, record in crew.map(self._attempt, lacking):
            append(log_file(self.logs, record.workload, record.target), record)
            self.records[_identity(record.knobs)] = record
        return [self.records[_identity(point)] for point in points]

    def _begin(self) -> None:
        if self.expected is None:
            self.expected, record = self.trials.reference(self.task)
            self.records.setdefault(_identity(record.knobs), record)

    def _attempt(self, point: Point) -> Record:
        assert self.expected is not None
        return self.trials.candidate(self.task, point, self.expected, self.records[_identity(self.task.default)])


@dataclass(frozen=True)
class Outcome:
    """What a task came to; times in ms."""

    task: Task
    default: float
    searched: float
    random: float
    points: int

    @property
    def ratio(self) -> float:
        """How much slower what the search found is than the best random point; below 1 where it is faster."""
        return self.searched / self.random


def random_points(task: Task, count: int) -> list[Point]:
    """``count`` distinct points of the task's space, or all of a smaller one."""
    knobs = task.space.knobs
    chosen = random.Random(1).sample(range(task.space.size), min(count, task.space.size))
    points = []
    for number in chosen:
        point: Point = {}
        for name, values in knobs.items():
            number, position = divmod(number, len(values))
            point[name] = values[position]
        points.append(point)
    return points


def outcome(survey: Survey, trials: int, points: int, crew: Crew) -> Outcome:
    """Measure ``points`` random points of a task, search it with ``trials``, and compare."""
    task = survey.task
    sample = random_points(task, points)
    (default,) = survey.measure([task.default], crew)
    at_random = survey.measure(sample, crew)
    searched = [default]
    search = Search(task, cost_models([task])[task.family])
    search.learn(searched)
    while len(searched) < trials and not search.exhausted:
        found = survey.measure(search.propose(min(BATCH, trials - len(searched))), crew)
        if not found:
            break
        search.learn(found)
        searched += found
    return Outcome(task, 1e3 * default.seconds, _best(searched), _best([default, *at_random]), len(sample))


def _best(records: Iterable[Record]) -> float:
    return 1e3 * min(record.seconds for record in records if record.ok)


def _identity(point: Mapping[str, int | str]) -> tuple[int | str, ...]:
    return tuple(point[name] for name in sorted(point))


@contextmanager
def surveys(tasks: Sequence[Task], logs: Path | None, boards: int | None) -> Iterator[tuple[list[Survey], Crew]]:
    """A survey of each task over simulated boards, which live while the context does. Records stay in ``logs``, if given."""
    with scratch_folder() as scratch, simulated_farm(tasks[0].target, boards) as (address, key):
        folder = logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        client = TrackerClient(address)
        count = client.require(key).count
        builder = Builder()
        try:
            trials = Trials(builder, TrackerBoard(client, key), count)
            every = [Survey(task, trials, folder) for task in tasks]
            known = Records([folder])
            for survey in every:
                survey.recall(known.of(survey.task.key, survey.task.target.name))
            with Crew(builder.workers + count, trials.abandon) as crew:
                yield every, crew
        finally:
            builder.close()


def chosen(tasks: Sequence[Task], trials: int, each: int) -> list[Task]:
    """Of each family the ``each`` smallest tasks whose spaces have more points than ``trials``."""
    families: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: task.roof_seconds):
        members = families.setdefault(task.family, [])
        if task.space.size > trials and len(members) < each:
            members.append(task)
    return [task for members in families.values() for task in members]


def table(outcomes: Sequence[Outcome], trials: int) -> str:
    """The outcomes in Markdown."""
    lines = [
        f"| task | points | default, ms | best of {trials} trials | best of the points | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in outcomes:
        size = each.task.space.size
        points = f"{each.points}" if each.points == size else f"{each.points} of {size}"
        times = f"{each.default:.3f} | {each.searched:.3f} | {each.random:.3f}"
        lines.append(f"| {each.task.name} | {points} | {times} | {each.ratio:.3f} |")
    return "\n".join(lines) + "\n"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--target", "target_name", default="rasp3b", show_default=True, help="The board that is simulated.")
@click.option("--threads", type=ThreadCounts(), metavar="N[,N]", default="1", show_default=True, help="Of the tasks.")
@click.option("--trials", type=click.IntRange(2), default=TRIALS, show_default=True, help="Of the search.")
@click.option(
    "--points", type=click.IntRange(2), default=POINTS, show_default=True, help="Random ones to compare with."
)
@click.option(
    "--tasks", "each", type=click.IntRange(1), default=2, show_default=True, help="Of each family, the smallest."
)
@click.option("--logs", type=click.Path(path_type=Path), help="Keep the measurements here, and go on from there.")
@click.option("--boards", type=click.IntRange(1), help="Simulated boards; one for each core unless given.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here.")
def main(
    models: tuple[str, ...],
    target_name: str,
    threads: tuple[int, ...],
    trials: int,
    points: int,
    each: int,
    logs: Path | None,
    boards: int | None,
    markdown: Path | None,
) -> None:
    """Hold what --trials of the search find against the best of --points random points, task by task.

    MODEL is a network of the bench or a file; the two cards unless given. Ends with 1 where the median task is further than
    3 % from the best point.

    Example: scripts/validate_search mobilenet-v2 card-float --tasks 1
    """
    console = Console()
    try:
        target = targets.load(target_name)
        loaded = [_model(name) for name in models or ("card-binary", "card-float")]
        tasks = chosen(extract_tasks(loaded, target, counts_for(target, threads)), trials, each)
        if not tasks:
            raise BitkilnError(f"no task of {', '.join(models)} has a space of more than {trials} points")
        outcomes = []
        with surveys(tasks, logs, boards) as (every, crew):
            for survey in every:
                outcomes.append(outcome(survey, trials, points, crew))
                console.print(
                    f"{outcomes[-1].ratio:.3f}  {survey.task.name}", highlight=False, markup=False, soft_wrap=True
                )
    except (BitkilnError, targets.UnknownTarget) as error:
        print(f"validate_search: {error}", file=sys.stderr)
        raise SystemExit(2)
    text = table(outcomes, trials)
    if markdown:
        with atomic_write(markdown) as path:
            path.write_text(text, encoding="utf-8")
    median = statistics.median(each.ratio for each in outcomes)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"the median of {len(outcomes)} tasks: {median:.3f} (asked: at most {WITHIN})", highlight=False)
    raise SystemExit(int(median > WITHIN))


def _model(name: str) -> Model:
    """A network of the bench by its name, else a file. Raises ModelError."""
    work = next((work for work in networks.known() if work.name == name and not work.layer), None)
    if work is None or work.model:
        return load_model(work.model if work else name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(work.onnx(False), path)
        return load_model(str(path))


if __name__ == "__main__":
    main()
