"""Boards that others look after: each has to do a common kernel right, and as fast as its like, before its figures count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bitkiln.pipeline.boards import answers
from bitkiln.pipeline.boards.board import KernelFailed, Measurement, Request, TrackerBoard, measure_in
from bitkiln.pipeline.boards.roster import Roster, standings_file
from bitkiln.pipeline.boards.session import Session
from bitkiln.pipeline.boards.tracker import NoBoard
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.tune.belief import compare_identity, doubt
from bitkiln.pipeline.tune.builder import SEED, Artifact, Builder, BuildFailed
from bitkiln.pipeline.tune.data import disagreement, reference_result
from bitkiln.pipeline.tune.sample import sample_task
from bitkiln.targets import Target

#: Seconds for the common kernel, and beyond a request's own for uploads.
SAMPLE_SECONDS, GRACE_SECONDS = 60.0, 60.0
#: Boards that are set aside and met one after the other, before a trial is tried again later.
MOST_PARKED = 16


class CheckedBoards:
    """The boards of a key, less those that are not fit; see ``Board``. ``say`` is told what its user should know."""

    def __init__(self, boards: TrackerBoard, target: Target, builder: Builder, say: Callable[[str], None]) -> None:
        self._boards = boards
        self._task = sample_task(target)
        self._builder = builder
        self._artifact: Artifact | None = None
        self._building = threading.Lock()
        self._expected = reference_result(self._task.workload, SEED)
        self.roster = Roster(say, file=standings_file())

    def hang_up(self) -> None:
        """See ``TrackerBoard``."""
        self._boards.hang_up()

    def identity(self) -> Mapping[str, Any]:
        """What a board that fits the target is. Raises BoardError where none does."""
        problem: BoardError = NoBoard(f"no board of {self._boards.key!r} is free")
        with ExitStack() as parked:
            for _ in range(min(MOST_PARKED, self._boards.tracker.require(self._boards.key).count)):
                session = parked.enter_context(self._boards.session(SAMPLE_SECONDS))
                board = str(session.address)
                try:
                    found = answers.identity(session.call("bitkiln.identity"), f"board {session.board}")
                except BoardError as error:
                    self.roster.lost(board, str(error))
                    problem = error
                    continue
                try:
                    compare_identity(found, self._task.target)
                    return found
                except BoardError as error:
                    self.roster.refuse(board, str(error))
                    problem = error
        raise problem

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """See ``Board``."""
        with ExitStack() as parked:
            for _ in range(MOST_PARKED):
                # One that is set aside stays taken while we look for another: the tracker would offer it again.
                session = parked.enter_context(
                    self._boards.session(request.limit_seconds + SAMPLE_SECONDS + GRACE_SECONDS)
                )
                board = str(session.address)
                if not self.roster.aside(board) and self._is_fit(session, board):
                    return self._measure_on(session, board, library, request, inputs, known)
                if why := self.roster.all_aside(self._boards.tracker.require(self._boards.key).addresses):
                    raise NoBoard(f"all boards of {self._boards.key!r} are set aside: {why}")
        raise NoBoard(f"no board of {self._boards.key!r} is fit")

    def _measure_on(
        self,
        session: Session,
        board: str,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None,
        known: Collection[str],
    ) -> Measurement:
        try:
            found = measure_in(session, library, request, inputs, known)
        except KernelFailed:
            raise
        except BoardError as error:
            self.roster.lost(board, str(error))
            raise
        self.roster.measured(board, found)
        return found

    def _is_fit(self, session: Session, board: str) -> bool:
        """Whether the board may measure; one that is new, or comes back, does the common kernel first.

        A board that fails at it says nothing of the kernel that was to be measured: another board gets that.
        """
        if not self.roster.must_check(board):
            return True
        artifact = self._common_kernel()
        request = Request(outputs=True, limit_seconds=SAMPLE_SECONDS)
        try:
            found = measure_in(session, artifact.library, request, artifact.inputs())
        except KernelFailed as error:
            self.roster.refuse(board, f"it fails at the common kernel ({error})")
            return False
        except BoardError as error:
            self.roster.lost(board, str(error))
            return False
        return self.roster.checked(board, found, self._problem(found))

    def _problem(self, found: Measurement) -> str:
        """What is wrong with what a board made of the common kernel; empty where nothing is."""
        if found.kind == "emulated":
            return f"its times say nothing ({found.measured_by})"
        if len(found.outputs) != 1 or found.outputs[0].data is None:
            return "it gives no results of the common kernel"
        if wrong := disagreement(self._task.workload, self._expected, found.outputs[0].data):
            return f"it computes the common kernel wrongly ({wrong})"
        return doubt(self._task, self._task.default, found)

    def _common_kernel(self) -> Artifact:
        with self._building:
            if self._artifact is None:
                try:
                    self._artifact = self._builder.build(self._task.workload, self._task.default, self._task.target)
                except BuildFailed as problem:
                    raise BoardError(f"the common kernel does not compile ({problem})") from None
            return self._artifact
