"""What a board is to the host: a request to measure a library, and the measurement that it answers with."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bitkiln.pipeline.boards.session import Session
from bitkiln.pipeline.boards.simulated import Machine, identify, measure_once
from bitkiln.pipeline.boards.tracker import TrackerClient
from bitkiln.pipeline.errors import BoardError
from bitkiln.pipeline.support.scratch import scratch_folder
from bitkiln.targets import Target


class KernelFailed(BoardError):
    """The board is well but what it ran is not; ``status`` is crashed, timeout, stopped (passed its limit) or error."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


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


@dataclass(frozen=True)
class Output:
    """An output tensor: its digest, and its bytes where the request asked for them."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Measurement:
    """What a board answered.

    ``value`` is in ``unit``: "cycles" of a simulated core, or "seconds". ``kind`` is "simulated", "emulated" or "board";
    ``measured_by`` is how reports name it. ``clock_mhz`` is the clock it ran at, None where unknown. ``steps`` has a row for
    each step if asked for, ``report`` the simulator's account of the whole run. ``complete`` is false when the simulator met
    instructions it has no rule for; ``steady`` when a real board's clock moved meanwhile.
    """

    unit: str
    value: float
    kind: str
    measured_by: str
    clock_mhz: float | None
    samples: tuple[float, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, Any] | None = None
    complete: bool = True
    steady: bool = True
    health: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    trace: tuple[Output, ...] = ()

    @property
    def seconds(self) -> float:
        """The time; a simulated one's at the simulated clock."""
        return self.value if self.unit == "seconds" else self.value / (float(self.clock_mhz or 1) * 1e6)

    @property
    def cycles(self) -> float | None:
        """The cycles; a real board's from its time and measured clock, None where the clock is unknown."""
        if self.unit == "cycles":
            return self.value
        return self.seconds * self.clock_mhz * 1e6 if self.clock_mhz else None


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


@dataclass(frozen=True)
class TrackerBoard:
    """Any board of ``key`` at a tracker; each call waits up to ``wait`` seconds for a free one."""

    tracker: TrackerClient
    key: str
    wait: float = 300.0

    def identity(self) -> Mapping[str, Any]:
        """What the board that answers is."""
        with Session(self.tracker, self.key, 30, self.wait) as session:
            return session.call("bitkiln.identity")

    def health(self) -> Mapping[str, Any]:
        """How the board that answers feels."""
        with Session(self.tracker, self.key, 30, self.wait) as session:
            return session.call("bitkiln.health")

    def measure(
        self,
        library: Path,
        request: Request,
        inputs: Mapping[str, bytes] | None = None,
        known: Collection[str] = (),
    ) -> Measurement:
        """See ``Board``."""
        # The session also carries the uploads, which take their time on a slow network.
        with Session(self.tracker, self.key, request.limit_seconds + 60, self.wait) as session:
            return measure_in(session, library, request, inputs, known)


def measure_in(
    session: Session,
    library: Path,
    request: Request,
    inputs: Mapping[str, bytes] | None = None,
    known: Collection[str] = (),
) -> Measurement:
    """``Board.measure`` on the board of a session."""
    session.upload("model.so", library)
    files = {name: f"input-{index}" for index, name in enumerate(inputs or {})}
    for name, data in (inputs or {}).items():
        session.upload(files[name], data)
    answer = session.call("bitkiln.measure", "model.so", json.dumps({**asdict(request), "inputs": files}))
    return _measurement(answer, session.download, known)


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
            files = {name: f"input-{index}" for index, name in enumerate(inputs or {})}
            for name, data in (inputs or {}).items():
                (folder / files[name]).write_bytes(data)
            machine = Machine(self.target, self.timing, self.options)
            answer = measure_once(machine, library, {**asdict(request), "inputs": files}, folder)
            return _measurement(answer, lambda file: (folder / file).read_bytes(), known)


def _measurement(answer: Mapping[str, Any], fetch: Callable[[str], bytes], known: Collection[str]) -> Measurement:
    """The board's answer as a value; raises KernelFailed."""
    if answer["status"] != "ok":
        raise KernelFailed(answer["status"], answer["message"])

    def output(row: Mapping[str, Any]) -> Output:
        wanted = "file" in row and row["sha256"] not in known
        data = fetch(row["file"]) if wanted else None
        return Output(row["name"], tuple(row["shape"]), row["dtype"], row["sha256"], data)

    outputs, trace = (tuple(map(output, answer.get(rows, ()))) for rows in ("outputs", "trace"))
    names = ("unit", "value", "kind", "measured_by", "clock_mhz", "report", "complete", "steady", "health")
    plain = {name: answer[name] for name in names if name in answer}
    rows = {name: tuple(answer.get(name, ())) for name in ("samples", "steps")}
    return Measurement(**plain, **rows, outputs=outputs, trace=trace)
