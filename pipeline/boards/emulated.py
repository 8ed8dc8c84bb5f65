"""Runs a bundle by its own runner in the userland of its target, under qemu's user-mode emulation: right values, no timing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitkiln.pipeline.boards.userland import userland
from bitkiln.pipeline.device import runner
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support import processes
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder

#: Emulation is some ten times slower than a board; a network that takes longer hangs.
RUN_SECONDS = 600.0


Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StepTime:
    """How long one step took."""

    name: str
    kind: str
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What a network gave. ``measured_by`` names the clock behind ``seconds`` and the steps' times.

    ``trace`` holds the outputs of all steps by their names, where it was asked for. ``memory_bytes`` is what the network took,
    its library included; 0 where nobody said.
    """

    outputs: dict[str, np.ndarray]
    seconds: float
    measured_by: str
    threads: int
    steps: tuple[StepTime, ...] = ()
    trace: dict[str, np.ndarray] | None = None
    memory_bytes: int = 0


def on_emulator(folder: Path, target: Target, inputs: Tensors, threads: int = 1, with_trace: bool = False) -> Answer:
    """Run the bundle in ``folder`` by its own runner.py in the target's userland, under qemu."""
    system = userland(target)
    with scratch_folder() as name:
        work = Path(name)
        runner.write_tensors(str(work / "in.npz"), dict(inputs))
        argv = ["python3", str(folder / "runner.py"), str(folder), "--input", str(work / "in.npz"), "--json"]
        argv += ["--output", str(work / "out.npz"), "--threads", str(threads)]
        argv += ["--trace", str(work / "trace.npz")] if with_trace else []
        try:
            done = processes.run(system.command(argv), RUN_SECONDS, system.environment)
        except subprocess.TimeoutExpired:
            raise BoardError(f"{folder}: no answer from the emulated board in {RUN_SECONDS:g} s") from None
        if done.returncode != 0:
            raise BoardError(f"{folder} on the emulated board: {_complaint(done)}")
        report = json.loads(done.stdout)
        traced = read_arrays(work / "trace.npz") if with_trace else None
        label = f"emulated by {target.userland['qemu']} on this machine: no measure of a Cortex-A53"
        return answer_of(report, read_arrays(work / "out.npz"), label, traced)


def answer_of(report: Mapping[str, Any], outputs: dict[str, np.ndarray], label: str, traced: Any) -> Answer:
    """The answer that a runner's --json reports; bundles of version 0.2 list steps as [name, kind, seconds]."""
    old = "schema" not in report
    steps = tuple(StepTime(*(row if old else (row["name"], row["kind"], row["ms"] / 1e3))) for row in report["steps"])
    seconds = report["seconds"] if old else report["ms"] / 1e3
    return Answer(outputs, seconds, label, report["threads"], steps, traced, int(report.get("memory_bytes", 0)))


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"died of signal {-done.returncode}"
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("runner: ") if lines else f"exit status {done.returncode}"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in runner.read_tensors(str(path)).items()}
