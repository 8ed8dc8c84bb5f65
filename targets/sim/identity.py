"""The files by which programs recognise a Cortex-A53: in an ARM userland, QEMU shows them instead of the host's.

Without them libraries pick kernels and block sizes for the host's CPU.
"""

import os
from collections.abc import Mapping
from pathlib import Path

MIDR_CORTEX_A53_R0P4 = 0x410FD034
#: What the kernel says of a BCM2837, which has no cryptography extension, by the width of its system.
_FEATURES = {
    64: {"Features": "fp asimd evtstrm crc32 cpuid", "CPU architecture": 8},
    32: {
        "model name": "ARMv7 Processor rev 4 (v7l)",
        "Features": "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32",
        "CPU architecture": 7,
    },
}


def write_cpu_identity(root: Path, params: Mapping[str, object], bits: int = 64) -> None:
    """Writes /proc/cpuinfo and /sys/devices/system/cpu below `root`, by the table `cpu`.

    `root` is the top of a userland of so many `bits`.
    """
    cpu = params["cpu"]
    assert isinstance(cpu, Mapping)
    cores = int(cpu.get("cores", 4))
    _write(root / "proc/cpuinfo", "".join(_cpuinfo(core, bits) for core in range(cores)))
    system = root / "sys/devices/system/cpu"
    for name in ("online", "possible", "present"):
        _write(system / name, f"0-{cores - 1}\n")
    for core in range(cores):
        folder = system / f"cpu{core}"
        _write(folder / "regs/identification/midr_el1", f"0x{MIDR_CORTEX_A53_R0P4:016x}\n")
        alone, all_cores = str(core), f"0-{cores - 1}"
        _cache(folder / "cache/index0", "Data", 1, cpu.get("l1d_kib", 32), cpu.get("l1d_ways", 4), alone)
        _cache(folder / "cache/index1", "Instruction", 1, cpu.get("l1i_kib", 32), cpu.get("l1i_ways", 2), alone)
        _cache(folder / "cache/index2", "Unified", 2, cpu.get("l2_kib", 512), cpu.get("l2_ways", 16), all_cores)


def _cpuinfo(core: int, bits: int) -> str:
    fields = {
        "processor": core,
        "BogoMIPS": "38.40",
        **_FEATURES[bits],
        "CPU implementer": "0x41",
        "CPU variant": "0x0",
        "CPU part": "0xd03",
        "CPU revision": 4,
    }
    return "".join(f"{name}\t: {value}\n" for name, value in fields.items()) + "\n"


def _cache(folder: Path, kind: str, level: int, kib: object, ways: object, shared_with: str) -> None:
    sets = int(str(kib)) * 1024 // (64 * int(str(ways)))
    values = {
        "type": kind,
        "level": level,
        "size": f"{kib}K",
        "ways_of_associativity": ways,
        "number_of_sets": sets,
        "coherency_line_size": 64,
        "shared_cpu_list": shared_with,
    }
    for name, value in values.items():
        _write(folder / name, f"{value}\n")


def _write(path: Path, text: str) -> None:
    """Leaves a file alone that says so already: other programs may be running in the userland and read it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
