"""What a board does, as a file that whoever has one can send in: sequences of instructions, memory, probes, networks.

Every row can be had of the timing model, too: by the same program, and by the same libraries of networks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bitkiln import targets
from bitkiln.pipeline.boards import place
from bitkiln.pipeline.boards.answers import LEAST_MHZ, MOST_MHZ, Measurement
from bitkiln.pipeline.boards.board import LocalBoard, Request
from bitkiln.pipeline.boards.remote import SshBoard
from bitkiln.pipeline.boards.setup import TARGETS
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.boards.userland import missing_as_setup_error
from bitkiln.pipeline.errors import BoardError, InputError
from bitkiln.pipeline.evidence import file
from bitkiln.pipeline.model import Model
from bitkiln.pipeline.support.checked import Malformed, convert
from bitkiln.pipeline.support.text import printable
from bitkiln.targets import Target
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim import MODEL_VERSION
from bitkiln.targets.sim import evidence as program

#: Seconds a network may take on a board, with its repetitions.
NETWORK_SECONDS = 900.0
REPEATS = 10
#: Numbers of threads that networks run on, where a board has so many cores.
THREADS = (1, 4)


class Stand(Protocol):
    """Where measuring happens."""

    def identity(self) -> Mapping[str, Any]: ...
    def health(self) -> Mapping[str, Any]: ...
    def part(self, name: str) -> str:
        """What the program of targets/sim/evidence.py prints for one of its parts."""

    def measure(self, library: Path, request: Request) -> Measurement: ...


@dataclass(frozen=True)
class _Simulated:
    """The timing model of ``target``."""

    target: Target
    program: Path

    def identity(self) -> Mapping[str, Any]:
        return LocalBoard(self.target).identity()

    def health(self) -> Mapping[str, Any]:
        return {}

    def part(self, name: str) -> str:
        return program.on_model(self.program, name, self.target)

    def measure(self, library: Path, request: Request) -> Measurement:
        return LocalBoard(self.target).measure(library, request)


@dataclass(frozen=True)
class _Remote:
    """A board behind ssh."""

    board: SshBoard
    program: Path

    def identity(self) -> Mapping[str, Any]:
        return self.board.identity()

    def health(self) -> Mapping[str, Any]:
        return self.board.health()

    def part(self, name: str) -> str:
        return self.board.run([f"./{self.program.name}", name], program.PART_SECONDS)

    def measure(self, library: Path, request: Request) -> Measurement:
        return self.board.measure(library, request)


@dataclass(frozen=True)
class Wanted:
    """What to measure beside the program's rows.

    ``models`` are compiled by ``build`` for the target into a folder, which gives the library.
    """

    models: Sequence[Model]
    build: Callable[[Model, Target, Path], Path]
    parts: Sequence[str] = program.PARTS


def measure(
    board: str, wanted: Wanted, target: Target | None, port: int | None, say: Callable[[str], None]
) -> file.Evidence:
    """Measure the board USER@HOST, or "sim", and say how it goes. Raises BoardError, SetupError.

    ``target`` is what to compile for; unless given, what the board's width says.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder()))
        stand, target, notes = stack.enter_context(_stand(board, target, port, scratch))
        identity = stand.identity()
        say(f"{board}: {identity['measured_by']}, {identity.get('cores') or '?'} cores")
        found = _Found(target, identity, notes)
        found.health.append(dict(stand.health()))
        for part in wanted.parts if not notes else ():
            say(f"measuring {part}")
            found.add(part, stand.part(part), board)
            found.health.append(dict(stand.health()))
        for model in wanted.models:
            library = wanted.build(model, target, scratch / f"bundle-{len(found.networks)}")
            for threads in [count for count in THREADS if count <= int(identity.get("cores") or 1)]:
                say(f"measuring {model.name} on {threads} {'thread' if threads == 1 else 'threads'}")
                found.networks.append(_network(stand, model.name, library, threads))
        return found.evidence()


@contextmanager
def _stand(
    board: str, target: Target | None, port: int | None, scratch: Path
) -> Iterator[tuple[Stand, Target, list[str]]]:
    """Where to measure, what for, and why the program cannot run there, if so."""
    built = scratch / "evidence"
    where = place.parse(board)
    if isinstance(where, place.AtTracker):
        raise InputError(f"board {board!r}: boards of a tracker are not measured so: name its host, USER@HOST")
    if isinstance(where, place.Here):
        target = target or targets.load("rasp3b")
        with missing_as_setup_error():
            program.build(built, target)
            yield _Simulated(target, built), target, []
        return
    with SshBoard(Remote(where.host, port)) as reached:
        target = target or targets.load(TARGETS[reached.facts["bits"]])
        if reached.facts["machine"] != "aarch64":
            yield _Remote(reached, built), target, ["a 32-bit kernel runs no 64-bit programs: networks alone"]
            return
        with missing_as_setup_error():
            program.build(built, targets.load("rasp3b"))
        reached.put(built)
        yield _Remote(reached, built), target, []


