"""What one case is, what ran it to its end, and whether a user could bear that end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

Verdict = Literal["accepted", "refused", "DEFECT"]

#: What the command line says where it met an exception nobody foresaw: one line for the user, a defect for us.
UNFORESEEN = re.compile(r"bitkiln: (.*: )?(internal error|out of memory)")

_LONGEST_LINE = 1000


@dataclass(frozen=True)
class Case:
    """Files by their path in an empty folder; ``how`` says what was done to the seed.

    ``commands`` are arguments of ``bitkiln``; without them, the first file is a model to inspect and compile.
    """

    files: Mapping[str, bytes]
    how: str
    commands: tuple[tuple[str, ...], ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The file that refusals are expected to name."""
        return next(iter(self.files))

    def write(self, folder: Path) -> None:
        """Write the files below ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)


@dataclass(frozen=True)
class Format:
    """A kind of model file: ``make(random, index)`` gives a case; equal generators give equal cases."""

    name: str
    make: Callable[[Random, int], Case]


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``status`` is its exit status, or minus the signal that ended it; None: it was stopped."""

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    peak_mib: float


def judge(outcome: Outcome, model: str, peak_mib: float, passing: Sequence[int] = (0,)) -> tuple[Verdict, str]:
    """The verdict on an outcome, and what was wrong or what the refusal says."""
    if outcome.status is None:
        return "DEFECT", f"hangs: stopped after {outcome.seconds:.0f} s"
    if outcome.status < 0:
        return "DEFECT", f"ended by signal {-outcome.status}"
    if outcome.peak_mib > peak_mib:
        return "DEFECT", f"took {outcome.peak_mib:.0f} MiB"
    if "Traceback (most recent call last)" in outcome.stderr + outcome.stdout:
        return "DEFECT", f"traceback: {outcome.stderr.strip().splitlines()[-1][:200]}"
    if outcome.status in passing:
        noise = [line for line in outcome.stderr.splitlines() if not line.startswith("warning: ")]
        return ("DEFECT", f"noise on stderr: {noise[0][:200]}") if noise else ("accepted", "")
    return _judge_refusal(outcome, model)


def _judge_refusal(outcome: Outcome, model: str) -> tuple[Verdict, str]:
    lines = outcome.stderr.splitlines()
    if outcome.status != 2:
        return "DEFECT", f"exit status {outcome.status}: {outcome.stderr[-200:]!r}"
    if len(lines) != 1 or not lines[0].startswith("bitkiln: "):
        return "DEFECT", f"refused in {len(lines)} lines: {outcome.stderr[:200]!r}"
    line = lines[0]
    if UNFORESEEN.match(line):
        return "DEFECT", line
    if not line.isprintable() or len(line) > _LONGEST_LINE:
        return "DEFECT", f"a line of {len(line)} characters, or with control characters: {line[:200]!r}"
    if model.startswith("m.") and model not in line and not re.match(r"bitkiln: \S+: ", line):
        return "DEFECT", f"names neither file nor node: {line[:300]}"
    return "refused", line
