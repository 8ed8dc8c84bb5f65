"""The program of ``bitkiln boards measure``: what it measures, how it is built, what it says under the timing model.

The same program runs on boards. There it tells time by the cycle counter, where the kernel lets programs read it, or by the
system's clock and a measured frequency; under the model by the model itself. So its rows compare one by one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitkiln.targets.loader import Target
from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim import facts, microbench
from bitkiln.targets.sim.build import qemu_command
from bitkiln.targets.sim.microbench import Fact
from bitkiln.targets.toolchain import toolchain

GUESTS = Path(__file__).parent / "guests"
#: What the program is asked for, one after the other.
PARTS = ("facts", "memory", "probes")
#: Seconds for a part on a slow board.
PART_SECONDS = 900.0
#: What stands around a sequence, which is taken off every figure.
NOTHING = Fact("nothing", (), 0)


def sequences() -> list[Fact]:
    """The sequences in the order of the program's rows; the first is empty."""
    return [NOTHING, *facts.all_facts()]


def build(program: Path, target: Target) -> None:
    """Compile the program, which needs no library on the board. Raises Missing."""
    cross = toolchain(target)
    with scratch_folder() as scratch:
        assembly = Path(scratch) / "sequences.s"
        assembly.write_text(microbench.functions(sequences()))
        command = [*cross.command, "-O2", "-static", "-pthread", f"-I{GUESTS}", str(GUESTS / "evidence.c")]
        command += [str(assembly), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=cross.environment)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"the program for boards does not compile ({said})", "check the compiler")


def on_model(program: Path, part: str, target: Target, options: Sequence[str] = ()) -> str:
    """What the program prints under the timing model, whose ``options`` these are. Raises Missing."""
    parameters = {"cpu": target.cpu, "dram": target.dram}
    command, environment = qemu_command(parameters, [str(program), part], options=["marks=1", *options])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PART_SECONDS)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Missing(f"the program for boards does not run under the model ({said})", "check the options of the model")
    return done.stdout


def rows(text: str) -> Iterator[Mapping[str, Any]]:
    """The lines of a part as mappings, the first of which says what told the time. Raises ValueError."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if not isinstance(found, dict):
            raise ValueError(f"no row: {line[:80]}")
        yield found
