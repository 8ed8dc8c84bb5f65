"""Where a bundle's time goes: per layer cycles, MACs a cycle, distance from the roof, and what the cycles wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bitkiln.pipeline import schema
from bitkiln.pipeline.boards import place
from bitkiln.pipeline.boards.board import Board, LocalBoard, Measurement, Request, TrackerBoard
from bitkiln.pipeline.boards.remote import SshBoard
from bitkiln.pipeline.boards.ssh import Remote
from bitkiln.pipeline.bundle import Bundle, open_bundle
from bitkiln.pipeline.errors import InputError
from bitkiln.targets import Target

#: Seconds a whole network may take on a board before its profile is given up.
LIMIT_SECONDS = 600.0
#: How many of a layer's hottest blocks ``--layer`` shows.
BLOCKS = 4

#: A cache line of the Cortex-A53.
LINE_BYTES = 64

#: What a simulated cycle was spent on, in the order reports show it.
CAUSES = ("issue", "dependency", "l1", "l2", "dram", "branch", "fetch", "system")


@dataclass(frozen=True)
class LayerWork:
    """What a step has to do: multiply-accumulates and bytes of weights it must read from DRAM once a frame.

    ``layers`` are those of the model's file that it was made of, ``layer`` the one it is known by ("": part of the next).
    """

    name: str
    kind: str
    macs: int = 0
    binary: bool = False
    weight_bytes: int = 0
    layer: str = ""
    layers: tuple[str, ...] = ()

    def called(self, name: str) -> bool:
        """Is it the step of that name, or made of the layer of that name?"""
        return name == self.name or name in self.layers

    def roof_cycles(self, target: Target, cores: int = 1) -> float:
        """The bound of this layer: peak MACs a cycle of ``cores`` or DRAM bandwidth for its weights, whichever is worse."""
        peak = cores * target.cpu["peak_binary_mac_per_cycle" if self.binary else "peak_f32_mac_per_cycle"]
        bytes_per_cycle = target.dram_mb_s(cores) / target.mhz
        return max(self.macs / peak, self.weight_bytes / bytes_per_cycle)


@dataclass(frozen=True)
class LayerProfile:
    """One row of a profile. ``roof_ms`` is its bound, ``roof_percent`` that as a share of ``ms``; None where it has no MACs.

    ``causes`` and ``mix`` are cycles by cause and instructions by class, empty where the board cannot tell; ``blocks`` are the
    hottest basic blocks as the simulator reports them (docs/simulator.md), where they were asked for. ``busy`` has for each
    core the cycles in which it did not wait for another, and ``dram_percent`` is the share of DRAM's bandwidth that was used;
    both only from a simulated board.
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
    roof_ms: float | None
    layer: str = ""
    layers: tuple[str, ...] = ()
    causes: Mapping[str, float] = field(default_factory=dict)
    mix: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[Mapping[str, Any], ...] = ()
    busy: tuple[float, ...] = ()
    dram_percent: float | None = None

    @property
    def cores_at_work(self) -> float:
        """How many cores worked, on average over the layer's time."""
        return sum(self.busy) / self.cycles if self.cycles else 0.0

    def as_json(self) -> schema.ProfiledStep:
        """The row as plain data."""
        return {
            "name": self.name,
            "kind": self.kind,
            "layer": self.layer,
            "layers": list(self.layers),
            "macs": self.macs,
            "binary": self.binary,
            "weight_bytes": self.weight_bytes,
            "cycles": self.cycles,
            "ms": self.ms,
            "share": self.share,
            "mac_per_cycle": self.mac_per_cycle,
            "bound_ms": self.roof_ms,
            "roof_share": None if self.roof_percent is None else self.roof_percent / 100,
            "causes": dict(self.causes),
            "mix": dict(self.mix),
            "blocks": schema.plain(self.blocks),
            "busy_cycles": list(self.busy),
            "dram_share": None if self.dram_percent is None else self.dram_percent / 100,
        }

    @property
    def called(self) -> str:
        """What reports call it: the layer of the model's file that it is known by, else the step's own name."""
        return self.layer or self.name

    @property
    def intensity(self) -> float:
        """MACs for each byte of weights."""
        return self.macs / max(self.weight_bytes, 1)


