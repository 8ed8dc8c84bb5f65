"""A schedule's tuning space as MetaSchedule sees it.

The kernels that are measured are emitted by our schedules, not derived from TIR. MetaSchedule is given the workload's
reference function, a trace with one ``sample_categorical`` for each knob, and an annotation of the root block for each
decision, which makes different points of the space different programs to it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir.schedule import InstructionKind, Schedule, Trace

from bitkiln.pipeline.tune.metaschedule import ms

PREFIX = "bitkiln.knob."

Point = dict[str, int | str]


@dataclass(frozen=True)
class Space:
    """The values each knob may take, knobs in a fixed order."""

    knobs: Mapping[str, Sequence[int | str]]

    @property
    def size(self) -> int:
        """How many points it has."""
        size = 1
        for values in self.knobs.values():
            size *= len(values)
        return size

    def sample(self, schedule: Schedule) -> None:
        """Sample each knob and annotate the root block with the decision, as a position in the knob's values."""
        root = schedule.get_sblock("root")
        for name, values in self.knobs.items():
            count = len(values)
            position = schedule.sample_categorical(list(range(count)), [1.0 / count] * count)
            schedule.annotate(root, PREFIX + name, position)

    def point(self, trace: Trace) -> Point:
        """The knobs' values that the trace decided on."""
        decided = [int(trace.decisions[step]) for step in sampling_steps(trace)]
        return {name: values[at] for (name, values), at in zip(self.knobs.items(), decided, strict=True)}

    def positions(self, point: Mapping[str, int | str]) -> list[int] | None:
        """The position of each knob's value; None for a point outside of the space."""
        if point.keys() != self.knobs.keys() or any(point[name] not in values for name, values in self.knobs.items()):
            return None
        return [list(values).index(point[name]) for name, values in self.knobs.items()]

    def schedule(self, function: tirx.PrimFunc, point: Mapping[str, int | str]) -> Schedule:
        """The schedule of ``function`` with the decisions of ``point``, which must be inside of the space."""
        positions = self.positions(point)
        assert positions is not None
        schedule = Schedule(function)
        root = schedule.get_sblock("root")
        for (name, values), at in zip(self.knobs.items(), positions, strict=True):
            count = len(values)
            chosen = schedule.sample_categorical(list(range(count)), [1.0 / count] * count, decision=at)
            schedule.annotate(root, PREFIX + name, chosen)
        return schedule


_CATEGORICAL = InstructionKind.get("SampleCategorical")


def sampling_steps(trace: Trace) -> list[Any]:
    """The trace's sampling instructions, in the order of the knobs."""
    return [step for step in trace.insts if step.kind.same_as(_CATEGORICAL)]


@derived_object
class MutateKnob(ms.mutator.PyMutator):
    """Changes one decision of a trace to another value."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        """Nothing to prepare."""

    def apply(self, trace: Trace, _: int) -> Trace | None:
        """A trace with one knob changed, or None where no knob has a second value."""
        movable = [step for step in sampling_steps(trace) if len(step.attrs[0]) > 1]
        if not movable:
            return None
        step = self.random.choice(movable)
        present = int(trace.decisions[step])
        others = [at for at in range(len(step.attrs[0])) if at != present]
        return trace.with_decision(step, self.random.choice(others), remove_postproc=True)

    def clone(self) -> ms.mutator.Mutator:
        """A copy with a new seed."""
        return MutateKnob(self.random.randrange(1 << 30))
