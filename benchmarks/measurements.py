"""Measures a work with an engine, ours or another's, on one simulated board."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import peers, report, wheels
from benchmarks.networks import Work
from benchmarks.stand import Stand
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target
from bitkiln.targets.sim import unlike

if TYPE_CHECKING:
    from benchmarks.ours import Ours


class Bench:
    """The simulated board for ``target``; what an engine needs is fetched and built when it is first asked for."""

    def __init__(self, target: Target, threads: int) -> None:
        if (why := unlike(target)) is not None:
            raise SetupError(why)
        self.target, self.threads = target, threads

    @cached_property
    def _stand(self) -> Stand:
        return Stand(self.target)

    @cached_property
    def _ours(self) -> Ours:
        from benchmarks.ours import Ours  # Brings TVM with it, which takes a second and which others do without.

        return Ours(self.target, self.threads)

    def measure(self, work: Work, engine: str, folder: Path) -> tuple[int, str]:
        """Cycles of a warm frame and how they were measured; ``folder`` takes files. Raises BitkilnError."""
        if engine == report.OURS:
            return self._ours.measure(work, folder)
        measured = peers.measure(engine, work, self._stand, folder, self.threads)
        return measured.cycles, f"{measured.measured_by}; {engine} {wheels.VERSIONS[engine]}, as float"
