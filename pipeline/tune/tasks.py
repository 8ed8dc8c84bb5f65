"""What there is to tune in a set of networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from tvm import tirx

from bitkiln.pipeline.compile.plan import read_network
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.passes.pipeline import lower
from bitkiln.pipeline.tune.space import Point, space_of
from bitkiln.schedules import generic
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import WORKLOAD_ATTR, Conv2d, Tunable, from_json
from bitkiln.targets import Target

#: Elements or multiply-accumulates that take a general kernel about 0.1 ms.
FELT = 50_000


@dataclass
class Task:
    """A workload to tune for a number of threads; ``occurrences`` counts the layers that have it, over all networks."""

    workload: Tunable
    target: Target
    occurrences: int = 0
    models: list[str] = field(default_factory=list)
    threads: int = 1

    def __post_init__(self) -> None:
        self.operator = operator_for(self.workload)
        self.space = space_of(self.workload, self.operator.space(self.workload, self.target), self.target)
        self.default: Point = dict(self.operator.default(self.workload, self.target, self.threads))
        self.key = self.workload.key()

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.key} on {self.threads} threads" if self.threads > 1 else self.key

    @property
    def family(self) -> str:
        """Tasks of one family have alike spaces and share a cost model."""
        return f"{self.key.split()[0]} {self.threads}"

    @property
    def roof_seconds(self) -> float:
        """The time that the target's peak arithmetic and memory allow a direct computation; transforms may beat it."""
        binary = isinstance(self.workload, Conv2d) and self.workload.binary
        peak = float(self.target.cpu["peak_binary_mac_per_cycle" if binary else "peak_f32_mac_per_cycle"])
        arithmetic = self.workload.macs / (self.threads * peak * self.target.mhz * 1e6)
        return max(arithmetic, self._streamed / (self.target.dram_mb_s(self.threads) * 1e6))

    @property
    def _streamed(self) -> int:
        """Bytes of constants too large to stay in the cache from one run to the next."""
        constants = sum(prod(shape) * (1 if dtype == "uint8" else 4) for shape, dtype in self.workload.shapes[1:-1])
        return constants if constants > 1024 * int(self.target.cpu["l2_kib"]) else 0


def extract_tasks(models: Iterable[Model], target: Target, threads: Sequence[int] = (1,)) -> list[Task]:
    """The distinct workloads of ``models`` whose schedules leave a choice, in the order in which the networks run them.

    Each is a task for every number of ``threads``.
    """
    tasks: dict[tuple[str, int], Task] = {}
    for model in models:
        module = lower(model, target).module
        for call in read_network(module).calls:
            function = module[call.kernel]
            workload = _workload_of(call.kernel, function)
            if workload is None:
                continue
            for count in threads:
                task = tasks.setdefault((workload.key(), count), Task(workload, target, threads=count))
                task.occurrences += 1
                if model.name not in task.models:
                    task.models.append(model.name)
    return [task for task in tasks.values() if task.space.size > 1]


def _workload_of(name: str, function: tirx.PrimFunc) -> Tunable | None:
    """What a step's function computes; None where it takes too little for its tuning to be felt."""
    if function.attrs and WORKLOAD_ATTR in function.attrs:
        return from_json(str(function.attrs[WORKLOAD_ATTR]))
    found = generic.workload_of(name, function)
    elements = sum(prod(shape) for shape, _ in found.shapes) if found else 0
    return found if found and max(elements, found.macs) >= FELT else None
