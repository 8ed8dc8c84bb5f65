"""Join a depthwise convolution with the 1x1 convolutions around it where what lies between them would go through memory.

An inverted residual makes an image six times larger, filters it and makes it small again. Strip by strip the large image stays
in the L2 cache (``schedules/depth_first``).
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import Graph, op_name, rewrite
from bitkiln.pipeline.ops import depth_first as joined
from bitkiln.pipeline.ops import workload_of
from bitkiln.schedules.depth_first import pays
from bitkiln.schedules.workload import Conv2d, DepthFirst
from bitkiln.targets import Target


def depth_first(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Convolutions of which one gives to the next alone as one operator, where that is faster.

    A 1x1 convolution between two depthwise ones joins the first.
    """

    def visit(graph: Graph, _name: str, value: relax.Expr) -> relax.Expr | None:
        layers = _layers(value)
        if not layers or not graph.used_once(value.args[0]):
            return None
        before = graph.definition(value.args[0])
        layers = _layers(before) + layers
        if len(layers) < 2 or not _fits(layers) or not pays(DepthFirst(layers), target):
            return None
        assert isinstance(before, Call)
        return joined(layers, *before.args, *value.args[1:])

    return rewrite(module, visit)


def _layers(value: relax.Expr | None) -> tuple[Conv2d, ...]:
    """The convolutions that an operator computes; none where it is another."""
    if op_name(value) == "bitkiln.depth_first":
        return workload_of(value, DepthFirst).layers
    return (workload_of(value, Conv2d),) if op_name(value) == "bitkiln.conv2d" else ()


def _fits(layers: tuple[Conv2d, ...]) -> bool:
    """Whether they are a depthwise convolution and others around it, at most one on each side."""
    depthwise = [layer.depthwise for layer in layers]
    return depthwise in ([False, True], [True, False], [False, True, False])