class _Found:
    """What has been measured so far."""

    def __init__(self, target: Target, identity: Mapping[str, Any], notes: Sequence[str]) -> None:
        self.target, self.identity, self.notes = target, identity, list(notes)
        self.timing = "none"
        self.mhz: float | None = None
        self.rows: dict[str, list[Any]] = {part: [] for part in program.PARTS}
        self.health: list[dict[str, Any]] = []
        self.networks: list[file.Network] = []

    def add(self, part: str, text: str, board: str) -> None:
        """Take in what the program printed. Raises BoardError for what it cannot have."""
        self.timing, self.mhz, self.rows[part] = read_part(part, text, board)

    def evidence(self) -> file.Evidence:
        """The file's content, checked as a reader would."""
        names = {each.name for each in msgspec.structs.fields(file.Board)}
        board = {name: value for name, value in self.identity.items() if name in names}
        board["bits"] = 32 if self.target.architecture.startswith("armv7") else 64
        content = {
            "schema": file.SCHEMA,
            "bitkiln": version("bitkiln"),
            "model_version": MODEL_VERSION,
            "day": time.strftime("%Y-%m-%d", time.gmtime()),
            "target": self.target.name,
            "board": board,
            "timing": self.timing,
            "mhz": self.mhz,
            "health": self.health,
            **self.rows,
            "networks": self.networks,
            "notes": self.notes,
        }
        try:
            return convert(msgspec.to_builtins(content), file.Evidence)
        except Malformed as problem:
            raise BoardError(f"the board answers nonsense: {problem}") from None


def read_part(part: str, text: str, board: str) -> tuple[str, float | None, list[Any]]:
    """What told the time, the clock in MHz, and the rows of what our program printed. Raises BoardError, naming ``board``."""
    try:
        first, *rows = program.rows(text)
        parsed = _sequences(rows) if part == "facts" else [_row(row) for row in rows]
        return str(first["timing"]), _clock(first["mhz"]), parsed
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as problem:
        raise BoardError(
            f"{board}: our program gives no sensible answer for {part}: {printable(str(problem), 200)}"
        ) from None


def _clock(mhz: float) -> float | None:
    """A clock that a core may have, else none."""
    return float(mhz) if LEAST_MHZ <= float(mhz) <= MOST_MHZ else None


def _sequences(rows: Sequence[Mapping[str, Any]]) -> list[file.Sequence]:
    """The figures of all sequences, less those of the empty one. Raises ValueError."""
    known = program.sequences()
    if [row["fact"] for row in rows] != list(range(len(known))):
        raise ValueError(f"{len(rows)} rows for {len(known)} sequences")
    empty = rows[0]
    found = []
    for fact, row in zip(known[1:], rows[1:], strict=True):
        loop = round(float(row["loop"]) - float(empty["loop"]), 3)
        shot = float(row["shot"]) - float(empty["shot"]) if float(row["shot"]) >= 0 else None
        found.append(file.Sequence(fact.name, list(fact.asm), loop, shot, bool(row["steady"])))
    return found


def _row(row: Mapping[str, Any]) -> file.Row:
    return file.Row(str(row["row"]), float(row["cycles"]), float(row["ns"]), _clock(row["mhz"]), bool(row["steady"]))


def _network(stand: Stand, name: str, library: Path, threads: int) -> file.Network:
    request = Request(threads=threads, repeats=REPEATS, per_step=True, limit_seconds=NETWORK_SECONDS)
    found = stand.measure(library, request)
    per_unit = 1e3 if found.unit == "seconds" else 1 / (1e3 * float(found.clock_mhz or 1))
    steps = [file.Step(str(row["name"]), per_unit * float(row[found.unit])) for row in found.steps]
    return file.Network(
        name=name[:200],
        threads=threads,
        library=hashlib.sha256(library.read_bytes()).hexdigest(),
        ms=1e3 * found.seconds,
        samples_ms=[per_unit * each for each in found.samples],
        clock_mhz=found.clock_mhz,
        steady=found.steady,
        health=dict(found.health),
        steps=steps,
    )
