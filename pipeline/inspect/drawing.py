"""A network's graph as HTML: its blocks where ``layered`` places them, over one SVG with the edges."""

from __future__ import annotations

from collections.abc import Sequence

from bitkiln.pipeline.inspect.blocks import Block
from bitkiln.pipeline.inspect.layered import Drawing, Point, draw
from bitkiln.pipeline.inspect.result import Row
from bitkiln.pipeline.inspect.wording import image, logical, operation
from bitkiln.pipeline.support.page import shown
from bitkiln.pipeline.support.text import count
from bitkiln.targets import Target

#: Pixels: a convolution's block, another one's, an input's or output's.
CONVOLUTION, OTHERS, ENDS = (256.0, 70.0), (184.0, 46.0), (132.0, 28.0)
#: Empty border of the drawing.
MARGIN = 14.0
#: Characters of a name where it is drawn.
NAME = 30
#: More operations of a block than that are counted, not named, where it is drawn.
NAMED = 7


def graph(blocks: Sequence[Block], target: Target | None) -> str:
    """The blocks and their edges as HTML; a bar shows each block's share of the bound on ``target``."""
    sizes = [_size(block) for block in blocks]
    edges = [(source, at) for at, block in enumerate(blocks) for source in block.inputs]
    drawing = draw(sizes, edges)
    costs = [sum(row.roof_ms(target) for row in block.rows) if target else 0.0 for block in blocks]
    most = max(costs, default=0.0) or 1.0
    nodes = "".join(_node(at, block, sizes[at], drawing, costs[at] / most) for at, block in enumerate(blocks))
    width, height = drawing.width + 2 * MARGIN, drawing.height + 2 * MARGIN
    paths = "".join(_edge(edge, blocks, path) for edge, path in zip(edges, drawing.paths, strict=True))
    return (
        f'<div class="sized" style="width:{width:.0f}px;height:{height:.0f}px">'
        f'<div class="draw" style="width:{width:.0f}px;height:{height:.0f}px">'
        f'<svg width="{width:.0f}" height="{height:.0f}" aria-hidden="true">{paths}</svg>{nodes}</div></div>'
    )


def _size(block: Block) -> tuple[float, float]:
    if block.main is None:
        return ENDS
    return OTHERS if block.main.binary is None else CONVOLUTION


def _node(at: int, block: Block, extent: tuple[float, float], drawing: Drawing, cost: float) -> str:
    left, top = drawing.tops[at]
    place = (
        f'style="left:{left + MARGIN:.1f}px;top:{top + MARGIN:.1f}px;width:{extent[0]:.0f}px;height:{extent[1]:.0f}px"'
    )
    name, whole = shown(block.name, NAME), shown(block.name, 200)
    main = block.main
    if main is None:
        return f'<div class="node end" title="{whole}" {place}><span>{name}</span></div>'
    kind = "" if main.binary is None else " yes" if main.binary else " no"
    lines = ['<i class="flag" title="has a warning">▲</i>'] if any(row.warnings for row in block.rows) else []
    lines.append(f"<b>{name}</b>")
    if main.binary is not None:
        lines.append(f"<span>{shown(_work(main))}</span>")
    if main.binary is not None or len(block.rows) > 1:
        lines.append(f"<span>{shown(_steps(block))}</span>")
    else:
        lines.append(f"<span>{shown(operation(main))} · {image(logical(main.shape, main.bits))}</span>")
    if cost >= 0.005:
        lines.append(f'<i class="cost" style="width:{100 * cost:.1f}%"></i>')
    return f'<button class="node{kind}" id="b{at}" data-b="{at}" title="{whole}" {place}>{"".join(lines)}</button>'


def _work(row: Row) -> str:
    """What a convolution does, on one line of its block."""
    kernel = "dense" if not row.kernel else "×".join(map(str, row.kernel))
    strides = f" /{max(row.strides)}" if row.strides and max(row.strides) > 1 else ""
    groups = f" g{row.groups}" if row.groups > 1 else ""
    return f"{kernel}{strides}{groups} → {image(logical(row.shape, row.bits))} · {count(row.macs)} MACs"


#: Names of operations where they are drawn.
_SHORT = {
    "add": "+",
    "multiply": "×",
    "subtract": "−",
    "divide": "÷",
    "max_pool2d": "max pool",
    "avg_pool2d": "avg pool",
}
_SHORT |= {"bconv2d": "conv", "conv2d": "conv", "matmul": "dense"}


def _steps(block: Block) -> str:
    """The operations of a block, in order; those that only spell out signs are left out."""
    kinds = [_SHORT.get(row.kind, row.kind) for row in block.rows if not row.absorbed or row.kind in ("sign", "pad")]
    left = len(kinds) - NAMED
    return " · ".join(kinds[:NAMED]) + (f" and {left} more" if left > 0 else "")


def _edge(edge: tuple[int, int], blocks: Sequence[Block], path: Sequence[Point]) -> str:
    """Straight down the lanes, curved between them."""
    (x, y), *rest = [(a + MARGIN, b + MARGIN) for a, b in path]
    parts = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in rest:
        middle = (y + to_y) / 2
        parts.append(
            f"L{to_x:.1f} {to_y:.1f}"
            if to_x == x
            else f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
        )
        x, y = to_x, to_y
    bits = ' class="bits"' if _is_bits(*(blocks[at] for at in edge)) else ""
    return f'<path{bits} data-e="{edge[0]} {edge[1]}" d="{"".join(parts)}"/>'


def _is_bits(source: Block, reader: Block) -> bool:
    """Are it bits that one block gives the other?"""
    if source.main is None or reader.main is None:
        return False
    # What follows a block may have been drawn into its convolution, so that only a binary one tells that it reads bits.
    return source.rows[-1].bits > 0 or (source.main.result == "bits" and bool(reader.main.binary))
