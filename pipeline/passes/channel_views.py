"""Let convolutions read channels where they lie: what picks and joins channels before one becomes the order of its weights.

Shuffled, split and joined channels are followed back to the tensors that were computed. A convolution sums over its channels in
any order, so it reads pieces of those tensors side by side, each a run of neighbours, and has its weights in that order. What
nobody else needs is then never shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import is_image

#: More pieces would be copied in bits too small.
_MOST_PIECES = 8


@dataclass(frozen=True)
class _View:
    """The channels of an image: of each the tensor, an index into ``sources``, and its channel there."""

    sources: tuple[relax.Var, ...]
    source: np.ndarray
    channel: np.ndarray
    #: Whether channels were shuffled on the way, so that a convolution gains by reading them elsewhere.
    shuffled: bool = False


def channel_views(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with fewer shuffles of channels."""
    views: dict[str, _View] = {}

    def visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        view = _viewed(value, views)
        if view is not None:
            views[name] = view
        return _convolution(graph, name, value, views) if op_name(value) == "nn.conv2d" else None

    return rewrite(module, visit)


def _viewed(value: relax.Expr, views: dict[str, _View]) -> _View | None:
    """What ``value`` picks or joins, if that is all it does."""
    match op_name(value):
        case "take":
            return _taken(value, views)
        case "strided_slice":
            return _sliced(value, views)
        case "concat":
            return _joined(value, views)
    return None


def _of(x: relax.Expr, views: dict[str, _View]) -> _View | None:
    if not isinstance(x, relax.Var) or not is_image(x):
        return None
    channels = shape_of(x)[3]
    return views.get(x.name) or _View((x,), np.zeros(channels, int), np.arange(channels))


def _taken(call: Call, views: dict[str, _View]) -> _View | None:
    view, indices = _of(call.args[0], views), array_of(call.args[1])
    if view is None or indices is None or indices.ndim != 1 or int(call.attrs["axis"]) % 4 != 3:
        return None
    return _View(view.sources, view.source[indices], view.channel[indices], True)


def _sliced(call: Call, views: dict[str, _View]) -> _View | None:
    view = _of(call.args[0], views)
    axes, begins, ends, *steps = ([int(getattr(item, "value", item)) for item in arg] for arg in call.args[1:])
    if view is None or [axis % 4 for axis in axes] != [3] or (steps and steps[0] != [1]):
        return None
    part = slice(begins[0], ends[0])
    return _View(view.sources, view.source[part], view.channel[part], view.shuffled)


def _joined(call: Call, views: dict[str, _View]) -> _View | None:
    if not isinstance(call.args[0], relax.Tuple) or call.attrs["axis"] is None:
        return None
    fields = [_of(field, views) for field in call.args[0].fields]
    if any(view is None for view in fields) or int(call.attrs["axis"]) % 4 != 3:
        return None
    sources = tuple({var.name: var for view in fields for var in view.sources}.values())
    names = [var.name for var in sources]
    own = [np.array([names.index(var.name) for var in view.sources])[view.source] for view in fields]
    channel = np.concatenate([view.channel for view in fields])
    return _View(sources, np.concatenate(own), channel, any(view.shuffled for view in fields))


def _convolution(graph: Graph, name: str, conv: Call, views: dict[str, _View]) -> Call | None:
    """``conv`` on the pieces that its input is made of, side by side, with its weights in their order."""
    view, weight = views.get(getattr(conv.args[0], "name", "")), array_of(conv.args[1])
    plain = weight is not None and int(conv.attrs["groups"]) == 1 and str(conv.attrs["data_layout"]) == "NHWC"
    if view is None or not view.shuffled or not plain:
        return None
    order = np.lexsort((view.channel, view.source))
    pieces = _runs(view.source[order], view.channel[order])
    if len(pieces) > _MOST_PIECES:
        return None
    joined = _piece(view, pieces[0]) if len(pieces) == 1 else None
    if joined is None:
        parts = [view.sources[source] for source, _, _ in pieces]
        joined = ops.concat(
            parts, channels=tuple(count for _, _, count in pieces), begins=tuple(begin for _, begin, _ in pieces)
        )
        joined = graph.emit(joined, f"{name}.channels")
    return Call(conv.op, [joined, constant(np.ascontiguousarray(weight[..., order]))], conv.attrs)


def _piece(view: _View, piece: tuple[int, int, int]) -> relax.Var | None:
    """The tensor that one piece is, where it is the whole of it."""
    source, begin, count = piece
    var = view.sources[source]
    return var if begin == 0 and shape_of(var)[3] == count else None


def _runs(source: np.ndarray, channel: np.ndarray) -> list[tuple[int, int, int]]:
    """Neighbouring channels of one tensor as (tensor, first channel, count)."""
    ends = np.flatnonzero((np.diff(source) != 0) | (np.diff(channel) != 1)) + 1
    return [(int(source[part[0]]), int(channel[part[0]]), len(part)) for part in np.split(np.arange(len(source)), ends)]
