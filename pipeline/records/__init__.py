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
from typing import Any

from rich.console import Console

from bitkiln import tuning_logs
from bitkiln.pipeline import schema
from bitkiln.pipeline.errors import RecordError
from bitkiln.pipeline.support.files import atomic_write
from bitkiln.targets import Target
from bitkiln.targets.sim import MODEL_VERSION

COMMITTED = Path(tuning_logs.__file__).parent
#: Where ``tune`` puts records unless told otherwise, relative to the working folder.
DEFAULT_LOGS = Path("tuning_logs")
#: What counts more: a real board's time over a model's, and emulated time never.
KINDS = ("board", "simulated")


@cache
def versions() -> tuple[str, int]:
    """Of TVM and of our schedules: records of other versions are kept but not used."""
    from bitkiln.schedules.registry import SCHEDULE_VERSION  # Brings TVM with it, which `logs` does not always need.

    return version("apache-tvm"), SCHEDULE_VERSION


def superseded(kind: str, measured_by: str) -> bool:
    """Whether another version of the timing model than today's measured something."""
    return kind == "simulated" and f"model {MODEL_VERSION}" not in measured_by.split(", ")


@dataclass(frozen=True)
class Record:
    """One trial.

    ``workload`` is the workload's key, ``target`` the target's name. ``status`` is "ok", or says why there is no ``value``:
    "build", "crashed", "timeout", "stopped" (passed the limit), "wrong" (gave other results than the default), "lost" (took the
    board down with it) or "error".
    ``value`` is in ``unit``, "cycles" or "seconds", at ``clock_mhz``; ``kind`` ("simulated", "board", "emulated") and
    ``measured_by`` say what measured it. ``default`` marks the untuned default. ``time`` is UTC, ISO 8601.
    """

    workload: str
    target: str
    knobs: Mapping[str, int | str]
    status: str = "ok"
    unit: str = "cycles"
    value: float | None = None
    clock_mhz: float | None = None
    kind: str = ""
    measured_by: str = ""
    default: bool = False
    message: str = ""
    health: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    tvm: str = field(default_factory=lambda: versions()[0])
    schedule: int = field(default_factory=lambda: versions()[1])

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
        return {name: value for name, value in asdict(self).items() if name in needed or not _empty(value)}

    def describe(self) -> str:
        """One line for people."""
        if not self.ok:
            return f"{self.workload}: {self.status} {self.message}".strip()
        cycles = f"{self.value:,.0f} cycles, " if self.unit == "cycles" else ""
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{self.workload}: {cycles}{1e3 * self.seconds:.3f} ms ({self.measured_by}); {knobs or 'no knobs'}"


def _empty(value: Any) -> bool:
    return value is None or value is False or value in ("", {})


_TEXTS = ("status", "unit", "kind", "measured_by", "message", "time", "tvm")


class NotARecord(ValueError):
    """A line of a log that is not a tuning record; the message says why."""


def parse(line: bytes) -> Record:
    """The record in a line; raises NotARecord."""
    try:
        table = json.loads(line)
    except ValueError:
        raise NotARecord("torn or not JSON")
    if not isinstance(table, dict):
        raise NotARecord("not a JSON object")
    try:
        record = Record(**{name: table[name] for name in Record.__dataclass_fields__ if name in table})
    except TypeError:
        raise NotARecord("no tuning record of this program")
    typed = isinstance(record.workload, str) and isinstance(record.target, str) and isinstance(record.knobs, dict)
    typed = typed and isinstance(record.value, int | float | None) and not isinstance(record.value, bool)
    typed = typed and all(isinstance(getattr(record, name), str) for name in _TEXTS)
    typed = typed and type(record.clock_mhz) in (int, float, type(None)) and isinstance(record.health, dict)
    if not typed or (record.status == "ok" and not (record.value and 0 < record.value < float("inf"))):
        raise NotARecord("a field has the wrong type")
    if not {"tvm", "schedule"} <= table.keys():
        raise NotARecord("it does not say which versions it belongs to")
    return record


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
            lines = path.read_bytes().split(b"\n")
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

    A line torn by an earlier crash is closed first. Raises RecordError, and leaves no half line behind, when the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); give another folder with --logs")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _append(descriptor, json.dumps(record.as_json(), separators=(", ", ": ")).encode() + b"\n")
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

    def best(self, workload: str, target: Target) -> Record | None:
        """The fastest record of ``workload`` that applies to ``target``; None where it was never tuned.

        The targets in ``target.records`` are asked in order, the first with any record answers. What a board measured goes
        before what a model did, and records that are superseded count where there are no others. Where several boards or
        numbers of cores were measured, the latest one's records count: figures of different clocks are not compared.
        """
        for name in target.records:
            for kind in KINDS:
                measured = [record for record in self.of(workload, name) if record.ok and record.kind == kind]
                measured = [record for record in measured if not record.superseded] or measured
                if measured:
                    latest = max(measured, key=lambda record: record.time).measured_by
                    return min(
                        (record for record in measured if record.measured_by == latest),
                        key=lambda record: record.seconds,
                    )
        return None

    def best_of_each(self, target: Target) -> list[Record]:
        """The best record of every workload that has one for ``target``."""
        workloads = sorted({workload for workload, _ in self._by_workload})
        return [record for workload in workloads if (record := self.best(workload, target))]

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
