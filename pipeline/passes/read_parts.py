"""Let convolutions read the parts of a concatenation where they are, so that nothing is copied side by side.

A convolution takes several images as its input, or some channels of one. Pooling and resizing treat every channel for itself:
of a concatenation they become one of each part. A concatenation that anybody else reads, or that is a result of the network,
is made as before, of slices from where they come. So is one with an epilogue, which is a pass over memory in any case, unless
a maximum follows that may come first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call
from tvm.relax import TupleGetItem

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import (
    Graph,
    array_of,
    bindings,
    constant,
    op_name,
    result_of,
    rewrite,
    shape_of,
    value_of,
    variables,
)
from bitkiln.pipeline.ir.operands import is_image
from bitkiln.pipeline.ops.concat import images_of
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.pool2d import LANES
from bitkiln.schedules.steps import commutes_with_maximum
from bitkiln.schedules.workload import Concat, Conv2d, Pool2d, Resize

#: A pooling comes before a concatenation that stays where it leaves so much less to join.
_LESS = 2
#: Operators that treat every channel for itself.
_BY_CHANNEL = ("bitkiln.pool2d", "bitkiln.resize2d")


def read_parts(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with fewer concatenations."""
    return rewrite(module, _Reading(module["main"]).visit)


class _Reading:
    """Which concatenations of ``function`` nobody needs, and what is done instead."""

    def __init__(self, function: relax.Function) -> None:
        self.values = dict(bindings(function))
        self.readers: dict[str, list[str]] = defaultdict(list)
        for name, value in self.values.items():
            for variable in dict.fromkeys(each.name for each in variables(value)):
                self.readers[variable].append(name)
        #: What is not in the memory of activations, where parts must be: inputs and results, under any shape.
        self.outside = {param.name for param in function.params}
        pending = [variable.name for variable in variables(result_of(function))]
        while pending:
            name = pending.pop()
            self.outside.add(name)
            if name in self.values and not _is_ours(self.values[name]):
                pending += [variable.name for variable in variables(self.values[name])]
        #: Concatenations that nobody needs, and results of pooling and resizing that nobody needs side by side.
        self.gone: set[str] = set()
        for name, value in self.values.items():
            host = _pieces(value, lambda part: self.values.get(part.name))
            if host is not None and self._readable(name, host):
                self.gone.add(name)

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        if op_name(value) == "bitkiln.concat":
            return _pieces(value, graph.definition)
        x = value.args[0] if isinstance(value, Call) and value.args else None
        if not isinstance(x, relax.Var) or x.name not in self.gone:
            return None
        host = _pieces(graph.definition(x), graph.definition)
        assert host is not None
        whole = workload_of(host, Concat)
        if op_name(value) == "bitkiln.conv2d":
            first, *others = images_of(host)
            return ops.call_of(_with_parts(workload_of(value, Conv2d), whole), [first, *value.args[1:], *others])
        work = workload_of(value)
        assert isinstance(work, Pool2d | Resize)
        at, found = 0, []
        for number, (part, channels) in enumerate(zip(images_of(host), whole.parts, strict=True)):
            alone = replace(work, channels=channels, epilogue=(*whole.epilogue, *work.epilogue))
            own = [constant(np.ascontiguousarray(each[..., at : at + channels])) for each in _arrays(host, value)]
            found.append(graph.emit(ops.call_of(alone, [part, *own]), f"{name}.part{number}"))
            at += channels
        return ops.concat(found, parts=whole.parts)

    def _readable(self, name: str, host: Call, pooled: bool = False) -> bool:
        """Whether all readers of ``name``, whose channels are those of ``host``, can do with its parts.

        ``pooled``: they are results of pooling or resizing, which applied the host's epilogue.
        """
        if workload_of(host, Concat).out != "float32" or name in self.outside:
            return False
        return all(self._reads(self.values[reader], reader, name, host, pooled) for reader in self.readers[name])

    def _reads(self, value: relax.Expr, reader: str, name: str, host: Call, pooled: bool) -> bool:
        if op_name(value) == "bitkiln.concat":
            # It takes slices from where they come.
            return op_name(self.values[name]) == "strided_slice"
        if [variable.name for variable in variables(value)].count(name) != 1 or not isinstance(value, Call):
            return False
        if not isinstance(value.args[0], relax.Var) or value.args[0].name != name:
            return False
        whole = workload_of(host, Concat)
        if op_name(value) == "bitkiln.conv2d":
            work = workload_of(value, Conv2d)
            ready = pooled or (not whole.epilogue and all(map(self._is_inside, images_of(host))))
            return ready and not work.parts and images.can_read(_with_parts(work, whole))
        if not _by_channel(value, host, pooled):
            return False
        if self._readable(reader, host, pooled=True):
            self.gone.add(reader)
            return True
        # Then what it leaves is joined.
        return math.prod(shape_of(value.args[0])) >= _LESS * math.prod(shape_of(value))

    def _is_inside(self, part: relax.Expr) -> bool:
        """Whether a part is in the memory of activations."""
        value = self.values.get(part.name) if isinstance(part, relax.Var) else None
        if value is None or part.name in self.outside:
            return False
        if isinstance(value, TupleGetItem):
            return self._is_inside(value.tuple_value)
        return _is_ours(value)


