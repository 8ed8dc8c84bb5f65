"""What a network consists of: one row for each layer, its work, and for each convolution whether it is binary or why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.model import Model
from bitkiln.pipeline.ops import has_workload, workload_of
from bitkiln.pipeline.passes.graph import bindings, op_name, shape_of
from bitkiln.pipeline.passes.lower import binary_layers
from bitkiln.pipeline.passes.recognise_binary import Verdict


@dataclass(frozen=True)
class Row:
    """A layer of the network as its file has it.

    ``shape`` is the result's; ``macs`` are multiply-accumulates, padded taps included. ``binary`` is None for what is no
    convolution (dense layers count as convolutions); ``reason`` says why it is binary or not. ``suspicious``: half of
    the pattern of a binary convolution is there, and yet it is none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int = 0
    binary: bool | None = None
    reason: str = ""
    suspicious: bool = False

    def as_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


def layer_table(model: Model) -> list[Row]:
    """One row for each operation of ``model``, in execution order."""
    found, floats = binary_layers(model.module)
    verdicts = {verdict.name: verdict for verdict in found}
    return [
        _row(name, value, verdicts.get(name), floats.get(name))
        for name, value in bindings(model.module["main"])
        if isinstance(value, Call) and isinstance(value.ty, relax.TensorType)
    ]


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print the rows and their totals."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    table.add_column("shape")
    table.add_column("MMACs", justify="right")
    table.add_column("binary")
    for row in rows:
        size = "x".join(map(str, row.shape))
        table.add_row(escape(row.name), row.kind, size, f"{row.macs / 1e6:.2f}" if row.macs else "", _answer(row))
    console.print(table)
    console.print(_totals(rows))


def _row(name: str, call: Call, verdict: Verdict | None, floats: str | None) -> Row:
    kind = op_name(call).removeprefix("nn.").removeprefix("bitkiln.")
    row = Row(name, kind, shape_of(call), _macs(call))
    if verdict is None:
        return row
    reason = f"{verdict.reason}; keeps floats: {floats}" if floats else verdict.reason
    return Row(row.name, kind, row.shape, row.macs, verdict.binary, reason, verdict.suspicious)


def _macs(call: Call) -> int:
    """Multiply-accumulates of a convolution or matrix product."""
    if has_workload(call):
        return workload_of(call).macs
    match op_name(call):
        case "nn.conv2d":
            _, out_height, out_width, _ = _in_order(shape_of(call), str(call.attrs["data_layout"]), "NHWC")
            out, height, width, per_group = _in_order(shape_of(call.args[1]), str(call.attrs["kernel_layout"]), "OHWI")
            return out_height * out_width * out * height * width * per_group
        case "nn.conv2d_transpose":
            _, height, width, _ = _in_order(shape_of(call.args[0]), str(call.attrs["data_layout"]), "NHWC")
            return height * width * math.prod(shape_of(call.args[1]))
        case "matmul":
            return math.prod(shape_of(call)) * shape_of(call.args[0])[-1]
    return 0


def _in_order(shape: tuple[int, ...], layout: str, wanted: str) -> list[int]:
    return [shape[layout.index(letter)] for letter in wanted]


def _answer(row: Row) -> str:
    if row.binary is None:
        return ""
    if row.binary:
        return f"[green]yes[/green]: {row.reason}"
    return f"[yellow]NO[/yellow]: {row.reason}" if row.suspicious else f"no: {row.reason}"


def _totals(rows: Sequence[Row]) -> str:
    convs = [row for row in rows if row.binary is not None]
    binary = [row for row in convs if row.binary]
    binary_macs = sum(row.macs for row in binary)
    float_macs = sum(row.macs for row in rows) - binary_macs
    return (
        f"{len(binary)} of {len(convs)} convolutions and dense layers are binary: "
        f"{binary_macs / 1e6:.1f} M binary and {float_macs / 1e6:.1f} M float MACs"
    )
