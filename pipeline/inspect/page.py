"""The inspection of a network as a self-contained HTML page: totals, warnings, its graph with a panel of details, its layers.

Layers are shown in blocks (``blocks``). All of their details stand in the page as HTML; the script only shows those of the
block that is pointed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from bitkiln.pipeline.inspect.blocks import Block, blocks_of
from bitkiln.pipeline.inspect.drawing import graph
from bitkiln.pipeline.inspect.result import Bound, Inspection, Row, gathered
from bitkiln.pipeline.inspect.wording import image, logical, milliseconds, operation, times
from bitkiln.pipeline.support.templating import render as render_template
from bitkiln.pipeline.support.text import count, size

#: How many layers the panel lists while nothing is pointed at: those that take most of the bound.
LARGEST = 8


def render(found: Inspection) -> str:
    """The page as text."""
    blocks = blocks_of(found)
    bound = found.bounds[0] if found.bounds else None
    return render_template(
        "inspect/templates/inspect.html",
        title=f"{found.name}: layers",
        found=found,
        inputs=", ".join(f"{spec.name} {times(spec.shape)} {spec.layout}".strip() for spec in found.inputs),
        tiles=list(_tiles(found)),
        remarks=[
            {"kind": kind, "names": names, "text": text}
            for kind in ("warning", "note")
            for text, names in gathered(found.rows, f"{kind}s")
        ],
        block_of={row.name: at for at, block in enumerate(blocks) for row in block.rows},
        graph=Markup(graph(blocks, bound.target if bound else None)),
        bound=bound,
        largest=_largest(found),
        blocks=[_block(at, block, bound) for at, block in enumerate(blocks)],
        lines=[_line(row, found) for row in found.rows],
    )


def _tiles(found: Inspection) -> Iterator[dict[str, Any]]:
    """Figures with a text, and the shares of binary and float where they are of both."""
    totals = found.totals
    macs = totals.binary_macs + totals.float_macs

    def tile(figure: str, text: str, binary: float = 0, floats: float = 0) -> dict[str, Any]:
        whole = binary + floats
        parts = [("binary", binary / whole), ("float", floats / whole)] if whole else []
        return {"figure": figure, "text": text, "parts": parts}

    yield tile(
        f"{totals.binary} of {totals.convolutions}",
        "convolutions and dense layers are binary",
        totals.binary,
        totals.convolutions - totals.binary,
    )
    yield tile(
        f"{count(macs)} MACs",
        f"{count(totals.binary_macs)} binary, {count(totals.float_macs)} float",
        totals.binary_macs,
        totals.float_macs,
    )
    yield tile(
        size(totals.packed_bytes),
        f"of packed weights, {size(totals.weight_bytes)} as float32; and {size(totals.constant_bytes)} of thresholds "
        "and other constants",
    )
    if totals.activation_bytes is not None:
        yield tile(size(totals.activation_bytes), "for all activations at their peak")
    if found.bounds and macs:
        bound = found.bounds[0]
        yield tile(
            milliseconds(bound.ms),
            f"is the bound on {bound.target.name}, one core, not a measurement: {bound.binary_ms:.4g} binary, "
            f"{bound.float_ms:.4g} float",
            bound.binary_ms,
            bound.float_ms,
        )


def _largest(found: Inspection) -> list[dict[str, Any]]:
    """The layers that take most of the bound."""
    if not found.bounds or not found.bounds[0].ms:
        return []
    costs: list[dict[str, Any]] = [
        {"name": row.name, "ms": found.bound_ms(row), "share": found.share(row)} for row in found.rows if row.macs
    ]
    return sorted(costs, key=lambda cost: -(cost["ms"] or 0.0))[:LARGEST]


def _block(at: int, block: Block, bound: Bound | None) -> dict[str, Any]:
    """What the panel says of a block."""
    said = [
        (kind, row.name, text)
        for kind in ("warning", "note")
        for row in block.rows
        for text in getattr(row, f"{kind}s")
    ]
    facts = _facts(block.main, bound) if block.main is not None else ()
    return {
        "at": at,
        "name": block.name,
        "main": block.main,
        "rows": block.rows,
        "facts": [(name, text) for name, text in facts if text],
        "said": said,
        "operations": [(row.name, operation(row), image(logical(row.shape, row.bits))) for row in block.rows],
    }


def _facts(row: Row, bound: Bound | None) -> Iterator[tuple[str, str]]:
    """What there is to say of a layer; without a text where it does not apply."""
    yield "operation", operation(row)
    yield "reads", _tensor(row.input_shape, row.input_bits)
    yield "result", _tensor(row.shape, row.bits) + (", written as bits" if row.result == "bits" else "")
    yield "padding", f"{', '.join(map(str, row.padding))} (top, left, bottom, right)" if any(row.padding) else ""
    yield "padded with", "" if row.pad_value is None else f"{row.pad_value:+d}" if row.pad_value else "a true zero"
    yield "dilation", times(row.dilation) if row.dilation and max(row.dilation) > 1 else ""
    yield "sign(0)", "" if row.sign_zero is None else f"{row.sign_zero:+d}" if row.sign_zero else "0"
    yield "MACs", f"{row.macs:,}" if row.macs else ""
    yield "weights", f"{size(row.weight_bytes)} as float32, {size(row.packed_bytes)} packed" if row.weight_bytes else ""
    yield "constants", f"{size(row.constant_bytes)} of thresholds, biases and the like" if row.constant_bytes else ""
    if bound is not None and row.macs and bound.ms:
        ms = row.roof_ms(bound.target)
        yield "bound", f"{milliseconds(ms)} on {bound.target.name}, {ms / bound.ms:.1%} of the network's"


def _line(row: Row, found: Inspection) -> dict[str, Any]:
    """A row of the table."""
    shapes = dict.fromkeys([_tensor(row.input_shape, row.input_bits), _tensor(row.shape, row.bits)])
    return {
        "row": row,
        "minor": row.binary is None and not row.warnings,
        "operation": operation(row),
        "shape": " → ".join(filter(None, shapes)),
        "ms": found.bound_ms(row),
        "share": found.share(row),
    }


def _tensor(shape: Sequence[int], bits: int) -> str:
    return times(logical(shape, bits)) + (" bits" if bits else "")