@dataclass(frozen=True)
class Profile:
    """A bundle's profile and what measured it, e.g. "simulated Cortex-A53, 1 core, model v2, 1200 MHz".

    ``complete`` is false when the simulator met instructions it has no rule for.
    """

    bundle: str
    target: str
    measured_by: str
    mhz: float
    layers: tuple[LayerProfile, ...]
    complete: bool = True
    threads: int = 1
    model: str = ""

    @property
    def cycles(self) -> float:
        """Cycles of the whole network, the sum of its layers."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def ms(self) -> float:
        """Milliseconds of the whole network at the target's clock."""
        return self.cycles / (self.mhz * 1e3)

    @property
    def bound_ms(self) -> float:
        """The sum of the steps' bounds."""
        return sum(layer.roof_ms or 0.0 for layer in self.layers)

    def as_json(self) -> schema.Profile:
        """The profile as plain data."""
        return {
            "schema": "bitkiln.profile/1",
            "bundle": self.bundle,
            "model": self.model,
            "target": self.target,
            "measured_by": self.measured_by,
            "clock_mhz": self.mhz,
            "cycles": self.cycles,
            "ms": self.ms,
            "bound_ms": self.bound_ms,
            "threads": self.threads,
            "complete": self.complete,
            "steps": [layer.as_json() for layer in self.layers],
        }


def profile_bundle(
    folder: Path, board: str = "sim", cold: bool = False, layer: str | None = None, threads: int = 1
) -> Profile:
    """Measure every step of the bundle in ``folder`` on "sim", on a board of the tracker "HOST:PORT/KEY", or over ssh.

    With ``layer`` the profile has that layer alone, with its hottest blocks. Raises InputError for an unknown layer, and for
    cold caches on a board that cannot empty them.
    """
    bundle = open_bundle(folder)
    works = [_work(step) for step in bundle.manifest["steps"]]
    if layer is not None and not any(work.called(layer) for work in works):
        names = dict.fromkeys(work.layer or work.name for work in works)
        raise InputError(f"{folder}: no layer {layer!r}; it has {', '.join(names)}")
    blocks = BLOCKS if layer else 0
    request = Request(threads=threads, per_step=True, cold=cold, blocks=blocks, limit_seconds=LIMIT_SECONDS)
    with _board(board, bundle) as place:
        if cold and (there := place.identity())["kind"] != "simulated":
            raise InputError(f"{there['measured_by']} cannot be told to empty its caches: leave --cold out")
        measurement = place.measure(bundle.folder / "model.so", request)
    result = build(str(folder), works, _rows(measurement, bundle.target), bundle.target, measurement, threads)
    result = replace(result, model=str(bundle.manifest["model"]["name"]))
    if layer is None:
        return result
    chosen = [row for row, work in zip(result.layers, works, strict=True) if work.called(layer)]
    return replace(result, layers=tuple(chosen))


@contextmanager
def _board(board: str, bundle: Bundle) -> Iterator[Board]:
    where = place.parse(board)
    if isinstance(where, place.OverSsh):
        with SshBoard(Remote(where.host)) as reached:
            yield reached
    else:
        yield TrackerBoard.at(where) if isinstance(where, place.AtTracker) else LocalBoard(bundle.target)


def _work(step: Mapping[str, Any]) -> LayerWork:
    name, kind, macs, binary, weights = (step[each] for each in ("name", "kind", "macs", "binary", "weight_bytes"))
    return LayerWork(name, kind, macs, binary, weights, step.get("layer", ""), tuple(step.get("layers", ())))


def _rows(measurement: Measurement, target: Target) -> list[Mapping[str, Any]]:
    """The board's rows with cycles in each; a real board's come from its times and its clock, the target's where unknown."""
    if measurement.unit == "cycles":
        return list(measurement.steps)
    return [
        {**row, "cycles": row["seconds"] * (measurement.clock_mhz or target.mhz) * 1e6} for row in measurement.steps
    ]


def build(
    bundle: str,
    works: Sequence[LayerWork],
    measured: Sequence[Mapping[str, Any]],
    target: Target,
    measurement: Measurement,
    threads: int = 1,
) -> Profile:
    """Join what each layer has to do with what the board measured for it.

    ``measured`` has one mapping for each layer: ``cycles`` and, from a simulated board, ``where``, ``mix``, ``memory``,
    ``threads`` and ``blocks``.
    """
    total = sum(float(row["cycles"]) for row in measured) or 1.0
    mhz = measurement.clock_mhz or target.mhz
    layers = tuple(_layer(work, row, total, target, mhz, threads) for work, row in zip(works, measured, strict=True))
    return Profile(bundle, target.name, measurement.measured_by, mhz, layers, measurement.complete, threads)


