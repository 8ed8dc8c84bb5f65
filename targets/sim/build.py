"""Builds the timing model and says how to run a program under it."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
QEMU = "qemu-aarch64"
FLAGS = ["-std=gnu11", "-O2", "-flto", "-shared", "-fPIC", "-fvisibility=hidden"]

# From the tables of a target's TOML to the plugin's options of the same meaning.
_OPTIONS = {
    "cpu": ("mhz", "l1d_kib", "l1d_ways", "l1i_kib", "l1i_ways", "l2_kib", "l2_ways"),
    "dram": {"latency_ns": "dram_latency_ns", "bandwidth_mb_s": "dram_bandwidth_mb_s"},
}


class SimUnavailable(Exception):
    """The simulated board cannot run here: `message` says what is missing, `remedy` what to do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"simulated Cortex-A53: {message}; {remedy}")
        self.message = message
        self.remedy = remedy


def _stated_version() -> str:
    match = re.search(r'#define MODEL_VERSION "(.+)"', (SOURCES / "a53.h").read_text())
    assert match, "a53.h states no MODEL_VERSION"
    return match[1]


MODEL_VERSION = _stated_version()
"""Changes whenever the same program could answer with other cycles."""


def cache_dir() -> Path:
    """Where the built plugin is kept: $XDG_CACHE_HOME/bitkiln, else ~/.cache/bitkiln."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitkiln"


def plugin() -> Path:
    """Path of the plugin, built on the first call for these sources and this compiler. Raises SimUnavailable."""
    compiler = os.environ.get("CC", "gcc")
    built = cache_dir() / "sim" / f"a53-{_digest(compiler)}.so"
    if not built.exists():
        _compile(compiler, built)
    return built


def _digest(compiler: str) -> str:
    if not shutil.which(compiler):
        raise SimUnavailable(f"the C compiler {compiler} is missing", "install gcc, or name another in CC")
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=30).stdout
    digest = hashlib.sha256(version + " ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        aside = Path(scratch) / built.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
        done = subprocess.run(
            [compiler, *FLAGS, *sources, "-o", str(aside), "-lcapstone"], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise _compile_error(done.stderr)
        aside.replace(built)


def _compile_error(stderr: str) -> SimUnavailable:
    if "capstone" in stderr:
        return SimUnavailable("the Capstone disassembler's headers are missing", "install libcapstone-dev")
    first = next((line for line in stderr.splitlines() if "error" in line), stderr.strip() or "no message")
    return SimUnavailable(f"the timing model does not compile ({first})", "it needs gcc 10 or later, or clang")


def qemu() -> str:
    """Path of a qemu-aarch64 that takes plugins. Raises SimUnavailable."""
    path = shutil.which(QEMU)
    if not path:
        raise SimUnavailable(f"{QEMU} is missing", "install qemu-user (Debian 12)")
    usage = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=30).stdout
    if "-plugin" not in usage:
        raise SimUnavailable(
            f"{path} is built without plugin support",
            "use Debian 12's qemu-user (not qemu-user-static), or build QEMU 7 or 8 with --enable-plugins",
        )
    return path


def plugin_options(params: Mapping[str, object]) -> list[str]:
    """The plugin's options for a target's tables `cpu` and `dram`; a table `sim` holds options by their own names."""
    cpu, dram, sim = (_table(params, name) for name in ("cpu", "dram", "sim"))
    values = {name: cpu[name] for name in _OPTIONS["cpu"] if name in cpu}
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
    """How to run an aarch64 `program` (its argv) under the model.

    `params` are the target's tables (`{"cpu": target.cpu, "dram": target.dram}`), `options` further plugin options
    ("out=PATH", "limit=N"), `sysroot` the arm64 userland in which the program's loader, libraries and CPU identity
    files are looked up. Returns argv and the environment. Raises SimUnavailable.
    """
    model = ",".join([str(plugin()), *plugin_options(params), *options])
    argv = [qemu(), "-cpu", "cortex-a53", "-plugin", model]
    if sysroot is not None:
        argv += ["-L", str(sysroot)]
    return [*argv, *program], dict(os.environ)
