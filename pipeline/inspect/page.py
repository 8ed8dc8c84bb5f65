"""The inspection of a network as a self-contained HTML page: totals, warnings, its graph with a panel of details, its layers.

Layers are shown in blocks (``blocks``). All of their details stand in the page as HTML; the script only shows those of the
block that is pointed at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitkiln.pipeline.inspect.blocks import Block, blocks_of
from bitkiln.pipeline.inspect.drawing import graph
from bitkiln.pipeline.inspect.result import Bound, Inspection, Row, gathered
from bitkiln.pipeline.inspect.style import SCRIPT, STYLE
from bitkiln.pipeline.inspect.wording import image, logical, milliseconds, operation, times
from bitkiln.pipeline.support.page import BINARY, FLOAT, OTHER, page, shown
from bitkiln.pipeline.support.text import count, size
from bitkiln.targets import Target


def render(found: Inspection) -> str:
    """The page as text."""
    blocks = blocks_of(found)
    of_row = {row.name: at for at, block in enumerate(blocks) for row in block.rows}
    inputs = ", ".join(f"{spec.name} {times(spec.shape)} {spec.layout}".strip() for spec in found.inputs)
    body = f"""<h1>{shown(found.name)}</h1>
<p class="note">Input {shown(inputs)}. Operations: {len(found.rows)}, in blocks of a convolution or dense layer with what
leads to it and what follows it.</p>
{_tiles(found)}
{_said(found, of_row)}
<h2>The network</h2>
<p class="key"><span><i style="background:{BINARY}"></i>binary</span><span><i style="background:{FLOAT}"></i>float</span>
<span><i style="background:{OTHER}"></i>other</span><span><i class="l"></i>floats</span>
<span><i class="l d"></i>bits</span><span><i class="l c"></i>share of the bound</span>
<span class="note">Point at a block or click it for its details.</span></p>
<div class="view"><div class="graph">{graph(blocks, found.bounds[0].target if found.bounds else None)}</div>
<div class="panel idle"><button aria-label="close">✕</button>{_overview(found)}{_details(blocks, found)}</div></div>
<h2>Layers</h2>
<p><label><input type="checkbox" id="every"> show every operation, not only convolutions and dense layers</label></p>
{_table(found, of_row)}
<h2>Bounds</h2>
<p class="note">The least time of a frame on one core, if MACs ran at the peak rate and weights were read from memory
once, whichever takes longer in each layer. Not a measurement. MACs are those of direct convolutions: Winograd's
method needs fewer.</p>
{_bounds(found.bounds)}"""
    return page(f"{found.name}: layers", body, STYLE, SCRIPT)


def _tiles(found: Inspection) -> str:
    totals = found.totals
    macs = totals.binary_macs + totals.float_macs
    tiles = [
        _tile(
            f"{totals.binary} of {totals.convolutions}",
            "convolutions and dense layers are binary",
            _bar(totals.binary, totals.convolutions - totals.binary),
        ),
        _tile(
            f"{count(macs)} MACs",
            f"{count(totals.binary_macs)} binary, {count(totals.float_macs)} float",
            _bar(totals.binary_macs, totals.float_macs),
        ),
        _tile(
            size(totals.packed_bytes),
            f"of packed weights, {size(totals.weight_bytes)} as float32; and {size(totals.constant_bytes)} of thresholds "
            "and other constants",
        ),
    ]
    if totals.activation_bytes is not None:
        tiles.append(_tile(size(totals.activation_bytes), "for all activations at their peak"))
    if found.bounds and macs:
        bound = found.bounds[0]
        tiles.append(
            _tile(
                milliseconds(bound.ms),
                f"is the bound on {bound.target.name}, one core, not a measurement: {bound.binary_ms:.4g} binary, "
                f"{bound.float_ms:.4g} float",
                _bar(bound.binary_ms, bound.float_ms),
            )
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(figure: str, text: str, bar: str = "") -> str:
    return f'<div class="tile"><b>{shown(figure)}</b>{bar}<span>{shown(text)}</span></div>'


def _bar(binary: float, floats: float) -> str:
    whole = binary + floats
    if not whole:
        return ""
    parts = ((BINARY, binary), (FLOAT, floats))
    return f'<div class="bar">{"".join(_segment(colour, part / whole) for colour, part in parts)}</div>'


def _segment(colour: str, share: float) -> str:
    return f'<i style="width:{100 * share:.2f}%;background:{colour}"></i>'


def _said(found: Inspection, of_row: dict[str, int]) -> str:
    items = [f'<li class="problem"><b>Cannot be compiled:</b> {shown(text)}</li>' for text in found.problems]
    for kind in ("warning", "note"):
        for text, names in gathered(found.rows, f"{kind}s"):
            links = ", ".join(
                f'<a data-go="{of_row[name]}" href="#b{of_row[name]}">{shown(name, 60)}</a>' for name in names[:12]
            )
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            items.append(f'<li class="{kind}-">{links}{more}: {shown(text)}</li>')
    return f'<ul class="said">{"".join(items)}</ul>' if items else ""


def _overview(found: Inspection) -> str:
    """What the panel shows while nothing is pointed at: the layers that take most of the bound."""
    if not found.bounds or not found.bounds[0].ms:
        return '<section id="d"><p class="note">Point at a block for its details.</p></section>'
    bound = found.bounds[0]
    largest = sorted(found.rows, key=lambda row: -row.roof_ms(bound.target))[:8]
    rows = "".join(
        f'<tr><td class="t">{shown(row.name, 40)}</td><td>{milliseconds(row.roof_ms(bound.target))}</td>'
        f"<td>{row.roof_ms(bound.target) / bound.ms:.0%}</td></tr>"
        for row in largest
        if row.macs
    )
    return (
        f'<section id="d"><h3>Most of the bound on {shown(bound.target.name)}</h3><table class="top">{rows}</table>'
        '<p class="note">Point at a block for its details.</p></section>'
    )


def _details(blocks: Sequence[Block], found: Inspection) -> str:
    bound = found.bounds[0] if found.bounds else None
    return "".join(
        f'<section id="d{at}" hidden>{_detail(block, block.main, bound)}</section>'
        for at, block in enumerate(blocks)
        if block.main is not None
    )


def _detail(block: Block, main: Row, bound: Bound | None) -> str:
    facts = "".join(
        f'<tr><th class="t">{name}</th><td class="t">{shown(text)}</td></tr>'
        for name, text in _facts(main, bound)
        if text
    )
    said = "".join(
        f'<li class="{kind}-"><b>{shown(row.name, 60)}</b>: {shown(text)}</li>'
        for kind in ("warning", "note")
        for row in block.rows
        for text in getattr(row, f"{kind}s")
    )
    operations = "".join(
        f'<tr><td class="t">{shown(row.name, 60)}</td><td class="t">{shown(operation(row))}</td>'
        f"<td>{image(logical(row.shape, row.bits))}</td></tr>"
        for row in block.rows
    )
    inside = (
        f'<h3 style="margin-top:1rem">Its operations</h3><table class="ops">{operations}</table>'
        if len(block.rows) > 1
        else ""
    )
    verdict = f"<p>{_verdict(main)}</p>" if main.binary is not None else ""
    return f"<h3>{shown(block.name)}</h3>{verdict}<table>{facts}</table>{_list(said)}{inside}"


def _list(items: str) -> str:
    return f'<ul class="said">{items}</ul>' if items else ""


def _facts(row: Row, bound: Bound | None) -> Iterable[tuple[str, str]]:
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


def _table(found: Inspection, of_row: dict[str, int]) -> str:
    target = found.bounds[0].target if found.bounds else None
    rows = "\n".join(_line(row, of_row[row.name], target) for row in found.rows)
    heads = "".join(f"<th>{name}</th>" for name in ("MACs", "weights", "packed", "bound ms"))
    return (
        '<div class="scroll"><table class="lay"><tr><th class="t">layer</th><th class="t">operation</th>'
        f'<th class="t">shape</th>{heads}<th class="t">binary</th></tr>\n{rows}\n</table></div>'
    )


def _line(row: Row, block: int, target: Target | None) -> str:
    weights = (size(row.weight_bytes), size(row.packed_bytes)) if row.weight_bytes else ("", "")
    ms = f"{row.roof_ms(target):.4g}" if target is not None and row.macs else ""
    cells = "".join(f"<td>{cell}</td>" for cell in (f"{row.macs:,}" if row.macs else "", *weights, ms))
    shapes = dict.fromkeys([_tensor(row.input_shape, row.input_bits), _tensor(row.shape, row.bits)])
    shape = " → ".join(filter(None, shapes))
    minor = "" if row.binary is not None or row.warnings else ' class="minor"'
    return (
        f'<tr{minor} data-b="{block}"><td class="t"><a data-go="{block}" href="#b{block}">{shown(row.name, 60)}</a></td>'
        f'<td class="t">{shown(operation(row))}</td><td class="t">{shape}</td>{cells}'
        f'<td class="why">{_verdict(row)}</td></tr>'
    )


def _verdict(row: Row) -> str:
    if row.binary is None:
        return ""
    kind, word = ("yes", "binary") if row.binary else ("no", "float")
    return f'<span class="tag {kind}">{word}</span> {_reason(row.reason)}'


def _bounds(bounds: Sequence[Bound]) -> str:
    rows = "".join(
        f'<tr><td class="t">{shown(bound.target.name)}</td><td class="t">{shown(bound.target.description)}</td>'
        f"<td>{bound.binary_ms:.4g}</td><td>{bound.float_ms:.4g}</td><td><b>{bound.ms:.4g}</b></td></tr>"
        for bound in bounds
    )
    return (
        '<div class="scroll"><table class="lay all"><tr><th class="t">target</th><th class="t">what it is</th>'
        f"<th>binary ms</th><th>float ms</th><th>bound ms</th></tr>{rows}</table></div>"
    )


def _tensor(shape: Sequence[int], bits: int) -> str:
    return times(logical(shape, bits)) + (" bits" if bits else "")


def _reason(text: str) -> str:
    return shown(text.replace("+-", "±"))
