"""Memory of a real board as benchmarks saw it, and the same benchmarks on the simulated one."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitkiln.targets.loader import load
from bitkiln.targets.needs import Missing
from bitkiln.targets.scratch import scratch_folder
from bitkiln.targets.sim.build import qemu_command
from bitkiln.targets.sim.reports import Reports
from bitkiln.targets.toolchain import toolchain

GUEST = Path(__file__).parent / "guests" / "memory.c"
#: The board they are from, a Raspberry Pi 3B.
MHZ = 1187
#: Steps of a chase in guests/memory.c.
_STEPS = 20_000
_FILLED = 8 << 20


@dataclass(frozen=True)
class MemoryFact:
    """What guests/memory.c does with ``arguments``; a real board takes from ``least`` to ``most`` of ``unit`` for it."""

    name: str
    arguments: tuple[str, ...]
    least: float
    most: float
    unit: str

    def value(self, cycles: int) -> float:
        """What so many cycles are in the fact's unit."""
        if self.unit == "ns":
            return cycles / _STEPS / MHZ * 1e3
        return _FILLED / cycles * MHZ

    def error(self, value: float) -> float:
        """How far ``value`` is outside of what was measured, as a share."""
        if self.least <= value <= self.most:
            return 0.0
        nearest = self.least if value < self.least else self.most
        return value / nearest - 1


def _chase(where: str, kib: int, chains: int, least: float, most: float) -> MemoryFact:
    arguments = ("chase", str(kib << 10), str(chains))
    return MemoryFact(f"chase of {chains} in {where}", arguments, least, most, "ns")


#: github ThomasKaiser/sbc-bench, results/4hOp.txt (Pi 3B), tinymembench and ramlat: a range where the two tools differ.
FACTS = (
    MemoryFact("memset", ("fill", str(_FILLED)), 1600, 1705, "MB/s"),
    MemoryFact("memcpy", ("copy", str(_FILLED)), 1060, 1115, "MB/s"),
    _chase("L2, 128 KiB", 128, 1, 14, 27),
    _chase("DRAM, 2 MiB", 2048, 1, 163, 163),
    _chase("DRAM, 2 MiB", 2048, 2, 152, 152),
    _chase("DRAM, 2 MiB", 2048, 4, 235, 235),
    _chase("DRAM, 2 MiB", 2048, 8, 400, 400),
)


def build(program: Path) -> None:
    """Compile the benchmarks. Raises Missing."""
    cross = toolchain(load("rasp3b"))
    command = [*cross.command, "-O2", "-static", str(GUEST), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=cross.environment)
    if done.returncode:
        raise Missing(f"{GUEST.name} does not compile ({done.stderr.strip().splitlines()[-1]})", "check the compiler")


def run(fact: MemoryFact, program: Path, options: Sequence[str] = ()) -> float:
    """What the simulated board takes, in the fact's unit. Raises Missing."""
    with scratch_folder() as scratch:
        out = Path(scratch) / "reports"
        command, env = qemu_command({}, [str(program), *fact.arguments], options=[f"mhz={MHZ}", f"out={out}", *options])
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        reports = Reports(out).new()
    if done.returncode or not reports:
        raise Missing(f"{fact.name} does not run under the model", "check the options of the model")
    return fact.value(reports[-1]["cycles"])
