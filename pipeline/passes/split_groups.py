"""Binary convolutions in groups as one convolution for each group, side by side: kernels are for those that see all channels.

Bits of a group are whole bytes of each pixel, so that its input is a slice and its result a part of a concatenation. Where
groups end inside a byte, or another activation is added, the convolution stays whole, and scalar.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, rewrite
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.schedules.workload import Conv2d

#: More groups than these are better off in one scalar kernel than in as many steps.
MOST_GROUPS = 64


def split_groups(module: tvm.IRModule) -> tvm.IRModule:
    """The same network without grouped binary convolutions, as far as it goes."""
    return rewrite(module, _visit)


def splits(work: Conv2d) -> bool:
    """Whether the groups of a binary convolution become convolutions of their own."""
    inputs, outputs = work.channels // work.groups, work.out_channels // work.groups
    return 1 < work.groups <= MOST_GROUPS and not inputs % 8 and not outputs % 8


def _visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
    if op_name(value) != "bitkiln.bconv2d":
        return None
    work = workload_of(value, Conv2d)
    inputs, outputs = work.channels // work.groups, work.out_channels // work.groups
    arrays = [array_of(operand) for operand in value.args[1:]]
    constants = [array for array in arrays if array is not None]
    if not splits(work) or len(constants) < len(arrays):
        return None
    weight, *operands = constants
    alone, parts = replace(work, channels=inputs, out_channels=outputs, groups=1), []
    for group in range(work.groups):
        own = slice(group * outputs, (group + 1) * outputs)
        ends = [group * inputs // 8], [(group + 1) * inputs // 8]
        bits = graph.emit(relax.op.strided_slice(value.args[0], [3], *ends), f"{name}.bits{group}")
        own_arrays = [weight[own], *(operand[..., own] for operand in operands)]
        arguments = [relax.const(np.ascontiguousarray(array), str(array.dtype)) for array in own_arrays]
        parts.append(graph.emit(ops.call_of(alone, [bits, *arguments]), f"{name}.group{group}"))
    return ops.concat(parts, parts=(outputs,) * work.groups)
