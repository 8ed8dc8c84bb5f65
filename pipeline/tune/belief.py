"""Whether a measurement can be believed: boards fail, throttle, are of another kind than the target, or answer falsely."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from bitkiln.pipeline.boards.answers import Measurement
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.records.choice import cpu_of
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.kernel import size_of
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: How far below the floor an answer may be: clocks are measured to 2 %.
TOLERANCE = 0.95
#: How far a board's clock may be above its target's; boards are overclocked, but not to another kind.
CLOCK_MARGIN = 1.25
#: The most that a transform of the first layer saves: 7x7 taps of stride 2 are four phases of 4x4, each of which the
#: transform F(4x4, 4x4) does with 49 products for 256.
STEM_SAVES = 256 / 49
#: Seven products of halves for eight.
STRASSEN_SAVES = 8 / 7


def doubt(task: Task, knobs: Mapping[str, int | str], found: Measurement) -> str:
    """Why ``found`` cannot count as the time of ``knobs`` on the task's target; empty where it can."""
    if not found.complete:
        return "incomplete: the timing model met instructions that it has no rule for"
    if found.kind == "board" and found.cpu and found.cpu.lower() != cpu_of(task.target).lower():
        return f"measured on a {found.cpu}, {task.target.name} has a {cpu_of(task.target)}"
    if found.clock_mhz and found.kind == "board" and found.clock_mhz > CLOCK_MARGIN * task.target.mhz:
        return f"measured at {found.clock_mhz:g} MHz, {task.target.name} has {task.target.mhz}"
    cycles = found.cycles or found.seconds * task.target.mhz * 1e6
    floor = floor_cycles(task, knobs) / task.threads
    if cycles < TOLERANCE * floor:
        return f"{cycles:,.0f} cycles are less than the {floor:,.0f} that its multiplications alone take"
    return ""


def floor_cycles(task: Task, knobs: Mapping[str, int | str]) -> float:
    """Cycles of one core for the products alone of the algorithm that ``knobs`` choose, at the core's peak."""
    binary = isinstance(task.workload, Conv2d) and task.workload.binary
    peak = float(task.target.cpu["peak_binary_mac_per_cycle" if binary else "peak_f32_mac_per_cycle"])
    return task.workload.macs / peak / _saving(task, str(knobs.get("algorithm", "direct")))


def _saving(task: Task, algorithm: str) -> float:
    """How many times fewer products than the direct one an algorithm needs: Winograd's F(m, r) takes m + r - 1 for m * r."""
    if algorithm == "stem winograd":
        return STEM_SAVES
    if algorithm == "strassen":
        return STRASSEN_SAVES
    name, *words = algorithm.split()
    if name != "winograd" or not isinstance(task.workload, Conv2d):
        return 1.0
    sizes = zip(size_of(words[0]), task.workload.kernel, strict=True)
    return prod(m * r / (m + r - 1) for m, r in sizes)


def compare_identity(identity: Mapping[str, Any], target: Target) -> str:
    """Hold a board against the target before anything is measured; gives the text of a warning, or "".

    Raises BoardError where its CPU is another.
    """
    if identity["kind"] == "emulated":
        raise BoardError(
            f"the boards are emulated ({identity['measured_by']}): their times say nothing of {target.name}"
        )
    if identity["kind"] != "board":
        return ""
    cpu = identity["cpu"]
    if cpu.lower() != cpu_of(target).lower():
        raise BoardError(
            f"{identity['measured_by']}: its CPU is a {cpu or 'unknown one'}, {target.name} has a {cpu_of(target)}; "
            "name another --target, or boards of another --key"
        )
    differences = []
    most = identity.get("max_mhz")
    if most and not target.mhz / CLOCK_MARGIN <= most <= CLOCK_MARGIN * target.mhz:
        differences.append(f"it runs at up to {most:g} MHz, {target.name} at {target.mhz}")
    for name in ("l1d_kib", "l2_kib"):
        there = identity.get("caches", {}).get(name)
        if there and there != int(target.cpu[name]):
            differences.append(
                f"its {name.partition('_')[0].upper()} has {there} KiB, {target.name}'s {target.cpu[name]}"
            )
    return "; ".join(differences)
