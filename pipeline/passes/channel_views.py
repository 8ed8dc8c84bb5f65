"""Let convolutions read channels where they lie: what picks and joins channels before one becomes the order of its weights.

Shuffled, split and joined channels are followed back to the tensors that were computed. A convolution sums over its channels in
any order, so it reads pieces of those tensors side by side, each a run of neighbours, and has its weights in that order. A
depthwise one and elementwise steps have their results in that order, which the next convolution follows back in turn. What
nobody else needs is then never shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of, value_of
from bitkiln.pipeline.ir.operands import is_image, is_whole_image
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.schedules.qconv2d import planned
from bitkiln.schedules.workload import QConv2d

#: More pieces would be copied in bits too small.
_MOST_PIECES = 16
#: Steps that treat every channel for itself.
_STEPS = frozenset(
    {"add", "multiply", "clip", "nn.relu", "nn.relu6", "nn.leakyrelu", "nn.silu", "sigmoid", "bitkiln.hardswish"}
)


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
    return rewrite(module, _Views().visit)


class _Views:
    """The views of a network's images so far."""

    def __init__(self) -> None:
        self.views: dict[str, _View] = {}
        #: Pieces side by side that were emitted, by what they are.
        self._joined: dict[tuple[object, ...], relax.Expr] = {}

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        view = _viewed(value, self.views)
        if view is not None:
            self.views[name] = view
            return None
        own = self.views.get(getattr(value.args[0], "name", "")) if getattr(value, "args", ()) else None
        if own is None or not own.shuffled:
            return None
        if op_name(value) == "nn.conv2d":
            return self._convolution(graph, name, value, own)
        if op_name(value) == "bitkiln.qconv2d":
            return self._whole_convolution(graph, name, value, own)
        return self._elementwise(graph, name, value, own)

    def _convolution(self, graph: Graph, name: str, conv: Call, view: _View) -> Call | None:
        """``conv`` on the pieces that its input is made of, with its weights in their order."""
        weight, groups = array_of(conv.args[1]), int(conv.attrs["groups"])
        if weight is None or str(conv.attrs["data_layout"]) != "NHWC" or groups not in (1, len(weight)):
            return None
        found = self._gathered(graph, name, view, groups)
        if found is None:
            return None
        x, order = found
        if groups == 1:
            return Call(conv.op, [x, constant(np.ascontiguousarray(weight[..., order]))], conv.attrs)
        result = Call(conv.op, [x, constant(np.ascontiguousarray(weight[order]))], conv.attrs)
        return self._in_order(graph, name, result, np.argsort(order))

    def _whole_convolution(self, graph: Graph, name: str, conv: Call, view: _View) -> Call | None:
        """The same of whole numbers, whose segments are planned anew."""
        work = workload_of(conv, QConv2d)
        weight, bias, factor = map(value_of, conv.args[1:])
        found = self._gathered(graph, name, view, work.groups) if work.groups in (1, len(weight)) else None
        if found is None:
            return None
        x, order = found
        if work.groups == 1:
            weight = np.ascontiguousarray(weight[..., order])
            return ops.call_of(planned(work, weight), (x, constant(weight, "int16"), *conv.args[2:]))
        ordered = (constant(weight[order], "int16"), constant(bias[order], "int32"), constant(factor[order]))
        return self._in_order(graph, name, ops.call_of(work, (x, *ordered)), np.argsort(order))

    def _gathered(self, graph: Graph, name: str, view: _View, groups: int) -> tuple[relax.Expr, np.ndarray] | None:
        """The pieces of an image side by side, and which of its channels each of theirs is; None where they are many."""
        order = np.lexsort((view.channel, view.source))
        pieces = _runs(view.source[order], view.channel[order])
        if len(pieces) > _MOST_PIECES or (groups > 1 and len(order) != groups):
            return None
        return self._side_by_side(graph, name, view, pieces), order

    def _side_by_side(self, graph: Graph, name: str, view: _View, pieces: list[tuple[int, int, int]]) -> relax.Expr:
        parts = [view.sources[source] for source, _, _ in pieces]
        begins, channels = (tuple(piece[i] for piece in pieces) for i in (1, 2))
        if len(parts) == 1 and channels == (shape_of(parts[0])[3],):
            return parts[0]
        key = (*(part.name for part in parts), begins, channels)
        if key not in self._joined:
            joined = ops.concat(parts, parts=channels, begins=begins)
            self._joined[key] = graph.emit(joined, f"{name}.channels")
        return self._joined[key]

    def _elementwise(self, graph: Graph, name: str, call: Call, view: _View) -> Call | None:
        """A step on all channels of one tensor, with its constants in the order of that tensor's channels."""
        size = len(view.channel)
        whole = len(view.sources) == 1 and np.array_equal(
            np.sort(view.channel), np.arange(shape_of(view.sources[0])[3])
        )
        if op_name(call) not in _STEPS or not whole:
            return None
        order, operands = np.argsort(view.channel), []
        for operand in call.args[1:]:
            if isinstance(operand, relax.Var):
                return None
            array = array_of(operand)
            if array is None or array.size == 1:
                operands.append(operand)
            elif array.shape[-1] == array.size == size:
                operands.append(constant(np.ascontiguousarray(array[..., order])))
            else:
                return None
        result = Call(call.op, [view.sources[0], *operands], call.attrs)
        return self._in_order(graph, name, result, view.channel)

    def _in_order(self, graph: Graph, name: str, result: Call, channel: np.ndarray) -> Call:
        """``result`` under a name of its own, and its channels as the network means them."""
        var = graph.emit(result, f"{name}.unordered")
        self.views[name] = _View((var,), np.zeros(len(channel), int), channel, True)
        return relax.op.take(var, relax.const(channel.astype("int64")), 3)


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
    if not isinstance(x, relax.Var) or not (is_image(x) or is_whole_image(x)):
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
    fields = [view for field in call.args[0].fields if (view := _of(field, views)) is not None]
    if len(fields) != len(call.args[0].fields) or int(call.attrs["axis"]) % 4 != 3:
        return None
    sources = tuple({var.name: var for view in fields for var in view.sources}.values())
    names = [var.name for var in sources]
    own = [np.array([names.index(var.name) for var in view.sources])[view.source] for view in fields]
    channel = np.concatenate([view.channel for view in fields])
    return _View(sources, np.concatenate(own), channel, any(view.shuffled for view in fields))


def _runs(source: np.ndarray, channel: np.ndarray) -> list[tuple[int, int, int]]:
    """Neighbouring channels of one tensor as (tensor, first channel, count)."""
    ends = np.flatnonzero((np.diff(source) != 0) | (np.diff(channel) != 1)) + 1
    return [(int(source[part[0]]), int(channel[part[0]]), len(part)) for part in np.split(np.arange(len(source)), ends)]
