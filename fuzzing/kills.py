"""Kills commands at any moment and looks at what is left: acknowledged records, whole bundles, no processes, no files.

scripts/test_kills does it a thousand times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from bitkiln.pipeline.bundle import MANIFEST, open_bundle
from bitkiln.pipeline.records import Log

#: Seconds in which what a killed command had started has to be gone.
GONE_SECONDS = 60.0
#: Seconds for a command that nobody kills.
WHOLE_SECONDS = 900.0
#: The file that onnxruntime makes in TMPDIR when it is imported, and keeps there.
ONNXRUNTIME = ".ses"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Ended:
    """What a signal made of a command: its status as Popen has it, and after how many seconds."""

    status: int
    seconds: float


@dataclass
class Field:
    """A folder in which commands are killed; ``environment`` is theirs, with a TMPDIR of its own by which they are known."""

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.environment["TMPDIR"] = str(self.scratch)

    @property
    def scratch(self) -> Path:
        """Where temporary files go."""
        return self.folder / "scratch"

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """``bitkiln`` with these arguments."""
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "bitkiln", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=self.folder,
                start_new_session=True,
            )

    def whole(self, arguments: Sequence[str]) -> float:
        """Run a command to its end; gives the seconds it took. Raises AssertionError where it fails."""
        begun = time.monotonic()
        process = self.start(arguments)
        status = process.wait(WHOLE_SECONDS)
        assert status == 0, f"{arguments}: status {status}: {self.said()[-500:]}"
        return time.monotonic() - begun

    def length(self, arguments: Sequence[str], most: float) -> float:
        """How many seconds a command takes; it is ended after ``most``."""
        begun = time.monotonic()
        self.killed(arguments, most, signal.SIGTERM)
        return min(most, time.monotonic() - begun)

    def killed(self, arguments: Sequence[str], after: float, number: signal.Signals) -> Ended | None:
        """Run a command and end it; how it ended, None where it did before. Raises AssertionError where something goes on."""
        process = self.start(arguments)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        over = process.poll() is not None
        begun = time.monotonic()
        with suppress(ProcessLookupError):
            process.send_signal(number)
        status = process.wait(GONE_SECONDS)
        ended = None if over else Ended(status, time.monotonic() - begun)
        deadline = time.monotonic() + GONE_SECONDS
        while orphans := self.orphans():
            assert time.monotonic() < deadline, f"{arguments}, {number.name} after {after:.2f} s leaves {orphans}"
            time.sleep(0.1)
        assert not any(map(_is_ours, _tracebacks(self.said()))), self.said()[-2000:]
        return ended

    def orphans(self) -> list[str]:
        """Processes that have our TMPDIR, other than this one."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TMPDIR", "").startswith(
                    str(self.scratch)
                ):
                    found.append(" ".join(process.cmdline())[:120])
        return found

    def said(self) -> str:
        """All that commands printed."""
        path = self.folder / "said"
        return path.read_text(errors="replace") if path.exists() else ""

    def leftovers(self) -> list[str]:
        """Temporary files and folders of ours."""
        found = {path.name for path in (*self.scratch.glob("*"), *self.folder.glob(".*"))}
        return sorted(found - {ONNXRUNTIME})


def _tracebacks(said: str) -> list[str]:
    """What follows each heading of one."""
    return said.split("Traceback (most recent call last)")[1:]


def _is_ours(traceback: str) -> bool:
    """Not of Python itself, which answers Ctrl-C so until a program of ours begins."""
    return "/bitkiln/" in traceback or "/pipeline/" in traceback or "KeyboardInterrupt" not in traceback


def descendants(process: int) -> list[int]:
    """The processes that one has started, and those they have."""
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(process).children(recursive=True)]
    return []


def whole_records(logs: Path) -> int:
    """How many records the logs below a folder have. Raises AssertionError for a line that is none, a torn last one apart."""
    count = 0
    for path in logs.rglob("*.jsonl"):
        log = Log.read(path)
        lines = path.read_bytes().count(b"\n")
        # What was being written is torn; the next append closes it.
        assert all(number > lines or reason.startswith("torn") for number, reason in log.bad_lines), log.bad_lines
        count += len(log.records)
    return count


def whole_bundle(folder: Path) -> None:
    """Raise BundleError where a bundle is half there."""
    if (folder / MANIFEST).exists() or (folder.exists() and any(folder.iterdir())):
        open_bundle(folder)


def kill_many(
    field: Field, commands: Mapping[str, Sequence[str]], seconds: float, count: int, seed: str, look: Callable[[], None]
) -> None:
    """Kill ``commands`` in turn within ``seconds`` of their start, ``look``ing at what is there after each."""
    random = Random(seed)
    names = list(commands)
    for index in range(count):
        field.killed(commands[names[index % len(names)]], random.uniform(0.02, seconds), random.choice(SIGNALS))
        look()
        if (index + 1) % 50 == 0:
            print(f"{index + 1} kills", flush=True)
