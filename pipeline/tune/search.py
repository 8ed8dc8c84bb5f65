"""Which candidates of a task to measure next: MetaSchedule's evolutionary search under a model of their cost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitkiln.pipeline.records import Record
from bitkiln.pipeline.tune.features import KnobFeatures, Layout
from bitkiln.pipeline.tune.space import Point
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.metaschedule import TuneContext, ms, quiet
from bitkiln.schedules.workload import Generic

#: A smaller space is tried point by point: there is nothing to learn that trying would not tell.
ENUMERATED = 24
#: Trials of a family before its cost model's word counts.
WARMUP = 12


def cost_models(tasks: Sequence[Task]) -> dict[str, ms.cost_model.XGBModel]:
    """A cost model for each family of tasks."""
    models = {}
    for family in {task.family for task in tasks}:
        members = [task for task in tasks if task.family == family]
        features = _features(members)
        # Few samples of few columns: shallow trees and an early stop train in a fraction of a second.
        config = ms.cost_model.xgb_model.XGBConfig(max_depth=6, eta=0.3, nthread=1)
        models[family] = ms.cost_model.XGBModel(
            extractor=features, config=config, num_warmup_samples=WARMUP, early_stopping_rounds=10
        )
    return models


def _features(tasks: Sequence[Task]) -> ms.FeatureExtractor:
    """What tells candidates of a family apart: the knobs, or for derived programs what MetaSchedule counts in their loops."""
    if isinstance(tasks[0].workload, Generic):
        return ms.feature_extractor.PerStoreFeature()
    return KnobFeatures(Layout.of(tasks), {task.name: task for task in tasks})


@dataclass
class Search:
    """The search of one task. ``propose`` gives points not proposed before, ``learn`` takes what became of them."""

    task: Task
    model: ms.cost_model.XGBModel
    seed: int = 1

    def __post_init__(self) -> None:
        self._seen: set[tuple[int | str, ...]] = set()
        self._random = random.Random(self.seed)
        self._function = self.task.operator.reference(self.task.workload)
        self._target = self.task.target.tvm_target()
        self._database = ms.database.MemoryDatabase()
        self._context: TuneContext | None = None
        self._suggested = self.task.space.guesses(WARMUP, self.seed)
        self._timed_out: set[tuple[int | str, ...]] = set()

    @property
    def exhausted(self) -> bool:
        """Whether every point of the space was proposed."""
        return len(self._seen) >= self.task.space.size

    def propose(self, count: int) -> list[Point]:
        """Up to ``count`` new points, the most promising ones; none when the space is exhausted."""
        points = self._take(self._new(self._suggested)[:count])
        if self.task.space.size > ENUMERATED:
            points += self._evolve(count - len(points))
        return points + self._neighbours(count - len(points))

    def suggest(self, points: Iterable[Point]) -> None:
        """Propose these first, as far as the space has them."""
        self._suggested += [point for point in points if self.task.space.positions(point) is not None]

    def learn(self, records: Iterable[Record]) -> None:
        """Take in trials, of this run or of earlier ones. One that took too long is proposed once more.

        A loaded host is slow too: only a second timeout says something of the point.
        """
        inside = [record for record in records if self.task.space.positions(record.knobs) is not None]
        again = [record for record in inside if self._first_timeout(record)]
        self._suggested += [dict(record.knobs) for record in again]
        inside = [record for record in inside if record not in again]
        self._seen |= {_identity(record.knobs) for record in inside}
        if self.task.space.size <= ENUMERATED or not inside:
            return
        context = self._tune_context()
        known = [(self._candidate(record.knobs), _result(record)) for record in inside]
        known = [(candidate, result) for candidate, result in known if candidate is not None]
        if not known:
            return
        candidates, results = [list(each) for each in zip(*known, strict=True)]
        workload = self._database.commit_workload(context.mod)
        for candidate, result in zip(candidates, results, strict=True):
            if result.run_secs:
                self._database.commit_tuning_record(
                    ms.database.TuningRecord(
                        candidate.sch.trace, workload, result.run_secs, self._target, candidate.args_info
                    )
                )
        self.model.update(context, candidates, results)

    def _first_timeout(self, record: Record) -> bool:
        identity = _identity(record.knobs)
        if record.status != "timeout" or identity in self._timed_out:
            return False
        self._timed_out.add(identity)
        self._seen.discard(identity)
        return True

    def _evolve(self, count: int) -> list[Point]:
        """New points from MetaSchedule; it may also give old ones, which are dropped."""
        context = self._tune_context()
        points: list[Point] = []
        for _attempt in range(3):
            candidates = context.generate_measure_candidates()
            if not candidates:
                break
            # The strategy counts on an answer before it is asked again; records reach it by database and cost model.
            context.notify_runner_results(candidates, [ms.runner.RunnerResult(None, "elsewhere")] * len(candidates))
            points += self._new(self.task.space.point(candidate.sch.trace) for candidate in candidates)
            if len(points) >= count:
                break
        return self._take(points[:count])

    def _neighbours(self, count: int) -> list[Point]:
        """New points, those that differ in the fewest knobs from the best known (else the default) first."""
        centre = {**self.task.default, **(self._best() or {})}
        points: list[Point] = []
        for distance in range(len(centre) + 1):
            if len(points) >= count:
                break
            ring = self._new(itertools.islice(self._ring(centre, distance), 5000))
            self._random.shuffle(ring)
            points += ring
        return self._take(points[:count])

    def _ring(self, centre: Point, distance: int) -> Iterable[Point]:
        """All points that differ from ``centre`` in just so many knobs."""
        knobs = self.task.space.knobs
        for names in itertools.combinations(knobs, distance):
            others = [[value for value in knobs[name] if value != centre[name]] for name in names]
            for values in itertools.product(*others):
                yield {**centre, **dict(zip(names, values, strict=True))}

    def _best(self) -> Point | None:
        if self._context is None:
            return None
        workload = self._database.commit_workload(self._context.mod)
        top = self._database.get_top_k(workload, 1)
        return self.task.space.point(top[0].trace) if top else None

    def _new(self, points: Iterable[Point]) -> list[Point]:
        inside = (point for point in points if self.task.space.positions(point) is not None)
        return [point for point in inside if _identity(point) not in self._seen]

    def _take(self, points: list[Point]) -> list[Point]:
        distinct = {_identity(point): point for point in points}
        self._seen |= distinct.keys()
        return list(distinct.values())

    def _candidate(self, point: Mapping[str, int | str]) -> ms.MeasureCandidate | None:
        schedule = self.task.space.schedule(self._function, point)
        if schedule is None:
            return None
        return ms.MeasureCandidate(schedule, ms.arg_info.ArgInfo.from_entry_func(schedule.mod))

    def _tune_context(self) -> TuneContext:
        if self._context is None:
            self._context = TuneContext(
                self._function,
                self._target,
                space_generator=self.task.space.generator(self.seed),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=96, init_min_unmeasured=min(24, self.task.space.size // 4), genetic_num_iters=3
                ),
                task_name=self.task.name,
                seed=self.seed,
                logger=quiet(),
            )
            self._context.pre_tuning(1 << 20, 8, database=self._database, cost_model=self.model)
        return self._context


def _identity(point: Mapping[str, int | str]) -> tuple[int | str, ...]:
    return tuple(point[name] for name in sorted(point))


def _result(record: Record) -> ms.runner.RunnerResult:
    return ms.runner.RunnerResult([record.seconds], None) if record.ok else ms.runner.RunnerResult(None, record.status)
