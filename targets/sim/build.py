"""Builds the timing model and says how to run a program under it."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitkiln.targets import needs, zig
from bitkiln.targets.cache import aside, cache_directory, is_whole, stamp
from bitkiln.targets.needs import Missing
from bitkiln.targets.sim.emulator import Emulator, emulator

SOURCES = Path(__file__).resolve().parent
#: By the table `userland`, where it is given; else for A64 programs.
QEMU = {"qemu": "qemu-aarch64", "qemu_cpu": "cortex-a53"}
FLAGS = ["-std=gnu11", "-O2", "-flto", "-shared", "-fPIC", "-fvisibility=hidden"]

#: The plugin's Capstone stays its own: qemu is linked to one too, and the two need not be of one version.
EXPORTS = "{ global: qemu_plugin_install; qemu_plugin_version; local: *; };\n"

#: The oldest glibc that a plugin compiled by zig runs with; that of the emulator is younger.
_GLIBC = "2.28"

# From the tables of a target's TOML to the plugin's options of the same meaning.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        **{name: name for name in ("mhz", "l1d_kib", "l1d_ways", "l1i_kib", "l1i_ways", "l2_kib", "l2_ways")},
        "cores": "cpus",
    },
    "dram": {
        "latency_ns": "dram_latency_ns",
        "bandwidth_mb_s": "dram_bandwidth_mb_s",
        "write_mb_s": "dram_write_mb_s",
        "total_bandwidth_mb_s": "dram_total_mb_s",
    },
}


def _stated_version() -> str:
    match = re.search(r'#define MODEL_VERSION "(.+)"', (SOURCES / "a53.h").read_text(encoding="utf-8"))
    assert match, "a53.h states no MODEL_VERSION"
    return match[1]


MODEL_VERSION = _stated_version()
"""Changes whenever the same program could answer with other cycles."""


def plugin() -> Path:
    """Path of the plugin, built on the first call for these sources and this compiler. Raises Missing."""
    machine = emulator()
    compiler = host_compiler()
    built = cache_directory() / "sim" / f"a53-{_digest(compiler, machine)}.so"
    if not is_whole(built):
        _compile(compiler, machine, built)
        stamp(built)
    return built


def host_compiler() -> list[str]:
    """The command of a C compiler for this machine: $CC, gcc, cc, or zig's from PyPI. Raises Missing."""
    named = os.environ.get("CC")
    if named:
        return [needs.find(named)]
    found = shutil.which("gcc") or shutil.which("cc")
    if found:
        return [found]
    if zig.installed():
        return zig.compiler(f"{platform.machine()}-linux-gnu.{_GLIBC}")
    raise Missing("there is no C compiler for this machine", needs.remedy("gcc"))


def _digest(compiler: Sequence[str], machine: Emulator) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=60, env=zig.environment()).stdout
    digest = hashlib.sha256(version + " ".join([machine.folder.name, EXPORTS, *FLAGS]).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: Sequence[str], machine: Emulator, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with aside(built) as scratch:
        library, exports = scratch / built.name, scratch / "exports.map"
        exports.write_text(EXPORTS)
        command = [*compiler, *FLAGS, f"-I{machine.folder / 'include'}", "-Xlinker", f"--version-script={exports}"]
        command += [*map(str, sorted(SOURCES.glob("*.c"))), str(machine.folder / "libcapstone.a"), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=zig.environment())
        if done.returncode:
            raise _compile_error(done.stderr)
        library.replace(built)


def _compile_error(stderr: str) -> Missing:
    first = next((line for line in stderr.splitlines() if "error" in line), stderr.strip() or "no message")
    return Missing(f"the timing model does not compile ({first})", "it needs gcc 10 or later, or clang")


def plugin_options(params: Mapping[str, object]) -> list[str]:
    """The plugin's options for a target's tables `cpu` and `dram`; a table `sim` holds options by their own names."""
    cpu, dram, sim = (_table(params, name) for name in ("cpu", "dram", "sim"))
    values = {option: cpu[name] for name, option in _OPTIONS["cpu"].items() if name in cpu}
    values |= {option: dram[name] for name, option in _OPTIONS["dram"].items() if name in dram}
    values |= sim
    return [f"{name}={value}" for name, value in values.items()]


def _table(params: Mapping[str, object], name: str) -> Mapping[str, object]:
    table = params.get(name, {})
    if not isinstance(table, Mapping):
        raise TypeError(f"target parameters: [{name}] must be a table")
    return table


def qemu_command(
    params: Mapping[str, object], program: Sequence[str], *, sysroot: Path | None = None, options: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """How to run a `program` (its argv) under the model: of A64 code, or of what the table `userland` says.

    `params` are the target's tables (`{"cpu": target.cpu, "dram": target.dram}`), `options` further plugin options
    ("out=PATH", "limit=N"), `sysroot` the userland in which the program's loader, libraries and CPU identity
    files are looked up. Returns argv and the environment. Raises Missing.
    """
    # Commas part the options; in a path qemu wants them twice.
    parts = [str(plugin()), *plugin_options(params), *options]
    model = ",".join(part.replace(",", ",,") for part in parts)
    machine = {**QEMU, **_table(params, "userland")}
    argv = [*emulator().command(str(machine["qemu"])), "-cpu", str(machine["qemu_cpu"]), "-plugin", model]
    if sysroot is not None:
        argv += ["-L", str(sysroot)]
    return [*argv, *program], dict(os.environ)
