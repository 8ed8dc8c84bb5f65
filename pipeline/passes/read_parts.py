"""Let convolutions read the parts of a concatenation where they are, so that nothing is copied side by side.

A convolution takes several images as its input. Pooling and resizing treat every channel for itself: of a concatenation they
become one of each part. A concatenation that anybody else reads, or that is a result of the network, is made as before, and
so is one with an epilogue, which is a pass over memory in any case.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, bindings, constant, op_name, result_of, rewrite, variables
from bitkiln.pipeline.ops.concat import images_of
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.schedules.conv2d import images
from bitkiln.schedules.pool2d import LANES
from bitkiln.schedules.workload import Concat, Conv2d, Pool2d, Resize

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
        self.gone = {
            name for name, value in self.values.items() if self._is_joined(value) and self._readable(name, value)
        }

    def visit(self, graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        host = graph.call_of(value.args[0], "bitkiln.concat") if isinstance(value, Call) and value.args else None
        if host is None or value.args[0].name not in self.gone:
            return None
        if op_name(value) == "bitkiln.conv2d":
            first, *others = images_of(host)
            return ops.call_of(_with_parts(workload_of(value, Conv2d), host), [first, *value.args[1:], *others])
        work, parts = workload_of(value), workload_of(host, Concat).parts
        assert isinstance(work, Pool2d | Resize)
        at, found = 0, []
        for number, (part, channels) in enumerate(zip(images_of(host), parts, strict=True)):
            own = [_of_channels(operand, at, at + channels) for operand in value.args[1:]]
            call = ops.call_of(replace(work, channels=channels), [part, *own])
            found.append(graph.emit(call, f"{name}.part{number}"))
            at += channels
        self.gone.add(name)
        return ops.concat(found, parts=parts)

    @staticmethod
    def _is_joined(value: relax.Expr) -> bool:
        if op_name(value) != "bitkiln.concat":
            return False
        work = workload_of(value, Concat)
        return not work.bits and not work.epilogue

    def _readable(self, name: str, host: Call) -> bool:
        """Whether all readers of ``name``, whose channels are those of ``host``, can do with its parts."""
        if name in self.outside or not all(map(self._is_inside, images_of(host))):
            return False
        return all(self._reads(self.values[reader], reader, name, host) for reader in self.readers[name])

    def _is_inside(self, part: relax.Expr) -> bool:
        made = isinstance(part, relax.Var) and part.name not in self.outside
        return made and _is_ours(self.values[part.name])

    def _reads(self, value: relax.Expr, reader: str, name: str, host: Call) -> bool:
        if [variable.name for variable in variables(value)].count(name) != 1 or not isinstance(value, Call):
            return False
        if not isinstance(value.args[0], relax.Var) or value.args[0].name != name:
            return False
        if op_name(value) == "bitkiln.conv2d":
            work = workload_of(value, Conv2d)
            return not work.parts and images.can_read(_with_parts(work, host))
        return self._by_channel(value, host) and self._readable(reader, host)

    @staticmethod
    def _by_channel(value: Call, host: Call) -> bool:
        """Whether ``value`` can be done part by part, each of whole cache lines, as well as all at once."""
        if op_name(value) not in _BY_CHANNEL or any(array_of(operand) is None for operand in value.args[1:]):
            return False
        work, whole = workload_of(value), workload_of(host, Concat)
        plain = not whole.begins and not any(part % LANES for part in whole.parts)
        if isinstance(work, Pool2d):
            return plain and not work.bits and not work.signs and work.out == "float32"
        return plain and isinstance(work, Resize)


def _is_ours(value: relax.Expr) -> bool:
    """Whether it is written by a kernel of ours; anything else may be another tensor under a new shape."""
    return op_name(value).startswith("bitkiln.")


def _with_parts(work: Conv2d, host: Call) -> Conv2d:
    whole = workload_of(host, Concat)
    return replace(work, parts=whole.parts, begins=whole.begins, widths=whole.widths)


def _of_channels(operand: relax.Expr, begin: int, end: int) -> relax.Expr:
    """The part of an operand of the epilogue that belongs to some channels."""
    array = array_of(operand)
    assert array is not None
    return constant(np.ascontiguousarray(array[..., begin:end]))
