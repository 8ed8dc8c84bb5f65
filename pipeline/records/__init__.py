"""Tuning records: what was tried for a workload, how fast it was, and what measured it.

A log is a file of JSON lines, one record each: ``LOGS/<target>/<operator>.jsonl``. A record is appended and flushed to disk
the moment its trial ends. Lines that are no records (torn by a crash, blank, somebody else's) are skipped with a warning
and cost nothing but themselves, so logs can be merged line by line, by git or by ``bitkiln logs merge``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from msgspec import Meta
from rich.console import Console

from bitkiln import tuning_logs
from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import RecordError
from bitkiln.pipeline.records.choice import Choice, choose
from bitkiln.pipeline.support.checked import Count, Line, Malformed, Name, Positive, decode
from bitkiln.pipeline.support.files import atomic_write, read_file
from bitkiln.targets import Target
from bitkiln.targets.sim import MODEL_VERSION

COMMITTED = Path(tuning_logs.__file__).parent
#: Where ``tune`` puts records unless told otherwise, relative to the working folder.
DEFAULT_LOGS = Path("tuning_logs")
#: Bytes of the longest line; a record has some hundreds.
MOST_BYTES = 1 << 16


@cache
def versions() -> tuple[str, int]:
    """Of TVM and of our schedules: records of other versions are kept but not used."""
    from bitkiln.schedules.registry import SCHEDULE_VERSION  # Brings TVM with it, which `logs` does not always need.

    return version("apache-tvm"), SCHEDULE_VERSION


def superseded(kind: str, measured_by: str) -> bool:
    """Whether another version of the timing model than today's measured something."""
    return kind == "simulated" and f"model {MODEL_VERSION}" not in measured_by.split(", ")


def on_cores(measured_by: str, cores: int) -> str:
    """What so many cores of a board are called as ``measured_by`` is called for one."""
    return measured_by.replace(", 1 core, ", f", {cores} cores, ") if cores > 1 else measured_by


Kind = Literal["simulated", "board", "emulated", ""]
Status = Literal["ok", "build", "crashed", "timeout", "stopped", "wrong", "lost", "error", "doubted"]
Unit = Literal["cycles", "seconds"]
#: MHz of any core that may ever be measured.
Clock = Annotated[float, Meta(ge=1, le=20_000)]
Threads = Annotated[int, Meta(ge=1, le=256)]
Health = Mapping[Name, bool | int | float | Name | None]
#: The key of a workload begins with its operator, which names the log.
WorkloadKey = Annotated[str, Meta(max_length=2000, pattern=r"^[a-z][a-z0-9_]*( [ -~]*)?\Z")]
TargetName = Annotated[str, Meta(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Knobs = Annotated[Mapping[Name, Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)] | Name], Meta(max_length=64)]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")]
#: What a kernel may take at least and at most, by the unit.
RANGES = {"cycles": (1.0, 1e15), "seconds": (1e-9, 1e6)}


