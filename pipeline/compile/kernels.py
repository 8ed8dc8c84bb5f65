"""Chooses the kernel of each step: by the best tuning record, by default, or generic where no schedule exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import tvm
import tvm_ffi
from tvm import tirx

from bitkiln.pipeline.compile.plan import Network
from bitkiln.schedules import generic
from bitkiln.schedules.kernel import Kernel, Knobs
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import WORKLOAD_ATTR, Tunable, from_json, without_signs
from bitkiln.targets import Target


class Record(Protocol):
    """A tuning record, as far as compiling looks at it."""

    @property
    def knobs(self) -> Knobs:
        """The values of the workload's tuning space."""

    def as_json(self) -> Mapping[str, object]:
        """The record as plain data: what measured it, and how fast it was."""


class RecordSource(Protocol):
    """Where the best known knobs come from."""

    def best(self, workload: str, target: Target, threads: int, /) -> Record | None:
        """The fastest record of the workload with that key, for a board of this kind on so many threads."""


@dataclass(frozen=True)
class ChosenKernel:
    """The kernel of one workload, or a generic one, under its name in the library.

    ``source`` says who chose its knobs: "tuned", "default", or "generic" for kernels that have none.
    """

    symbol: str
    kind: str
    func: tirx.PrimFunc
    source: str
    kernel: Kernel | None = None
    workload: Tunable | None = None
    knobs: Knobs = field(default_factory=dict)
    record: Mapping[str, Any] | None = None


def choose_kernels(
    module: tvm.IRModule, network: Network, target: Target, records: RecordSource, threads: int = 1
) -> dict[str, ChosenKernel]:
    """The kernel of every PrimFunc that ``network`` calls, by the PrimFunc's name; equal ones share a symbol."""
    chosen: dict[str, ChosenKernel] = {}
    known: dict[str, ChosenKernel] = {}
    for name in dict.fromkeys(call.kernel for call in network.calls):
        func = module[name]
        identity = _identity(func)
        if identity not in known:
            known[identity] = _choose(f"kernel{len(known)}", name, func, target, records, threads)
        chosen[name] = known[identity]
    return chosen


def where_they_differ(several: Mapping[str, ChosenKernel], one: Mapping[str, ChosenKernel]) -> dict[str, ChosenKernel]:
    """Of the kernels for ``several`` threads those that are others than for ``one``, under symbols of their own."""
    differing = {name: kernel for name, kernel in several.items() if not _same(kernel, one[name])}
    return {name: replace(kernel, symbol=f"{kernel.symbol}_several") for name, kernel in differing.items()}


def _same(one: ChosenKernel, other: ChosenKernel) -> bool:
    """Some kernels are others for several threads at the same knobs."""
    return one.knobs == other.knobs and tvm_ffi.structural_equal(one.func, other.func)


def _identity(func: tirx.PrimFunc) -> str:
    """Equal for functions that may share a kernel. A workload's key would not do: it rounds numbers."""
    if func.attrs and WORKLOAD_ATTR in func.attrs:
        return str(func.attrs[WORKLOAD_ATTR])
    return tvm.ir.save_json(func.without_attr("global_symbol"))


def _choose(
    symbol: str, name: str, func: tirx.PrimFunc, target: Target, records: RecordSource, threads: int
) -> ChosenKernel:
    if not (func.attrs and WORKLOAD_ATTR in func.attrs):
        return _choose_generic(symbol, name, func, target, records, threads)
    workload = from_json(str(func.attrs[WORKLOAD_ATTR]))
    knobs, record = choose_knobs(workload, target, records, threads)
    kernel = operator_for(workload).emit(workload, knobs, target, threads)
    source, proof = ("tuned", record.as_json()) if record else ("default", None)
    kind = workload.key().split()[0]
    return ChosenKernel(symbol, kind, kernel.func, source, kernel, workload, dict(knobs), proof)


def _choose_generic(
    symbol: str, name: str, func: tirx.PrimFunc, target: Target, records: RecordSource, threads: int
) -> ChosenKernel:
    workload = generic.workload_of(name, func)
    if workload is None:
        return ChosenKernel(symbol, name, generic.schedule(func), "generic")
    record = records.best(workload.key(), target, threads)
    if record is not None and _within(record.knobs, generic.space(workload, target)):
        kernel = generic.emit(workload, record.knobs, target, threads)
        return ChosenKernel(symbol, name, kernel.func, "tuned", kernel, workload, dict(record.knobs), record.as_json())
    knobs = generic.untuned(workload, target)
    kernel = generic.emit(workload, knobs, target, threads)
    return ChosenKernel(symbol, name, kernel.func, "generic", kernel, workload, knobs)


def choose_knobs(
    workload: Tunable, target: Target, records: RecordSource, threads: int = 1
) -> tuple[Knobs, Record | None]:
    """The best recorded knobs and their record; the untuned default where no record fits the tuning space.

    Signs beside a result take little of the time: where nothing was measured with them, records without them decide.
    """
    operator = operator_for(workload)
    for key in dict.fromkeys((workload.key(), without_signs(workload).key())):
        record = records.best(key, target, threads)
        if record is not None and _within(record.knobs, operator.space(workload, target)):
            return record.knobs, record
    return operator.default(workload, target, threads), None


def _within(knobs: Knobs, space: Mapping[str, Sequence[int | str]]) -> bool:
    """Records of another kind of board, or of older schedules, may lie outside of the space."""
    return knobs.keys() == space.keys() and all(value in space[name] for name, value in knobs.items())
