"""Runs the target's compiler, assembler and linker."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bitkiln.pipeline.errors import BitkilnError, SetupError
from bitkiln.pipeline.support import processes
from bitkiln.targets import Target
from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.toolchain import Toolchain, toolchain

#: A compiler or linker that takes longer hangs.
TOOL_SECONDS = 300.0
#: How often it is run where the system kills it, as it does when memory is short.
ATTEMPTS = 3


def tools_for(target: Target) -> Toolchain:
    """The toolchain for ``target``. Raises SetupError."""
    try:
        return toolchain(target)
    except Missing as problem:
        raise SetupError(str(problem)) from None


def compile_with(target: Target, arguments: Sequence[str | Path], out: Path) -> Path:
    """Run the target's compiler; gives ``out``. Its first complaint becomes a BitkilnError."""
    tools = tools_for(target)
    done = attempt(tools, [*arguments, "-o", out])
    if done.returncode != 0:
        raise BitkilnError(f"{tools.name} for {target.name} failed: {_complaint(done.stderr.decode(errors='replace'))}")
    return out


def attempt(tools: Toolchain, arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[bytes]:
    """Run the compiler and give how it ended. Raises BitkilnError where it hangs, or is killed every time."""
    for _ in range(ATTEMPTS):
        done = _run(tools, arguments)
        if not _was_killed(done):
            return done
    raise BitkilnError(f"{tools.name} was killed {ATTEMPTS} times: this machine may be short of memory")


def _run(tools: Toolchain, arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[bytes]:
    command = [*tools.command, *map(str, arguments)]
    # A compiler that is killed leaves its temporary files: they go with a folder of ours.
    with scratch_folder() as temporary:
        try:
            return processes.run(command, TOOL_SECONDS, {**tools.environment, "TMPDIR": temporary})
        except subprocess.TimeoutExpired:
            raise BitkilnError(f"{command[0]} has not ended in {TOOL_SECONDS:g} s") from None


def _was_killed(done: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether a signal from outside ended it, or a program that it runs: gcc and its collect2 say so in these words."""
    words = (b"Killed signal terminated program", b"terminated with signal 9 [Killed]")
    return done.returncode == -signal.SIGKILL or (done.returncode > 0 and any(word in done.stderr for word in words))


def _complaint(text: str) -> str:
    """The line of a compiler's or linker's output that says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("collect2:")]
    words = ("error", "undefined reference", "failed", "No space left")
    return next((line for line in lines if any(word in line for word in words)), (lines or ["no message"])[-1])