@dataclass(frozen=True)
class Record:
    """One trial.

    ``workload`` is the workload's key, ``target`` the target's name. ``status`` is "ok", or says why it does not count:
    "build", "crashed", "timeout", "stopped" (passed the limit), "wrong" (gave other results than the default), "lost" (took the
    board down with it), "error", or "doubted" (it has a value which cannot be believed; ``message`` says why).
    ``value`` is in ``unit`` at ``clock_mhz``, on ``threads`` threads; ``kind`` and ``measured_by`` say what measured it,
    ``cpu`` the CPU of a real board. ``unsteady`` marks a clock that moved, ``default`` the untuned default. ``time`` is UTC,
    ISO 8601.
    """

    workload: WorkloadKey
    target: TargetName
    knobs: Knobs
    status: Status = "ok"
    unit: Unit = "cycles"
    value: Positive | None = None
    clock_mhz: Clock | None = None
    kind: Kind = ""
    measured_by: Name = ""
    cpu: Name = ""
    threads: Threads = 1
    default: bool = False
    unsteady: bool = False
    message: Line = ""
    health: Health = field(default_factory=dict)
    time: Time = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    tvm: Name = field(default_factory=lambda: versions()[0])
    schedule: Count = field(default_factory=lambda: versions()[1])

    @property
    def cycles(self) -> float | None:
        """Cycles of the core; None where its clock is unknown, or it failed."""
        if not self.ok or self.value is None or self.unit == "cycles":
            return self.value if self.ok else None
        return self.value * self.clock_mhz * 1e6 if self.clock_mhz else None

    @property
    def cost(self) -> float:
        """What compares with records of the same rig: cycles, or seconds where the clock is unknown."""
        return self.cycles or self.seconds

    @property
    def rank(self) -> tuple[bool, float]:
        """Of two records of one rig the smaller rank is the better: a steady board's before any other, then the cost."""
        return not self.fit, self.cost

    @property
    def fit(self) -> bool:
        """Whether the board was fit to measure: its clock held still, neither heat nor supply voltage lowered it."""
        return not self.unsteady and not self.health.get("throttled")

    @property
    def ok(self) -> bool:
        """Whether it has a value."""
        return self.status == "ok" and self.value is not None

    @property
    def seconds(self) -> float:
        """The time; a simulated one's at the simulated clock. Infinite for trials that failed."""
        if not self.ok or self.value is None:
            return float("inf")
        return self.value if self.unit == "seconds" else self.value / (float(self.clock_mhz or 1000) * 1e6)

    @property
    def current(self) -> bool:
        """Whether it belongs to the versions of TVM and of the schedules in use."""
        return (self.tvm, self.schedule) == versions()

    @property
    def superseded(self) -> bool:
        """Whether another version of the timing model measured it: its knobs serve, its time compares with no other."""
        return superseded(self.kind, self.measured_by)

    def as_json(self) -> schema.TuningRecord:
        """The record as plain data, empty fields left out."""
        needed = ("workload", "target", "knobs", "status", "value")
        one = self.threads == 1
        fields = {name: value for name, value in asdict(self).items() if name in needed or not _empty(value)}
        kept = {name: value for name, value in fields.items() if not (one and name == "threads")}
        return cast(schema.TuningRecord, kept)

    def describe(self) -> str:
        """One line for people."""
        if not self.ok:
            return f"{self.workload}: {self.status} {self.message}".strip()
        cycles = f"{self.value:,.0f} cycles, " if self.unit == "cycles" else ""
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{self.workload}: {cycles}{1e3 * self.seconds:.3f} ms ({self.measured_by}); {knobs or 'no knobs'}"


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ("", {})


class NotARecord(ValueError):
    """A line of a log that is not a tuning record; the message says why."""


def parse(line: bytes) -> Record:
    """The record in a line; raises NotARecord."""
    try:
        record = decode(line, _Stated, MOST_BYTES)
    except Malformed as problem:
        raise NotARecord(str(problem)) from None
    least, most = RANGES[record.unit]
    if record.status in ("ok", "doubted") and record.value is None:
        raise NotARecord("it has no value")
    if record.value is not None and not least <= record.value <= most:
        raise NotARecord(f"{record.value:g} {record.unit} is no time of a kernel")
    if record.kind == "simulated" and (record.unit != "cycles" or record.clock_mhz is None) and record.ok:
        raise NotARecord("a simulated board measures in cycles, at a clock")
    return Record(**{name: getattr(record, name) for name in Record.__dataclass_fields__})


@dataclass(frozen=True)
class _Stated(Record):
    """A record in a log, which has to say which versions it belongs to."""

    tvm: Name = field(kw_only=True)
    schedule: Count = field(kw_only=True)


@dataclass
class Log:
    """One file of records."""

    path: Path
    records: list[Record] = field(default_factory=list)
    bad_lines: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Log:
        """All records of the file. Raises RecordError when it cannot be read at all."""
        log = cls(path)
        try:
            lines = read_file(path).split(b"\n")
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror})")
        if lines[-1] == b"":
            lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                log.records.append(parse(line))
            except NotARecord as problem:
                log.bad_lines.append((number, "blank" if not line.strip() else str(problem)))
        return log

    def warn(self) -> None:
        """Say on standard error what was skipped, if anything."""
        if self.bad_lines:
            number, reason = self.bad_lines[0]
            count = len(self.bad_lines)
            lines = "a line that is no record" if count == 1 else f"{count} lines that are no records, the first"
            print(f"warning: {self.path}: skipped {lines} (line {number}: {reason})", file=sys.stderr)


def append(path: Path, record: Record) -> None:
    """Add ``record`` to the log at ``path`` and flush it to disk; several processes may do so at once.

    A line torn by an earlier crash is closed first. Raises RecordError, and leaves no half line behind, when the disk is full;
    NotARecord, and writes nothing, for what could not be read again.
    """
    line = json.dumps(record.as_json(), separators=(", ", ": ")).encode()
    parse(line)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); give another folder with --logs")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _append(descriptor, line + b"\n")
    except OSError as error:
        remedy = "free some space and run again" if error.errno == errno.ENOSPC else "all earlier records are safe"
        raise RecordError(f"{path}: a record cannot be appended ({error.strerror}); {remedy}")
    finally:
        os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    data = b"\n" + data if torn else data
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


