"""The inspection of a network on a terminal, as wide as it is; written to a file or pipe, each layer is one line of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitkiln.pipeline.inspect.result import Inspection, Row, gathered
from bitkiln.pipeline.inspect.wording import listed, logical, milliseconds, operation
from bitkiln.pipeline.support.text import printable, size
from bitkiln.targets import Target

#: Columns that a reason needs beside its row; with fewer it goes below.
BESIDE = 44
#: Columns of a terminal from which on rows show the shape of what they read too.
ROOMY = 110
INDENT = 4


def print_table(rows: Sequence[Row], console: Console, target: Target | None = None, convs: bool = False) -> None:
    """Print the rows, each with the reason for what it is and its part of the bound on ``target``.

    With ``convs`` only what multiplies, and what there is a warning about. Where nothing is binary nor half of it, one line in
    place of a reason for each.
    """
    if not rows:
        console.print("no layers: the result is the input or known beforehand")
        return
    whole = sum(row.roof_ms(target) for row in rows) if target else 0.0
    asked = [row for row in rows if row.binary is not None]
    if len(asked) > 1 and not any(row.binary or row.suspicious for row in asked):
        rows = [replace(row, reason="") for row in rows]
    rows = [row for row in rows if row.binary is not None or row.warnings] if convs else rows
    lines = _lines(rows, console, target, whole)
    head, *body = lines
    width = max(line.cell_len for line in lines) + 2
    beside = not console.is_terminal or console.width - width >= BESIDE
    _print(console, _beside(head, Text("binary", "bold"), width) if beside else head)
    for row, line in zip(rows, body, strict=True):
        for text in _with_reason(line, row, width, console):
            _print(console, text)
    if asked and not any(row.reason for row in rows if row.binary is not None):
        _wrapped(console, Text(f"none is binary: {_usual_reason(asked)}"), INDENT)


def _usual_reason(rows: Sequence[Row]) -> str:
    """The commonest reason of ``rows``, without what is particular to a layer."""
    kinds = Counter(row.reason.partition(":")[0] for row in rows)
    reason, count = kinds.most_common(1)[0]
    return f"{reason} in {count} of {len(rows)} (--json says why of each)"


def print_summary(found: Inspection, console: Console) -> None:
    """Print totals, bounds, and what the user should know."""
    totals = found.totals
    lines = [
        f"{totals.binary} of {totals.convolutions} convolutions and dense layers are binary: "
        f"{totals.binary_macs / 1e6:.1f} M binary and {totals.float_macs / 1e6:.1f} M float MACs",
        f"weights: {size(totals.weight_bytes)} as float32, {size(totals.packed_bytes)} packed, and "
        f"{size(totals.constant_bytes)} of thresholds and other constants",
    ]
    whole = sum(row.result == "int8" for row in found.rows)
    if whole:
        lines.insert(1, f"{whole} of them run in 8 bits on {found.bounds[0].target.name}")
    if totals.activation_bytes is not None:
        lines[-1] += f"; activations: {size(totals.activation_bytes)}"
    for line in lines:
        _wrapped(console, Text(line), 0)
    _print_bounds(found, console)
    for kind, style in (("problem", "bold red"), ("warning", "yellow"), ("note", "cyan")):
        for text in _remarks(found, kind):
            _wrapped(console, Text.assemble((f"{kind}: ", style), printable(text)), INDENT)


def _print_bounds(found: Inspection, console: Console) -> None:
    if not found.bounds or not any(row.macs for row in found.rows):
        return
    _wrapped(console, Text("bound on one core, from peak rates and memory bandwidth; not a measurement:"), 0)
    for bound in found.bounds:
        parts = f"{milliseconds(bound.ms):>12}, of it {bound.binary_ms:.4g} binary and {bound.float_ms:.4g} float"
        _wrapped(console, Text(f"  {bound.target.name:<16}{parts}  ({bound.target.description})"), 2 * INDENT)
    target = found.bounds[0].target
    slowest = max(found.rows, key=lambda row: row.roof_ms(target))
    share = slowest.roof_ms(target) / found.bounds[0].ms
    kind = "binary" if slowest.binary else "float"
    line = f"  largest share: {printable(slowest.name)} ({kind}), {share:.0%} of the bound for {target.name}"
    _wrapped(console, Text(line), INDENT)


def _remarks(found: Inspection, kind: str) -> Iterator[str]:
    if kind == "problem":
        yield from (f"cannot be compiled: {text}" for text in found.problems)
        return
    for text, names in gathered(found.rows, f"{kind}s"):
        yield f"{listed(names)}: {text}"


def shapes(row: Row, whole: bool = True) -> str:
    """The shape of a row's result, behind that of what it reads where they differ and ``whole`` is wanted."""
    read, result = _shape(row.input_shape, row.input_bits), _shape(row.shape, row.bits)
    return f"{read} -> {result}" if whole and row.input_shape and read != result else result