def _pieces(value: relax.Expr | None, definition: Callable[[relax.Var], relax.Expr | None]) -> Call | None:
    """A concatenation whose parts are channels of what was computed, where they are slices of that; a slice as one."""
    if (piece := _slice(value)) is not None:
        return ops.concat([piece[0]], parts=piece[2:], begins=piece[1:2])
    if not isinstance(value, Call) or op_name(value) != "bitkiln.concat":
        return None
    whole = workload_of(value, Concat)
    if whole.out != "float32":
        return value
    parts = images_of(value)
    sliced = [_slice(definition(part)) if isinstance(part, relax.Var) else None for part in parts]
    if not any(sliced):
        return value
    begins = whole.begins or (0,) * len(parts)
    begins = tuple(begin + (piece[1] if piece else 0) for begin, piece in zip(begins, sliced, strict=True))
    sources = [piece[0] if piece else part for part, piece in zip(parts, sliced, strict=True)]
    operands = value.args[len(parts) :]
    return ops.concat(sources, *operands, parts=whole.parts, begins=begins, epilogue=whole.epilogue)


def _slice(value: relax.Expr | None) -> tuple[relax.Expr, int, int] | None:
    """The image of which ``value`` takes neighbouring channels, the first of them, and how many; None of anything else."""
    if not isinstance(value, Call) or op_name(value) != "strided_slice":
        return None
    if not is_image(value.args[0]) or not isinstance(value.args[0], relax.Var):
        return None
    axes, begins, ends, *steps = ([int(getattr(item, "value", item)) for item in arg] for arg in value.args[1:])
    if [axis % 4 for axis in axes] != [3] or (steps and steps[0] != [1]):
        return None
    begin, end, _ = slice(begins[0], ends[0]).indices(shape_of(value.args[0])[3])
    return (value.args[0], begin, end - begin) if end > begin else None


def _by_channel(value: Call, host: Call, pooled: bool) -> bool:
    """Whether ``value`` can be done part by part, each of whole cache lines, as well as all at once."""
    operands = [*host.args[len(images_of(host)) :], *value.args[1:]]
    if op_name(value) not in _BY_CHANNEL or any(array_of(operand) is None for operand in operands):
        return False
    work, whole = workload_of(value), workload_of(host, Concat)
    steps = () if pooled else whole.epilogue
    if whole.begins or any(part % LANES for part in whole.parts):
        return False
    if not isinstance(work, Pool2d):
        return not steps
    if work.bits or work.signs or work.out != "float32" or (steps and work.pool.kind != "max"):
        return False
    arrays = iter(_arrays(host, value))
    return all(commutes_with_maximum(step, next(arrays) if step.operand else None) for step in steps)


def _arrays(host: Call, value: Call) -> list[np.ndarray]:
    """The operands of the epilogues of ``host`` and of ``value``, which follows it: all are constants."""
    return [value_of(operand) for operand in (*host.args[len(images_of(host)) :], *value.args[1:])]


def _is_ours(value: relax.Expr) -> bool:
    """Whether it is written by a kernel of ours; anything else may be another tensor under a new shape."""
    return op_name(value).startswith("bitkiln.")


def _with_parts(work: Conv2d, whole: Concat) -> Conv2d:
    return replace(work, parts=whole.parts, begins=whole.begins, widths=whole.widths)
