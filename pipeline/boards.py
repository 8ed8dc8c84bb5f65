"""What the host knows of boards: how to measure on one, which there are, and simulated ones on demand."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

from bitkiln import targets
from bitkiln.pipeline.apt_sources import archive_for
from bitkiln.pipeline.board_session import Session
from bitkiln.pipeline.errors import BoardError, SetupError
from bitkiln.pipeline.scratch import scratch_folder
from bitkiln.pipeline.simulated import Machine, SimulatedBoards, identify, measure_once
from bitkiln.pipeline.tracker import Address, TrackerClient, TrackerProcess
from bitkiln.pipeline.userland import SUITE, find_emulator, runtime_libraries, userland, userland_folder
from bitkiln.targets import Target

DEFAULT_TRACKER_PORT = 9190


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
    """A simulated (or, without ``timing``, emulated) board for one measurement at a time, without a tracker."""

    target: Target
    timing: bool = True

    def identity(self) -> Mapping[str, Any]:
        """What it is."""
        with scratch_folder() as folder:
            return identify(Machine(self.target, self.timing), Path(folder))

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
            machine = Machine(self.target, self.timing)
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


@contextmanager
def simulated_farm(
    target: Target,
    count: int | None = None,
    tracker: Address | None = None,
    key: str | None = None,
    port: int = 0,
    timing: bool = True,
) -> Iterator[tuple[Address, str]]:
    """Simulated boards behind a tracker (our own on loopback where none is given): gives the tracker's address and the key.

    ``count`` None starts as many as there are processors, at most 4.
    """
    key = key or target.name
    with ExitStack() as stack:
        if tracker is None:
            process = TrackerProcess(port=port)
            stack.callback(process.stop)
            tracker = process.address
        count = count or max(1, min(4, os.cpu_count() or 1))
        stack.enter_context(SimulatedBoards(Machine(target, timing), tracker, key, count))
        yield tracker, key


# --- For the command line ------------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One thing that simulated boards need: ``explanation`` says what was found, or how to get it."""

    name: str
    ok: bool
    explanation: str


def list_boards(tracker: str) -> list[dict[str, Any]]:
    """The tracker's boards by key, as plain rows."""
    return [asdict(found) for found in TrackerClient(Address.parse(tracker)).boards()]


def print_boards(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The rows of ``list_boards`` as a table."""
    if not rows:
        console.print("the tracker has no boards")
        return
    table = Table("key", "boards", "free", "busy", "clients waiting", "addresses", box=None)
    for row in rows:
        busy = row["count"] - row["free"]
        numbers = map(str, (row["count"], row["free"], busy, row["waiting"]))
        table.add_row(row["key"], *numbers, ", ".join(row["addresses"]))
    console.print(table)


def doctor() -> list[Check]:
    """Everything simulated boards need on this machine, in the order they need it."""
    from bitkiln.targets.sim.doctor import doctor as simulator

    target = targets.load("rasp3b")
    return [
        *(Check(check.name, check.ok, check.explanation) for check in simulator()),
        _check("mmdebstrap", lambda: _mmdebstrap(target)),
        _check("Debian archive", lambda: archive_for(SUITE).uri),
        _check("arm64 userland", lambda: str(userland(target).root)),
        _check("TVM's runtime for boards", lambda: str(runtime_libraries())),
        _check("32-bit emulator", lambda: find_emulator(targets.load("rasp3b32"))),
        _check("32-bit cross compiler", lambda: _which("arm-linux-gnueabihf-gcc", "gcc-arm-linux-gnueabihf")),
    ]


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except SetupError as problem:
        return Check(name, False, str(problem))


def _mmdebstrap(target: Target) -> str:
    if userland_folder(target).exists():
        return "not needed any more: the userland is built"
    return _which("mmdebstrap", "mmdebstrap")


def _which(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SetupError(f"install it with `sudo apt-get install {package}`")
    return path


def serve_simulated(target: Target, tracker: str | None, key: str | None, count: int, console: Console) -> None:
    """Run simulated boards, and a tracker where none is named, until interrupted."""
    address = Address.parse(tracker) if tracker else None
    with simulated_farm(target, count, address, key, port=DEFAULT_TRACKER_PORT) as (where, name):
        boards = "1 simulated board" if count == 1 else f"{count} simulated boards"
        console.print(f"{boards} with the key {name!r} at the tracker {where}; Ctrl-C stops them")
        console.print(f"try: tune --target {target.name} --tracker {where} --key {name}")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopping")
