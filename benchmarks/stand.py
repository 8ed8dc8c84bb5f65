"""The simulated board as a place where programs of other projects run and are timed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import wheels
from bitkiln.pipeline.boards.userland import missing_as_setup_error
from bitkiln.pipeline.errors import BoardError
from bitkiln.targets import Target
from bitkiln.targets.sim.build import plugin, plugin_options
from bitkiln.targets.sim.identity import write_cpu_identity

GUEST = Path(__file__).with_name("guest.py")
ANSWER = "answer: "
UNMODELLED = "some instructions not modelled"
#: Seconds for one measurement: the slowest here, untuned float networks, take about a minute.
TIMEOUT = 900.0


@dataclass(frozen=True)
class Job:
    """What guest.py is to do; ``expected`` are the network's outputs, in order."""

    engine: str
    files: Sequence[Path]
    input: np.ndarray
    expected: Sequence[np.ndarray]
    tolerance: float
    threads: int = 1
    options: Mapping[str, object] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Its file, with those it names, in ``folder``."""
        np.save(folder / "input.npy", self.input)
        np.savez(folder / "expected.npz", *self.expected)
        plain = {
            "engine": self.engine,
            "options": dict(self.options),
            "threads": self.threads,
            "tolerance": self.tolerance,
        }
        plain |= {"files": list(map(str, self.files))}
        plain |= {"input": str(folder / "input.npy"), "expected": str(folder / "expected.npz")}
        (folder / "job.json").write_text(json.dumps(plain), encoding="utf-8")
        return folder / "job.json"


@dataclass(frozen=True)
class Measurement:
    """One timed run: cycles from its begin to its end, how far its output was off (of its norm), and what measured it."""

    cycles: int
    error: float
    measured_by: str


class Stand:
    """Runs engines in an ARM userland under the timing model, with the parameters of ``target``."""

    def __init__(self, target: Target) -> None:
        """Raises SetupError for whatever this machine lacks."""
        self.target = target
        self.packages = wheels.board_packages(target)
        parameters = {"cpu": target.cpu, "dram": target.dram}
        with missing_as_setup_error():
            self.plugin = ",".join([str(plugin()), *plugin_options(parameters)])
        # Without it libraries choose kernels for the host's CPU.
        bits = 64 if target.architecture == "aarch64" else 32
        write_cpu_identity(self.packages.userland.root, parameters, bits)

    def measure(self, job: Job) -> Measurement:
        """Time a warm run of a network, once its answer is right. Raises BoardError."""
        with tempfile.TemporaryDirectory(prefix="bitkiln-bench-") as scratch:
            answer = self._run(job.engine, ["python3", str(GUEST), str(job.write(Path(scratch)))])
        report = answer["report"]
        if "cycles" not in (report or {}):
            raise BoardError(f"{job.engine} ran, but the timing model made no report of it")
        return Measurement(report["cycles"], answer["error"], self._name(report, job.threads))

    @staticmethod
    def _name(report: Mapping[str, Any], threads: int) -> str:
        """What board_server.py calls such a board."""
        cores = "1 core" if threads == 1 else f"{threads} cores"
        name = f"simulated Cortex-A53, {cores}, model {report['model']}, {report['mhz']} MHz"
        return name if report["complete"] else f"{name}, {UNMODELLED}"

    def _run(self, engine: str, program: Sequence[str]) -> dict:
        environment = {
            **self.packages.userland.environment,
            **self.packages.environment,
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = self.packages.userland.command(program, self.plugin)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise BoardError(f"{engine} took more than {TIMEOUT:.0f} s on the simulated board")
        answers = [line.removeprefix(ANSWER) for line in done.stdout.splitlines() if line.startswith(ANSWER)]
        if done.returncode != 0 or not answers:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise BoardError(f"{engine} failed on the simulated board: {lines[-1] if lines else done.returncode}")
        return json.loads(answers[0])