class Records:
    """The records of some folders, all targets together."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.records: list[Record] = []
        for path in log_files(folders):
            log = Log.read(path)
            log.warn()
            self.records += log.records
        self._by_workload: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            self._index(record)

    @classmethod
    def open(cls, logs: Path | None = None) -> Records:
        """The user's records (``logs``, or tuning_logs/ of the working folder where it exists) and the committed ones."""
        if logs is not None and not logs.exists():
            raise RecordError(f"{logs}: there is no such folder of tuning records")
        mine = logs or (DEFAULT_LOGS if DEFAULT_LOGS.is_dir() else None)
        return cls([folder for folder in (mine, COMMITTED) if folder is not None])

    def add(self, record: Record) -> None:
        """Take in a record that was just made."""
        self.records.append(record)
        self._index(record)

    def of(self, workload: str, target: str) -> list[Record]:
        """All current records of a workload on one target, failed trials included, the oldest log first."""
        return self._by_workload.get((workload, target), [])

    def choice(self, workload: str, target: Target, threads: int = 1) -> Choice | None:
        """The record of ``workload`` that decides for ``target`` on so many ``threads``, and why; None where it has none.

        The targets in ``target.records`` are asked in order; the first whose records decide answers.
        """
        for name in target.records:
            if found := choose(self.of(workload, name), target, threads):
                return found
        return None

    def best(self, workload: str, target: Target, threads: int = 1) -> Record | None:
        """The record of ``choice``."""
        found = self.choice(workload, target, threads)
        return found.record if found else None

    def choices(self, target: Target, threads: int = 1) -> list[Choice]:
        """The choice for every workload that has one for ``target``."""
        workloads = sorted({workload for workload, _ in self._by_workload})
        return [found for workload in workloads if (found := self.choice(workload, target, threads))]

    def _index(self, record: Record) -> None:
        if record.current:
            self._by_workload.setdefault((record.workload, record.target), []).append(record)


def log_file(folder: Path, workload: str, target: str) -> Path:
    """The log that records of a workload go to."""
    return folder / target / f"{workload.split()[0]}.jsonl"


def log_files(paths: Iterable[Path]) -> list[Path]:
    """All logs among ``paths``, which are files or folders; each file once."""
    found: dict[Path, Path] = {}
    for path in paths:
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    return list(found.values())


# --- For the command line ------------------------------------------------------------------------------------------------


def check(paths: Sequence[Path]) -> schema.LogsCheck:
    """What each log holds, and every line that is no record."""
    logs: list[schema.CheckedLog] = [
        {
            "path": str(log.path),
            "records": len(log.records),
            "current": sum(record.current for record in log.records),
            "superseded": sum(record.superseded for record in log.records),
            "failed": sum(not record.ok for record in log.records),
            "bad_lines": [{"line": number, "reason": reason} for number, reason in log.bad_lines],
        }
        for log in _logs(paths)
    ]
    return {"schema": "bitkiln.logs-check/1", "ok": not any(log["bad_lines"] for log in logs), "logs": logs}


def print_check(found: schema.LogsCheck, console: Console) -> None:
    """Print what ``check`` found."""
    for log in found["logs"]:
        counts = f"{log['records']} records, {log['current']} of this version, {log['failed']} of failed trials"
        counts += f", {log['superseded']} by another timing model" if log["superseded"] else ""
        console.print(f"{log['path']}: {counts}", highlight=False, markup=False)
        for bad in log["bad_lines"]:
            console.print(f"{log['path']}:{bad['line']}: {bad['reason']}", highlight=False, markup=False)


def merge(sources: Sequence[Path], output: Path) -> schema.LogsMerge:
    """Write the records of all ``sources``, each once and in order, to the log ``output``."""
    lines: dict[str, None] = {}
    count = files = 0
    for log in _logs(sources):
        log.warn()
        files += 1
        count += len(log.records)
        lines.update(dict.fromkeys(json.dumps(record.as_json(), separators=(", ", ": ")) for record in log.records))
    try:
        with atomic_write(output) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))
    except OSError as error:
        raise RecordError(f"{output}: cannot be written ({error.strerror})")
    return {
        "schema": "bitkiln.logs-merge/1",
        "output": str(output),
        "logs": files,
        "records": len(lines),
        "duplicates": count - len(lines),
    }


def _logs(paths: Sequence[Path]) -> Iterator[Log]:
    for path in paths:
        if not path.exists():
            raise RecordError(f"{path}: no such log")
    files = log_files(paths)
    if not files:
        raise RecordError(f"{', '.join(map(str, paths))}: no logs (*.jsonl) in there")
    yield from map(Log.read, files)
