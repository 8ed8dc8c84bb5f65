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

    @property
    def bits(self) -> int:
        """Width of a pointer: 64 or 32."""
        return 64 if self.llvm["mtriple"].startswith("aarch64") else 32

    @property
    def mhz(self) -> int:
        """The clock that cycles are turned into milliseconds with."""
        return int(self.cpu["mhz"])

    def tvm_target(self) -> tvm.target.Target:
        """The target as TVM's code generator takes it."""
        import tvm  # Takes a second: commands that only look a target up do without.

        return tvm.target.Target({"kind": "llvm", **self.llvm})


@cache
def _files() -> Mapping[str, Path]:
    """Every name and alias with its file."""
    names: dict[str, Path] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        for name in (path.stem, *table.get("aliases", ())):
            names[name] = path
    return names


def known() -> tuple[str, ...]:
    """Names of all targets, aliases left out."""
    return tuple(sorted({path.stem for path in _files().values()}))


@cache
def load(name: str) -> Target:
    """The target called ``name``; raises UnknownTarget."""
    path = _files().get(name)
    if path is None:
        near = difflib.get_close_matches(name, _files(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownTarget(f"unknown target {name!r}: known targets are {', '.join(known())}{hint}")
    table = tomllib.loads(path.read_text())
    return Target(
        name=path.stem,
        description=table["description"],
        llvm=table["llvm"],
        cc=table["cc"],
        cpu=table["cpu"],
        dram=table["dram"],
        userland=table["userland"],
        records=tuple(table.get("records", (path.stem,))),
    )