def _shape(shape: Sequence[int], bits: int) -> str:
    """A shape as text; ``bits`` are the channels of a packed one."""
    sizes = "x".join("?" if extent < 0 else str(extent) for extent in logical(shape, bits)) or "scalar"
    return f"{sizes} bits" if bits else sizes


def answer(row: Row) -> str:
    """Whether a convolution is binary, and why."""
    if row.binary is None:
        return ""
    word = "yes" if row.binary else "NO" if row.suspicious else "no"
    return f"{word}: {row.reason}" if row.reason else word


def _lines(rows: Sequence[Row], console: Console, target: Target | None, whole: float) -> list[Text]:
    """The table without its reasons: a line for its head and one for each row."""
    roomy = not console.is_terminal or console.width >= ROOMY
    limit = max(12, console.width // 4) if console.is_terminal else 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("layer", "kind", "shape"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("MMACs", "weights", "packed", *(("bound ms", "share") if target and roomy else ())):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for row in rows:
        weights = (size(row.weight_bytes), size(row.packed_bytes)) if row.weight_bytes else ("", "")
        macs = f"{row.macs / 1e6:.2f}" if row.macs else ""
        style = "bold" if row.binary is not None else "dim"
        bound = (
            (f"{row.roof_ms(target):.3f}", f"{row.roof_ms(target) / (whole or 1):.0%}")
            if target and row.macs
            else ("", "")
        )
        cells = (operation(row), shapes(row, roomy), macs, *weights, *(bound if target and roomy else ()))
        table.add_row(Text(printable(row.name, limit), style), *map(Text, cells))
    width = console.width if console.is_terminal else 1 << 16
    rendered = console.render_lines(table, console.options.update(width=width), pad=False)
    return [_stripped(Text.assemble(*((part.text, part.style or "") for part in line))) for line in rendered]


def _stripped(text: Text) -> Text:
    text.rstrip()
    return text


def _with_reason(line: Text, row: Row, width: int, console: Console) -> Iterator[Text]:
    """The row's line with the reason beside it, folded on a terminal; below it where there is no room."""
    if row.binary is None:
        yield line
        return
    style = "green" if row.binary else "yellow" if row.suspicious else ""
    reason = Text(printable(answer(row)), style)
    if not console.is_terminal:
        yield _beside(line, reason, width)
        return
    room = console.width - width
    if room >= BESIDE:
        first, *more = reason.wrap(console, room)
        yield _beside(line, first, width)
        yield from (_beside(Text(), part, width) for part in more)
        return
    yield line
    yield from (_beside(Text(), part, INDENT) for part in reason.wrap(console, max(console.width - INDENT, 20)))


def _beside(line: Text, text: Text, width: int) -> Text:
    """``text`` behind ``line``, from column ``width`` on."""
    return Text.assemble(line, " " * (width - line.cell_len), _stripped(text))


def _wrapped(console: Console, text: Text, indent: int) -> None:
    """Print ``text``; on a terminal folded, what follows the first line indented."""
    if not console.is_terminal:
        _print(console, text)
        return
    first, *_ = text.wrap(console, console.width)
    _print(console, _stripped(first))
    rest = text[len(first.plain) :]
    rest.plain = rest.plain.lstrip()
    if rest.plain:
        for part in rest.wrap(console, max(console.width - indent, 20)):
            _print(console, _beside(Text(), part, indent))


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True, highlight=False)
