"""Reads ``targets/*.toml``: all that is particular to a kind of board stands in its file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

FOLDER = Path(__file__).parent


class UnknownTarget(ValueError):
    """The name is not of a target we know; the message lists them and suggests the nearest."""


@dataclass(frozen=True)
class Target:
    """A kind of board. The mappings are the tables of its TOML file, with its units."""

    name: str
    description: str
    llvm: Mapping[str, Any]
    cc: Mapping[str, Any]
    cpu: Mapping[str, Any]
    dram: Mapping[str, Any]
    userland: Mapping[str, Any]
    records: tuple[str, ...]
    #: The set of micro-kernels that its CPU has, a package of ``schedules/microkernels``; "" without one.
    kernels: str = ""

    @property
    def architecture(self) -> str:
        """What ``uname -m`` says on the board: "aarch64", "armv7l"."""
        return str(self.llvm["mtriple"]).split("-")[0]

    @property
    def cpu_name(self) -> str:
        """The core, as compilers call it: "cortex-a53"."""
        return str(self.llvm["mcpu"])

    @property
    def mhz(self) -> int:
        """The clock that cycles are turned into milliseconds with."""
        return int(self.cpu["mhz"])

    @property
    def cores(self) -> int:
        """How many cores it has."""
        return int(self.cpu["cores"])

    def dram_mb_s(self, cores: int) -> float:
        """What so many cores get of its DRAM together."""
        alone = float(self.dram["bandwidth_mb_s"])
        return alone if cores == 1 else float(self.dram.get("total_bandwidth_mb_s", alone))

    def tvm_target(self) -> tvm.target.Target:
        """The target as TVM's code generator takes it."""
        import tvm  # Takes a second: commands that only look a target up do without.

        return tvm.target.Target({"kind": "llvm", **self.llvm})


@cache
def _files() -> Mapping[str, Path]:
    """Every name and alias with its file."""
    names: dict[str, Path] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for name in (path.stem, *table.get("aliases", ())):
            names[name] = path
    return names


def known() -> tuple[str, ...]:
    """Names of all targets, aliases left out."""
    return tuple(sorted({path.stem for path in _files().values()}))


def aliases(name: str) -> tuple[str, ...]:
    """What else the target ``name`` may be called."""
    files = _files()
    return tuple(sorted(other for other, path in files.items() if path == files[name] and other != path.stem))


@cache
def load(name: str) -> Target:
    """The target called ``name``; raises UnknownTarget."""
    path = _files().get(name)
    if path is None:
        near = difflib.get_close_matches(name, _files(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownTarget(f"unknown target {name!r}: known targets are {', '.join(known())}{hint}")
    table = _table(path)
    return Target(
        name=path.stem,
        description=table["description"],
        llvm=table["llvm"],
        cc=table["cc"],
        cpu=table["cpu"],
        dram=table["dram"],
        userland=table["userland"],
        records=tuple(table["records"]),
        kernels=table["kernels"]["set"],
    )


def _table(path: Path) -> dict[str, Any]:
    """A page with what it leaves out: the tables of the target that it is ``like``, its own records first."""
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    base: dict[str, Any] = {"records": [], "kernels": {"set": ""}}
    if "like" in own:
        base = _table(FOLDER / f"{own['like']}.toml")
    tables = {name: {**base.get(name, {}), **table} for name, table in own.items() if isinstance(table, dict)}
    return {**base, "records": [path.stem, *base["records"]], **own, **tables}
