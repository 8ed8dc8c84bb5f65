"""What a board is to the host: a request to measure a library, and the measurement that it answers with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bitkiln.pipeline.boards import answers
from bitkiln.pipeline.boards.access import Address
from bitkiln.pipeline.boards.answers import KernelFailed, Measurement, Output
from bitkiln.pipeline.boards.place import AtTracker
from bitkiln.pipeline.boards.session import Lines, Session
from bitkiln.pipeline.boards.simulated import Machine, identify, measure_once
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder


@dataclass(frozen=True)
class Request:
    """What to measure and how; see ``Trial`` in device/board_server.py for the meaning on the board.

    A simulated board runs once warm, or once with empty caches if ``cold``; a real one ``repeats`` times or more.
    ``limit_cycles`` stops a run on a simulated board, ``limit_seconds`` ends the trial anywhere. Inputs that are not
    given are random, fixed by ``seed``. With ``outputs`` the raw output tensors come back, with ``trace`` those of every step.
    """

    threads: int = 1
    repeats: int = 3
    warmup: int = 1
    per_step: bool = False
    seed: int = 0
    cold: bool = False
    limit_cycles: int = 0
    limit_seconds: float = 60.0
    blocks: int = 0
    outputs: bool = False
    trace: bool = False


#: How errors name a board of this machine.
SIMULATED = "the simulated board"

__all__ = [
    "Board",
    "KernelFailed",
    "LocalBoard",
    "Measurement",
    "Output",
    "Request",
    "TrackerBoard",
    "measure_in",
    "with_files",
]


class Board(Protocol):
    """Something that measures libraries made for one target."""

    def identity(self) -> Mapping[str, Any]:
        """What it is."""

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """Load and measure ``library``, a bundle's model.so or a single kernel's. Raises BoardError, KernelFailed.

        ``inputs`` are raw tensors by name. Outputs whose digest is among ``known`` come without their bytes.
        """


class SharedBoards(Board, Protocol):
    """Boards that threads share, each call taking one that is free."""

    def hang_up(self) -> None:
        """Cut all calls in flight, of all threads: they and later ones raise BoardError."""


@dataclass
class TrackerBoard:
    """Any board of ``key`` at a tracker; each call waits up to ``wait`` seconds for a free one. Threads may share it."""

    tracker: TrackerClient
    key: str
    wait: float = 300.0
    _lines: Lines = field(default_factory=Lines, init=False)

    @classmethod
    def at(cls, where: AtTracker) -> TrackerBoard:
        """The boards of a place. Raises BoardError where its address is none, or there is no secret to show."""
        return cls(TrackerClient(Address.parse(where.tracker)), where.key)

    def hang_up(self) -> None:
        """Cut all calls in flight, of all threads: they and later ones raise BoardError."""
        self._lines.end()

    def session(self, seconds: float) -> Session:
        """A conversation of at most so many seconds with the next board that is free."""
        return Session(self.tracker, self.key, seconds, self.wait, self._lines)

    def identity(self) -> Mapping[str, Any]:
        """What the board that answers is."""
        with self.session(30) as session:
            return answers.identity(session.call("bitkiln.identity"), f"board {session.board}")

    def health(self) -> Mapping[str, Any]:
        """Temperature, throttling and load of the board that answers."""
        with self.session(30) as session:
            return answers.health(session.call("bitkiln.health"), f"board {session.board}")

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """See ``Board``."""
        # The session also carries the uploads, which take their time on a slow network.
        with self.session(request.limit_seconds + 60) as session:
            return measure_in(session, library, request, inputs, known)


def with_files(request: Request, inputs: Mapping[str, bytes] | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The request as a board reads it, and the files it names: the raw tensors of ``inputs``."""
    names = {name: f"input-{index}" for index, name in enumerate(inputs or {})}
    return {**asdict(request), "inputs": names}, {names[name]: data for name, data in (inputs or {}).items()}


def measure_in(
    session: Session,
    library: Path,
    request: Request,
    inputs: Mapping[str, bytes] | None = None,
    known: Collection[str] = (),
) -> Measurement:
    """``Board.measure`` on the board of a session."""
    session.upload("model.so", library)
    wanted, files = with_files(request, inputs)
    for name, data in files.items():
        session.upload(name, data)
    answer = session.call("bitkiln.measure", "model.so", json.dumps(wanted))
    return answers.measurement(answer, session.download, known, f"board {session.board}")


@dataclass(frozen=True)
class LocalBoard:
    """A simulated (or, without ``timing``, emulated) board for one measurement at a time, without a tracker.

    ``options`` are further ones of the timing model (docs/simulator.md).
    """

    target: Target
    timing: bool = True
    options: tuple[str, ...] = ()

    def identity(self) -> Mapping[str, Any]:
        """What it is."""
        with scratch_folder() as folder:
            return identify(Machine(self.target, self.timing, self.options), Path(folder))

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """See ``Board``."""
        with scratch_folder() as name:
            folder = Path(name)
            wanted, files = with_files(request, inputs)
            for file, data in files.items():
                (folder / file).write_bytes(data)
            machine = Machine(self.target, self.timing, self.options)
            answer = measure_once(machine, library, wanted, folder)
            return answers.measurement(answer, lambda file: (folder / file).read_bytes(), known, SIMULATED)
