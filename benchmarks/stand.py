"""The simulated board as a place where programs of other projects run and are timed."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import wheels
from bitkiln.pipeline.boards.userland import Userland, missing_as_setup_error, userland
from bitkiln.pipeline.errors import BoardError
from bitkiln.targets import Target
from bitkiln.targets.sim.build import plugin, plugin_options
from bitkiln.targets.sim.identity import write_cpu_identity

GUEST = Path(__file__).with_name("guest.py")
REPORT = "report: "
UNMODELLED = "some instructions not modelled"
#: Seconds for one measurement: the slowest here, untuned float networks, take about a minute.
TIMEOUT = 900.0


@dataclass(frozen=True)
class Measurement:
    """One timed run: cycles from its begin to its end, the output (NCHW), and what measured it."""

    cycles: int
    output: np.ndarray
    measured_by: str


class Stand:
    """Runs engines in the arm64 userland under the timing model, with the parameters of ``target``."""

    def __init__(self, target: Target) -> None:
        """Raises SetupError for whatever this machine lacks."""
        self.target = target
        self.userland: Userland = userland(target)
        self.packages = wheels.board_packages()
        parameters = {"cpu": target.cpu, "dram": target.dram}
        with missing_as_setup_error():
            self.plugin = ",".join([str(plugin()), *plugin_options(parameters)])
        # Without it libraries choose kernels for the host's CPU.
        write_cpu_identity(self.userland.root, parameters)

    def measure(self, engine: str, files: Sequence[Path], data: np.ndarray, threads: int) -> Measurement:
        """Time the second run of a network in ``engine``; ``files`` and the engine as in guest.py. Raises BoardError."""
        with tempfile.TemporaryDirectory(prefix="bitkiln-bench-") as scratch:
            source, result = Path(scratch) / "input.npy", Path(scratch) / "output.npy"
            np.save(source, data)
            program = ["python3", str(GUEST), engine, str(source), str(result), str(threads), *map(str, files)]
            report = self._run(engine, program)
            return Measurement(report["cycles"], np.load(result), self._name(report, threads))

    @staticmethod
    def _name(report: Mapping[str, Any], threads: int) -> str:
        """What board_server.py calls such a board."""
        cores = "1 core" if threads == 1 else f"{threads} cores"
        name = f"simulated Cortex-A53, {cores}, model {report['model']}, {report['mhz']} MHz"
        return name if report["complete"] else f"{name}, {UNMODELLED}"

    def _run(self, engine: str, program: Sequence[str]) -> dict:
        environment = self.userland.environment | {
            "PYTHONPATH": str(self.packages),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",  # Which pages Python touches first then is the same in every run.
        }
        command = self.userland.command(program, self.plugin)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise BoardError(f"{engine} took more than {TIMEOUT:.0f} s on the simulated board")
        answers = [line.removeprefix(REPORT) for line in done.stdout.splitlines() if line.startswith(REPORT)]
        if done.returncode != 0 or not answers:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise BoardError(f"{engine} failed on the simulated board: {lines[-1] if lines else done.returncode}")
        report = json.loads(answers[0])
        if report is None:
            raise BoardError(f"{engine} ran, but the timing model made no report")
        return report
