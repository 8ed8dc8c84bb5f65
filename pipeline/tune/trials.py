"""One trial: build a candidate, run it on a board, hold its results against the default's, say how fast it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitkiln.pipeline.boards.board import KernelFailed, Measurement, Output, Request, SharedBoards
from bitkiln.pipeline.boards.tracker import NoBoard
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.records import Record, Status
from bitkiln.pipeline.support.text import printable
from bitkiln.pipeline.tune.belief import doubt
from bitkiln.pipeline.tune.builder import Artifact, Builder, BuildFailed
from bitkiln.pipeline.tune.data import disagreement
from bitkiln.pipeline.tune.tasks import Task
from bitkiln.schedules.workload import result_specs

#: A candidate this many times slower than the best is stopped early.
GIVE_UP_AT = 3.0
#: Seconds for a trial before anything is known of its task.
FIRST_LIMIT = 300.0
#: Seconds to wait for a tracker or a board that went away.
PATIENCE = 120.0
#: Characters of what a compiler or a board may say in a record.
MOST_MESSAGE = 500
#: How much slower than the board it stands for a simulated one runs, at worst.
SIMULATION_SLOWDOWN = 400.0


@dataclass(frozen=True)
class Expected:
    """One of the default's results: its digest and bytes."""

    sha256: str
    data: bytes


class BoardLost(BoardError):
    """There is no board any more: tuning cannot go on."""


class Trials:
    """Runs trials; threads may do so side by side, as many as there are boards and builders."""

    def __init__(self, builder: Builder, board: SharedBoards, slots: int) -> None:
        self._builder = builder
        self._board = board
        self._slots = threading.BoundedSemaphore(slots)
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Give up all trials in flight, soon."""
        self._abandoned.set()
        self._builder.close()
        self._board.hang_up()

    def reference(self, task: Task) -> tuple[tuple[Expected, ...], Record]:
        """Build and measure the untuned default of ``task``; all its results. Raises BoardError where even that fails."""
        try:
            artifact = self._builder.build(task.workload, task.default, task.target, task.threads)
        except BuildFailed as problem:
            raise BoardError(f"{task.key}: the untuned default does not compile ({problem})")
        try:
            found = self._measure(artifact, Request(task.threads, outputs=True, limit_seconds=FIRST_LIMIT), frozenset())
        except KernelFailed as problem:
            raise BoardError(f"{task.key}: the untuned default fails ({problem})")
        finally:
            artifact.discard()
        expected = [Expected(each.sha256, each.data) for each in _results(task, found) if each.data is not None]
        if len(expected) < len(found.outputs):
            raise BoardError(f"{task.key}: the board gives no results of the untuned default")
        record = _record(task, task.default, found, default=True)
        if record.status == "doubted":
            raise BoardError(
                f"{task.key}: the board's answer for the untuned default cannot be believed: {record.message}"
            )
        return tuple(expected), record

    def candidate(
        self, task: Task, knobs: Mapping[str, int | str], expected: Sequence[Expected], best: Record
    ) -> Record:
        """Try one candidate; whatever becomes of it is a record. Raises BoardLost."""
        try:
            artifact = self._builder.build(task.workload, knobs, task.target, task.threads)
        except BuildFailed as problem:
            return _failure(task, knobs, "build", str(problem), best)
        try:
            found = self._measure(artifact, _request(task, best), frozenset(each.sha256 for each in expected))
        except KernelFailed as problem:
            return _failure(task, knobs, problem.status, str(problem), best)
        finally:
            artifact.discard()
        try:
            results = _results(task, found)
        except BoardError as problem:
            return _failure(task, knobs, "wrong", str(problem), best)
        for number, (output, wanted) in enumerate(zip(results, expected, strict=True)):
            if output.sha256 == wanted.sha256:
                continue
            difference = disagreement(task.workload, wanted.data, output.data or b"", number)
            if difference:
                return _failure(task, knobs, "wrong", difference, best)
        return _record(task, knobs, found)

    def _measure(self, artifact: Artifact, request: Request, known: frozenset[str]) -> Measurement:
        """Measure; a board lost meanwhile, and a tracker gone, get a second chance. Raises KernelFailed, BoardLost."""
        inputs = artifact.inputs()
        losses = 0
        deadline = time.monotonic() + PATIENCE
        with self._slots:
            while True:
                if self._abandoned.is_set():
                    raise BoardLost("tuning was ended")
                try:
                    return self._board.measure(artifact.library, request, inputs, known)
                except KernelFailed:
                    raise
                except NoBoard as error:
                    if time.monotonic() > deadline:
                        raise BoardLost(f"{error}; finished trials are saved, run again to go on")
                    time.sleep(1)
                except BoardError as error:
                    losses += 1
                    if losses == 2:
                        raise KernelFailed("lost", f"the board was lost twice while it ran ({error})")
                    deadline = time.monotonic() + PATIENCE


def _request(task: Task, best: Record) -> Request:
    """How long a candidate may take, given the best so far."""
    if best.unit == "cycles":
        # One core is simulated at a time.
        seconds = 20 + GIVE_UP_AT * best.seconds * SIMULATION_SLOWDOWN * task.threads
        most = int(GIVE_UP_AT * (best.value or 0))
        return Request(task.threads, outputs=True, limit_cycles=most, limit_seconds=seconds)
    return Request(task.threads, outputs=True, limit_seconds=10 + 20 * GIVE_UP_AT * best.seconds)


def _results(task: Task, found: Measurement) -> Sequence[Output]:
    """The outputs that a kernel has. Raises BoardError where the board says otherwise."""
    wanted = len(result_specs(task.workload))
    if len(found.outputs) != wanted:
        raise BoardError(f"{task.key}: {len(found.outputs)} outputs came back of a kernel that has {wanted}")
    return found.outputs


def _record(task: Task, knobs: Mapping[str, int | str], found: Measurement, default: bool = False) -> Record:
    problem = doubt(task, knobs, found)
    return Record(
        task.key,
        task.target.name,
        dict(knobs),
        status="doubted" if problem else "ok",
        unit=found.unit,
        value=found.value,
        clock_mhz=found.clock_mhz,
        kind=found.kind,
        measured_by=found.measured_by,
        cpu=found.cpu,
        threads=task.threads,
        default=default,
        unsteady=not found.steady,
        health=dict(found.health),
        message=problem or ("" if found.steady else "the board's clock moved while it was measured"),
    )


def _failure(task: Task, knobs: Mapping[str, int | str], status: Status, message: str, best: Record) -> Record:
    return Record(
        task.key,
        task.target.name,
        dict(knobs),
        status=status,
        message=printable(" ".join(message.split()), MOST_MESSAGE),
        kind=best.kind,
        measured_by=best.measured_by,
        clock_mhz=best.clock_mhz,
        threads=task.threads,
    )
