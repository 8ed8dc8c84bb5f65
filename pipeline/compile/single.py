"""One kernel as a library of its own: what a trial of tuning sends to a board."""

from __future__ import annotations

from pathlib import Path

from bitkiln.pipeline.compile.library import LibraryFacts
from bitkiln.pipeline.compile.link import link_library
from bitkiln.pipeline.compile.plan import (
    PlannedCall,
    View,
    constant_view,
    make_plan,
    new_view,
)
from bitkiln.schedules.kernel import Constant, Kernel, Knobs
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Tunable
from bitkiln.targets import Target


def build_kernel_library(workload: Tunable, knobs: Knobs, target: Target, out: Path, threads: int = 1) -> Kernel:
    """Link one kernel as a network of one step whose arguments, as packed, are all inputs: the unit of tuning.

    Inputs are called ``arg0``, ``arg1``, ... and the output ``out``; of several the others ``out1``, ``out2``, ...
    Tables the kernel needs are embedded.
    """
    kernel = operator_for(workload).emit(workload, knobs, target, threads)
    link_kernel(kernel, target, out, kind=workload.key().split()[0])
    return kernel


def link_kernel(kernel: Kernel, target: Target, out: Path, kind: str = "kernel") -> LibraryFacts:
    """As ``build_kernel_library``, for a kernel already emitted."""
    views: list[View] = []
    for index, argument in enumerate(kernel.arguments):
        if isinstance(argument, Constant):
            views.append(constant_view(f"table{index}", argument.array))
        else:
            views.append(new_view(f"arg{index}", argument.shape, argument.dtype, boundary=True))
    results = tuple(
        new_view(f"out{index or ''}", [int(extent) for extent in written.shape], str(written.dtype))
        for index, written in enumerate(list(kernel.func.params)[len(views) :])
    )
    call = PlannedCall("out", kind, "kernel0", tuple(views), results)
    plan = make_plan([call], [view for view in views if view.storage.constant is None], results)
    return link_library({"kernel0": kernel.func}, kernel.microkernels, plan, target, out)
