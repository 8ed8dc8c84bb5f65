"""What inspection found of a network, as values and as JSON: rows, totals, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from bitkiln.pipeline import schema
from bitkiln.pipeline.model import TensorSpec
from bitkiln.pipeline.profile import LayerWork
from bitkiln.targets import Target


@dataclass(frozen=True)
class Row:
    """A layer of the network as its file has it.

    ``shape`` is the result's, ``input_shape`` that of the first tensor it reads, both in the file's layout; ``inputs`` names
    the rows and network inputs it reads. Where one of the two is packed bits, its last axis is bytes, and ``bits`` or
    ``input_bits`` says how many channels they hold.

    ``macs`` are multiply-accumulates, padded taps included; a binary convolution with zeros among its inputs or weights runs
    as two or four, and all count. ``binary`` is None for what is no convolution (dense layers count
    as convolutions); ``reason`` says why it is binary or not. ``suspicious``: half of the pattern of a binary convolution is
    there, and yet it is none.

    Convolutions and poolings have ``kernel``, ``strides``, ``padding`` (top, left, bottom, right; what pads a binary
    convolution from outside included) and ``dilation``. ``weight_bytes`` are those of the weights as float32,
    ``packed_bytes`` as compiled, ``constant_bytes`` those of what else the compiled layer reads: thresholds, biases, slopes.
    ``sign_zero`` is the sign (+1, -1, or 0 for none) that an exact zero of its input gets, ``pad_value`` what padded taps hold
    (+1, -1, or 0, a true zero); None where nothing is signed or padded. ``result`` is what a compiled convolution writes:
    "bits", "float32", or "int8" where the first target computes it in 8 bits. ``absorbed``: the layer is no operation of the
    compiled network, but part of how the file spells signs, or known beforehand. ``warnings`` are what the user may want to
    change, ``notes`` what is good to know.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int = 0
    binary: bool | None = None
    reason: str = ""
    suspicious: bool = False
    input_shape: tuple[int, ...] = ()
    bits: int = 0
    input_bits: int = 0
    inputs: tuple[str, ...] = ()
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    weight_bytes: int = 0
    packed_bytes: int = 0
    constant_bytes: int = 0
    sign_zero: int | None = None
    pad_value: int | None = None
    result: str = ""
    absorbed: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def roof_ms(self, target: Target) -> float:
        """The least time that the layer's MACs and the weights they need take on one core of ``target``."""
        read = self.packed_bytes + self.constant_bytes
        work = LayerWork(self.name, self.kind, self.macs, bool(self.binary), read)
        return work.roof_cycles(target) / (target.mhz * 1e3)


@dataclass(frozen=True)
class Totals:
    """Sums over a network. ``convolutions`` counts dense layers too; ``activation_bytes`` is the arena's size.

    ``constant_bytes`` are those of everything but weights that the compiled network reads. ``activation_bytes`` is None where
    the network cannot be compiled.
    """

    convolutions: int
    binary: int
    binary_macs: int
    float_macs: int
    weight_bytes: int
    packed_bytes: int
    constant_bytes: int
    activation_bytes: int | None


@dataclass(frozen=True)
class Bound:
    """The least time of a frame on one core of ``target``, by direct convolutions; nothing here was measured."""

    target: Target
    ms: float
    binary_ms: float
    float_ms: float

    def as_json(self) -> schema.Bound:
        """The bound as plain values."""
        return {
            "target": self.target.name,
            "description": self.target.description,
            "bound_ms": self.ms,
            "binary_ms": self.binary_ms,
            "float_ms": self.float_ms,
        }


@dataclass(frozen=True)
class Inspection:
    """What is known of a network. ``problems`` are why it cannot be compiled as it is."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: tuple[Row, ...]
    totals: Totals
    bounds: tuple[Bound, ...] = ()
    problems: tuple[str, ...] = ()
    #: The rows or inputs that the network's results are, in the order of ``outputs``.
    results: tuple[str, ...] = field(default=())

    def bound_ms(self, row: Row) -> float | None:
        """A row's part of the first bound; None where it has no MACs or no bound was asked for."""
        return row.roof_ms(self.bounds[0].target) if self.bounds and row.macs else None

    def share(self, row: Row) -> float | None:
        """A row's share of the first bound; None as ``bound_ms``."""
        ms = self.bound_ms(row)
        return None if ms is None else ms / (self.bounds[0].ms or 1.0)

    def layers(self) -> list[schema.Layer]:
        """The rows as plain values, each with its bound on the first target."""
        return [
            cast(
                schema.Layer,
                {
                    "schema": "bitkiln.layer/1",
                    **schema.plain(row),
                    "bound_ms": self.bound_ms(row),
                    "share": self.share(row),
                },
            )
            for row in self.rows
        ]

    def as_json(self) -> schema.Inspect:
        """Everything but the rows as plain values; warnings and notes with the layers they are about."""
        return {
            "schema": "bitkiln.inspect/1",
            "model": self.name,
            "inputs": schema.plain(self.inputs),
            "outputs": schema.plain(self.outputs),
            "totals": schema.plain(self.totals),
            "bounds": [bound.as_json() for bound in self.bounds],
            "problems": list(self.problems),
            "warnings": [{"layers": names, "text": text} for text, names in gathered(self.rows, "warnings")],
            "notes": [{"layers": names, "text": text} for text, names in gathered(self.rows, "notes")],
        }


def gathered(rows: Sequence[Row], kind: str) -> list[tuple[str, list[str]]]:
    """Each text among the rows' "warnings" or "notes" once, with the layers it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in getattr(row, kind):
            found.setdefault(text, []).append(row.name)
    return list(found.items())
