"""Mark the convolutions whose large weights are bfloat16 values: their kernels may keep the upper halves alone in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, rewrite
from bitkiln.pipeline.ops.register import call_of, workload_of
from bitkiln.pipeline.passes.round_weights import large
from bitkiln.schedules import conv2d
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

_LOWER = np.uint32(0xFFFF)


def halves(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """The same network; nothing is marked for a target without kernels for it."""
    if not kernel_set(target).sgemm_halves:
        return module
    return rewrite(module, lambda graph, name, value: _marked(graph, value, target))


def _marked(graph: Graph, value: relax.Expr, target: Target) -> relax.Expr | None:
    if op_name(value) != "bitkiln.conv2d":
        return None
    weights = array_of(value.args[1])
    if weights is None or not large(weights, target) or (weights.view("uint32") & _LOWER).any():
        return None
    work = workload_of(value, Conv2d)
    return call_of(replace(work, halves=True), list(value.args)) if conv2d.halves_pay(work, target) else None
