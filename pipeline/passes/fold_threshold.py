"""Replace the float steps between a binary convolution and the next sign by an integer threshold.

The sum v of a binary convolution is a whole number in [-K, K]. Everything up to the next sign (scale, bias, PReLU, batch
norm) makes a bit of it: f(v). Where f only ever goes from clear to set as v grows, it is v >= t; where it goes from set to
clear, negating the channel's weights turns v around and it is again a threshold. Where f bends (a PReLU with a negative
slope), every change of the bit is a threshold, and f is the exclusive or of the comparisons with them. Thresholds are found by
evaluating the float32 steps themselves, one after another as the file has them, so they are exact by construction.

A maximum pooling in between becomes a bitwise OR. Let h be what follows the pooling, up to the bit. If h keeps the order
of numbers, h(max v) is the OR of the bits; if it reverses it (a negative factor of batch norm), it is the AND, which is
the inverted OR of inverted bits. Steps before the pooling may be anything, since f is looked at as a whole.

A layer that has an element for which none of this holds keeps its floats, and a note says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, array_of, op_name, rewrite, value_of
from bitkiln.pipeline.ops.register import workload_of
from bitkiln.pipeline.passes.binary.thresholds import NotMonotone, Thresholds, find_thresholds
from bitkiln.schedules.steps import Order, Step, order
from bitkiln.schedules.workload import Binarize, Conv2d


@dataclass(frozen=True)
class Note:
    """Why a binary convolution whose result only gives bits still computes floats: ``name`` is that of the bits."""

    name: str
    reason: str


def fold_threshold(module: tvm.IRModule) -> tuple[tvm.IRModule, list[Note]]:
    """Replace convolution, epilogue, pooling and sign by a threshold and a bitwise pooling wherever that is exact."""
    notes: list[Note] = []

    def visit(graph: Graph, name: str, value: relax.Expr) -> relax.Expr | None:
        chain = _chain(graph, value)
        if chain is None:
            return None
        try:
            return _fold(graph, name, chain)
        except NotMonotone as reason:
            notes.append(Note(name, str(reason)))
            return None

    return rewrite(module, visit), notes


@dataclass(frozen=True)
class _Chain:
    """A binary convolution and all that follows it up to the sign; steps with their operands, None where not constant."""

    conv: Call
    workload: Conv2d
    before: list[tuple[Step, np.ndarray | None]]
    after: list[tuple[Step, np.ndarray | None]]
    sign_zero: int


def _chain(graph: Graph, value: relax.Expr) -> _Chain | None:
    """What ``value`` is as a chain from a binary convolution to bits; None if it is none."""
    if op_name(value) != "bitkiln.binarize":
        return None
    conv = graph.call_of(value.args[0], "bitkiln.bconv2d")
    if conv is None or not graph.used_once(value.args[0]):
        return None
    workload, sign = workload_of(conv, Conv2d), workload_of(value, Binarize)
    if workload.out != "float32":
        return None
    before = _with_operands(workload.epilogue, conv.args[2:])
    return _Chain(conv, workload, before, _with_operands(sign.epilogue, value.args[1:]), sign.sign_zero)


def _with_operands(steps: Sequence[Step], operands: Sequence[relax.Expr]) -> list[tuple[Step, np.ndarray | None]]:
    remaining = iter(operands)
    return [(step, array_of(next(remaining)) if step.operand else None) for step in steps]


def _fold(graph: Graph, name: str, chain: _Chain) -> relax.Expr:
    """The chain on bits, or NotMonotone."""
    workload, pool = chain.workload, chain.workload.pool
    for step, values in (*chain.before, *chain.after):
        if step.operand == "tensor" or (step.operand and values is None):
            raise NotMonotone(f"another layer's result, not known before the network runs, comes between ({step})")
        if values is not None and not np.all(np.isfinite(values)):
            raise NotMonotone(f"{step} has infinities or NaN among its constants")
    invert = np.zeros(workload.out_channels, bool)
    if pool is not None:
        if pool.kind != "max":
            raise NotMonotone("an average pooling stands before the sign")
        invert = _reverses(chain.after, workload.out_channels)
    size = (*workload.conv_size, workload.out_channels)
    reach = workload.kernel[0] * workload.kernel[1] * (workload.channels // workload.groups)
    found = find_thresholds([*chain.before, *chain.after], chain.sign_zero, invert, size, reach)
    return _rewritten(graph, name, chain, found, invert)


def _rewritten(graph: Graph, name: str, chain: _Chain, found: Thresholds, invert: np.ndarray) -> relax.Expr:
    workload = chain.workload
    weight = _negated(value_of(chain.conv.args[1]), found.flip, workload.channels // workload.groups)
    folded = replace(
        workload, epilogue=(), pool=None, out="bits", threshold=found.kind, thresholds=found.count, sign_zero=1
    )
    args = [chain.conv.args[0], relax.const(weight, "uint8"), relax.const(found.value, "int32")]
    conv = ops.call_of(folded, args)
    if workload.pool is None:
        return conv
    unpooled = graph.emit(conv, f"{name}.unpooled")
    masks = [relax.const(ops.pack_bits(invert), "uint8")] if invert.any() else []
    return ops.bmaxpool2d(unpooled, *masks, channels=workload.out_channels, pool=workload.pool)


def _negated(weight: np.ndarray, flip: np.ndarray, channels: int) -> np.ndarray:
    """Packed OHWI weights with the signs of some output channels turned; tail bits stay clear."""
    return weight ^ np.where(flip[:, None, None, None], ops.pack_bits(np.ones(channels)), np.uint8(0))


def _reverses(steps: Sequence[tuple[Step, np.ndarray | None]], channels: int) -> np.ndarray:
    """For each channel: do the steps behind a pooling turn the order of numbers around? NotMonotone where they do neither."""
    reverses = np.zeros(channels, bool)
    for step, values in steps:
        if step.operand == "element":
            raise NotMonotone(f"{step} stands between the pooling and the sign")
        directions = order(step, values)
        if np.any(directions == Order.BENDS):
            raise NotMonotone(f"{step} between the pooling and the sign does not keep the order of numbers")
        reverses ^= directions == Order.FALLS
    return reverses
