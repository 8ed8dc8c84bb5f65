"""What the cost model sees of a candidate: its knobs and the workload's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.ir.utils import derived_object

from bitkiln.pipeline.tune.space import Point
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.metaschedule import ms
from bitkiln.schedules.workload import Generic, Workload


@dataclass(frozen=True)
class Layout:
    """The columns shared by a family of tasks: the knobs any of them has, with all values any of them allows."""

    knobs: Mapping[str, Sequence[int | str]]

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Layout:
        """The layout that holds the spaces of ``tasks``."""
        knobs: dict[str, dict[int | str, None]] = {}
        for task in tasks:
            for name, values in task.space.knobs.items():
                knobs.setdefault(name, {}).update(dict.fromkeys(values))
        return cls({name: tuple(sorted(values, key=str)) for name, values in sorted(knobs.items())})

    def row(self, task: Task, point: Point) -> list[float]:
        """Numbers for one candidate; a knob the task does not have is NaN, which the trees take as missing."""
        assert not isinstance(task.workload, Generic), "derived programs have features of their own"
        return [*_numbers(task.workload), *(column for name in self.knobs for column in self._knob(name, point))]

    def _knob(self, name: str, point: Point) -> list[float]:
        """A number as itself and its logarithm, a word as one column for each word there is."""
        values = self.knobs[name]
        if all(isinstance(value, int) for value in values):
            if name not in point:
                return [math.nan, math.nan]
            value = float(point[name])
            return [value, math.log2(value) if value > 0 else -1.0]
        return [float(point.get(name) == value) for value in values]


def _numbers(workload: Workload) -> list[float]:
    names = ("height", "width", "channels", "out_channels", "matrices", "rows", "inner", "columns")
    sizes = [getattr(workload, name, 0) for name in names]
    sizes += [*getattr(workload, "kernel", (0, 0)), *getattr(workload, "strides", (0, 0))]
    return [float(size) for size in sizes] + [math.log2(workload.macs + 1)]


@derived_object
class KnobFeatures(ms.feature_extractor.PyFeatureExtractor):
    """One row of a ``Layout`` for each candidate. ``tasks`` finds the task of a MetaSchedule context by its name."""

    def __init__(self, layout: Layout, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.layout = layout
        self.tasks = tasks

    def extract_from(self, context: ms.TuneContext, candidates: list[ms.MeasureCandidate]) -> list[tvm.runtime.Tensor]:
        """A float32 tensor [1, columns] for each candidate."""
        task = self.tasks[str(context.task_name)]
        rows = (self.layout.row(task, task.space.point(candidate.sch.trace)) for candidate in candidates)
        return [tvm.runtime.tensor(np.array([row], "float32")) for row in rows]
