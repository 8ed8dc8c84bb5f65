"""Where a bundle's time goes: per layer cycles, MACs a cycle, distance from the roof, and what the cycles wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bitkiln.targets import Target

#: What a simulated cycle was spent on, in the order reports show it.
CAUSES = ("issue", "dependency", "l1", "l2", "dram", "branch", "fetch")


@dataclass(frozen=True)
class LayerWork:
    """What a layer has to do: multiply-accumulates and bytes of weights it must read from DRAM once a frame."""

    name: str
    kind: str
    macs: int = 0
    binary: bool = False
    weight_bytes: int = 0

    def roof_cycles(self, target: Target) -> float:
        """The bound of this layer on one core: peak MACs a cycle or DRAM bandwidth for its weights, whichever is worse."""
        peak = target.cpu["peak_binary_mac_per_cycle" if self.binary else "peak_f32_mac_per_cycle"]
        bytes_per_cycle = target.dram["bandwidth_mb_s"] / target.mhz
        return max(self.macs / peak, self.weight_bytes / bytes_per_cycle)


@dataclass(frozen=True)
class LayerProfile:
    """One row of a profile. ``roof_percent`` is the bound's share of the cycles taken; None where there are no MACs.

    ``causes`` and ``mix`` are cycles by cause and instructions by class, empty where the board cannot tell.
    """

    name: str
    kind: str
    macs: int
    binary: bool
    weight_bytes: int
    cycles: float
    ms: float
    share: float
    mac_per_cycle: float
    roof_percent: float | None
    causes: Mapping[str, float] = field(default_factory=dict)
    mix: Mapping[str, int] = field(default_factory=dict)

    @property
    def intensity(self) -> float:
        """MACs for each byte of weights."""
        return self.macs / max(self.weight_bytes, 1)


@dataclass(frozen=True)
class Profile:
    """A bundle's profile and what measured it, e.g. "simulated Cortex-A53, model v1, 1200 MHz"."""

    bundle: str
    target: str
    measured_by: str
    mhz: int
    layers: tuple[LayerProfile, ...]

    @property
    def cycles(self) -> float:
        """Cycles of the whole network, the sum of its layers."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def ms(self) -> float:
        """Milliseconds of the whole network at the target's clock."""
        return self.cycles / (self.mhz * 1e3)

    def as_json(self) -> dict[str, Any]:
        """The profile as plain data."""
        return {**asdict(self), "cycles": self.cycles, "ms": self.ms}


def build(
    bundle: str, works: Sequence[LayerWork], measured: Sequence[Mapping[str, Any]], target: Target, measured_by: str
) -> Profile:
    """Join what each layer has to do with what the board measured for it.

    ``measured`` has one mapping for each layer: ``cycles`` and, from a simulated board, ``causes`` and ``mix``.
    """
    total = sum(float(row["cycles"]) for row in measured) or 1.0
    layers = tuple(_layer(work, row, total, target) for work, row in zip(works, measured, strict=True))
    return Profile(bundle, target.name, measured_by, target.mhz, layers)


def _layer(work: LayerWork, row: Mapping[str, Any], total: float, target: Target) -> LayerProfile:
    cycles = float(row["cycles"])
    return LayerProfile(
        name=work.name,
        kind=work.kind,
        macs=work.macs,
        binary=work.binary,
        weight_bytes=work.weight_bytes,
        cycles=cycles,
        ms=cycles / (target.mhz * 1e3),
        share=cycles / total,
        mac_per_cycle=work.macs / cycles if cycles else 0.0,
        roof_percent=100 * work.roof_cycles(target) / cycles if work.macs and cycles else None,
        causes=row.get("causes", {}),
        mix=row.get("mix", {}),
    )


def print_table(profile: Profile, console: Console) -> None:
    """The profile for a terminal."""
    table = Table(
        title=f"{profile.bundle}: {profile.ms:.2f} ms on one core ({profile.measured_by})", title_justify="left"
    )
    table.add_column("layer")
    table.add_column("kind")
    for heading in ("cycles", "ms", "share", "MAC/cycle", "% of roof"):
        table.add_column(heading, justify="right")
    table.add_column("where the cycles went")
    for layer in profile.layers:
        roof = "" if layer.roof_percent is None else f"{layer.roof_percent:.0f}"
        rate = f"{layer.mac_per_cycle:.2f}" if layer.macs else ""
        row = (f"{layer.cycles:,.0f}", f"{layer.ms:.3f}", f"{layer.share:.1%}", rate, roof)
        table.add_row(layer.name, layer.kind, *row, describe_causes(layer))
    table.add_section()
    table.add_row("total", "", f"{profile.cycles:,.0f}", f"{profile.ms:.3f}", "100%", "", "", "")
    console.print(table)


def describe_causes(layer: LayerProfile) -> str:
    """The causes that take at least a twentieth of a layer's cycles, the largest first."""
    shares = [(layer.causes.get(cause, 0.0) / layer.cycles, cause) for cause in CAUSES if layer.cycles]
    return ", ".join(f"{cause} {share:.0%}" for share, cause in sorted(shares, reverse=True) if share >= 0.05)
