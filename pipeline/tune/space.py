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

from bitkiln.schedules import generic
from bitkiln.schedules.generic import guess
from bitkiln.schedules.generic.sketches import Sketch, signature, sketches
from bitkiln.schedules.metaschedule import ms, own_space
from bitkiln.schedules.workload import Generic, Tunable
from bitkiln.targets import Target

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

    def generator(self, seed: int) -> ms.SpaceGenerator:
        """The space as MetaSchedule takes it."""
        mutators = {MutateKnob(seed): 1.0}
        return ms.space_generator.ScheduleFn(self.sample, sch_rules=[], postprocs=[], mutator_probs=mutators)

    def guesses(self, count: int, seed: int) -> list[Point]:
        """Points to try before a cost model has learnt anything, at most ``count``."""
        return []

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

    def schedule(self, function: tirx.PrimFunc, point: Mapping[str, int | str]) -> Schedule | None:
        """The schedule of ``function`` with the decisions of ``point``, which must be inside of the space.

        None where the cost model has nothing to learn from it.
        """
        positions = self.positions(point)
        assert positions is not None
        schedule = Schedule(function)
        root = schedule.get_sblock("root")
        for (name, values), at in zip(self.knobs.items(), positions, strict=True):
            count = len(values)
            chosen = schedule.sample_categorical(list(range(count)), [1.0 / count] * count, decision=at)
            schedule.annotate(root, PREFIX + name, chosen)
        return schedule


class DerivedSpace(Space):
    """The space of a function that MetaSchedule derives programs of: what is measured is what it derived.

    Knobs that the sketch of a point does not have are at their first values.
    """

    def __init__(self, workload: Generic, target: Target) -> None:
        super().__init__(generic.space(workload, target))
        self._target = target
        self._sketches: Mapping[str, Sketch] = {each.name: each for each in sketches(workload.function, target)}
        self._signatures = {signature(each.trace): each for each in self._sketches.values()}

    def generator(self, seed: int) -> ms.SpaceGenerator:
        """MetaSchedule's rules."""
        return own_space()

    def guesses(self, count: int, seed: int) -> list[Point]:
        """Tiles that the registers suggest."""
        return [self._point(name, decided) for name, decided in guess.points(self._sketches, self._target, count, seed)]

    def point(self, trace: Trace) -> Point:
        """The sketch of the trace and its decisions."""
        sketch = self._signatures[signature(trace)]
        return self._point(sketch.name, sketch.values(trace))

    def positions(self, point: Mapping[str, int | str]) -> list[int] | None:
        """The position of each knob's value; None for a point outside of the space."""
        found = super().positions(point)
        if found is None:
            return None
        sketch = self._sketches.get(str(point[generic.SKETCH]))
        decided = {name: point[name] for name in sketch.knobs} if sketch else {}
        return found if self._point(point[generic.SKETCH], decided) == dict(point) else None

    def schedule(self, function: tirx.PrimFunc, point: Mapping[str, int | str]) -> Schedule | None:
        """The program of ``point``; None for the recipe, which is none of MetaSchedule's."""
        sketch = self._sketches.get(str(point[generic.SKETCH]))
        return sketch.schedule(point, self._target) if sketch else None

    def _point(self, sketch: int | str, decided: Mapping[str, int | str]) -> Point:
        first = {name: values[0] for name, values in self.knobs.items()}
        return {**first, generic.SKETCH: sketch, **decided}


def space_of(workload: Tunable, knobs: Mapping[str, Sequence[int | str]], target: Target) -> Space:
    """The space of a workload whose operator has ``knobs``."""
    return DerivedSpace(workload, target) if isinstance(workload, Generic) else Space(knobs)


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