def _layer(
    work: LayerWork, row: Mapping[str, Any], total: float, target: Target, mhz: float, threads: int
) -> LayerProfile:
    cycles = float(row["cycles"])
    cores = row.get("threads", ())
    return LayerProfile(
        name=work.name,
        kind=work.kind,
        macs=work.macs,
        binary=work.binary,
        weight_bytes=work.weight_bytes,
        cycles=cycles,
        ms=cycles / (mhz * 1e3),
        share=cycles / total,
        mac_per_cycle=work.macs / cycles if cycles else 0.0,
        roof_percent=100 * work.roof_cycles(target, threads) / cycles if work.macs and cycles else None,
        roof_ms=work.roof_cycles(target, threads) / (mhz * 1e3) if work.macs else None,
        layer=work.layer,
        layers=work.layers,
        causes=row.get("where", {}),
        mix=row.get("mix", {}),
        blocks=tuple(row.get("blocks", ())),
        busy=tuple(float(core["cycles"] - core["spinning"]) for core in cores),
        dram_percent=_dram_percent(row, cycles / (mhz * 1e6), target.dram_mb_s(threads)),
    )


def _dram_percent(row: Mapping[str, Any], seconds: float, mb_s: float) -> float | None:
    if "memory" not in row or not seconds:
        return None
    lines = row["memory"]["dram_lines_read"] + row["memory"]["dram_lines_written"]
    return 100 * lines * LINE_BYTES / seconds / (mb_s * 1e6)


def print_table(profile: Profile, console: Console) -> None:
    """The profile for a terminal."""
    several = profile.threads > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    console.print(f"{profile.bundle}: {profile.ms:.2f} ms ({profile.measured_by})", highlight=False, markup=False)
    table.add_column("layer")
    table.add_column("kind")
    headings = ["cycles", "ms", "share", "MAC/cycle", "% of roof"]
    for heading in [*headings, *(["cores at work", "% of DRAM"] if several else [])]:
        table.add_column(heading, justify="right")
    table.add_column("where the cycles went")
    for layer in profile.layers:
        roof = shown_percent(layer.roof_percent)
        rate = f"{layer.mac_per_cycle:.2f}" if layer.macs else ""
        row = [f"{layer.cycles:,.0f}", f"{layer.ms:.3f}", f"{layer.share:.1%}", rate, roof]
        if several:
            row += [f"{layer.cores_at_work:.2f}" if layer.busy else "", shown_percent(layer.dram_percent)]
        table.add_row(layer.called, layer.kind, *row, describe_causes(layer))
    table.add_row("total", "", f"{profile.cycles:,.0f}", f"{profile.ms:.3f}", "100%", *[""] * (5 if several else 3))
    console.print(table)
    if any((layer.roof_percent or 0) > 100 for layer in profile.layers):
        console.print(
            "Above 100 % of the roof, which counts products of floats: Winograd's method, with fewer multiplications than the "
            "MACs counted, or whole numbers of 8 bits, of which a vector holds more."
        )
    if not profile.complete:
        console.print("The simulator met instructions it has no rule for: these cycles are a guess.")


def shown_percent(percent: float | None) -> str:
    """A whole number, or nothing where there is none."""
    return "" if percent is None else f"{percent:.0f}"


def print_blocks(profile: Profile, console: Console) -> None:
    """A layer's hottest blocks: cycles for each instruction, averaged over the executions."""
    for layer in profile.layers:
        share = describe_causes(layer)
        console.print(f"{layer.called} ({layer.kind}): {layer.cycles:,.0f} cycles, {share}; {profile.measured_by}")
        for block in layer.blocks:
            times = f"{block['executions']:,} times {block['cycles'] / max(block['executions'], 1):.2f} cycles"
            where = f"{block['symbol'] or 'model.so'}+{block['offset']}"
            console.print(f"\n{where}: {block['cycles'] / layer.cycles:.1%} of the layer, {times}")
            for text, cycles in block.get("code", ()):
                console.print(f"{cycles:8.2f}  {text}", highlight=False, markup=False)


def describe_causes(layer: LayerProfile) -> str:
    """The causes that take at least a twentieth of a layer's cycles, the largest first."""
    shares = [(layer.causes.get(cause, 0.0) / layer.cycles, cause) for cause in CAUSES if layer.cycles]
    return ", ".join(f"{cause} {share:.0%}" for share, cause in sorted(shares, reverse=True) if share >= 0.05)
