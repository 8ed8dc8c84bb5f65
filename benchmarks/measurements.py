"""Measures a work with an engine, ours or another's, on one simulated board; ours on a real one, too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import peers, report
from benchmarks.networks import Work
from benchmarks.stand import Stand
from bitkiln.pipeline.errors import SetupError
from bitkiln.targets import Target
from bitkiln.targets.sim import unlike

if TYPE_CHECKING:
    from benchmarks.ours import Ours
    from bitkiln.pipeline.boards.board import Board


@dataclass(frozen=True)
class Figure:
    """Cycles (None where the clock is unknown) and ms of a frame, or None where it was not measured; how it was, or why not.

    ``error`` is how far another engine's output was off, of its norm.
    """

    cycles: int | None
    ms: float | None
    how: str
    error: float | None = None


class Bench:
    """A simulated board for ``target``, or ``board``; what an engine needs is fetched and built when it is first asked for."""

    def __init__(self, target: Target, threads: int, board: Board | None = None) -> None:
        if board is None and (why := unlike(target)) is not None:
            raise SetupError(why)
        self.target, self.threads, self.board = target, threads, board

    @cached_property
    def _stand(self) -> Stand:
        return Stand(self.target)

    @cached_property
    def _ours(self) -> Ours:
        from benchmarks.ours import Ours  # Brings TVM with it, which takes a second and which others do without.

        return Ours(self.target, self.threads, self.board)

    def measure(self, work: Work, engine: str, folder: Path) -> Figure:
        """A warm frame; ``folder`` takes files. Raises BitkilnError."""
        if engine in report.OWN:
            return Figure(*self._ours.measure(work, folder, report.is_int8(engine)))
        measured = peers.measure(engine, work, self._stand, folder, self.threads)
        ms = measured.cycles / (self.target.mhz * 1e3)
        return Figure(measured.cycles, ms, measured.measured_by, measured.error)
