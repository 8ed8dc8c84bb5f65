"""Fewer steps in epilogues: products and sums with constants merged, as ``fold_affine`` does between operators.

A constant that is added behind another activation is added before it, where another one is; a PReLU of slopes up to 1 is a
maximum.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import rewrite, value_of
from bitkiln.pipeline.ir.operands import as_float32, float64_of, product, reciprocal
from bitkiln.pipeline.ops.register import has_workload, operands_of, with_epilogue, workload_of
from bitkiln.schedules.steps import Step

#: A step with its operand, None of one that has none.
_Taken = tuple[Step, relax.Expr | None]


def fold_steps(module: tvm.IRModule) -> tvm.IRModule:
    """As ``fold_affine``, within epilogues."""
    return rewrite(module, lambda _graph, _name, value: _with_fewer_steps(value) if has_workload(value) else None)


def _with_fewer_steps(call: Call) -> Call | None:
    """``call`` with runs of multiplications, divisions and additions of constants in its epilogue merged."""
    operands = iter(operands_of(call))
    before = [(step, next(operands) if step.operand else None) for step in workload_of(call).epilogue]
    given = before
    before = [_as_maximum(taken) for taken in _gathered(before)]
    after: list[tuple[Step, relax.Expr | None]] = []
    run: list[tuple[Step, relax.Expr]] = []
    for taken in before:
        if taken[0].op in ("mul", "div", "add") and float64_of(taken[1]) is not None:
            run.append(taken)
            continue
        after += [*_shortened(run), taken]
        run = []
    after += _shortened(run)
    if len(after) == len(given) and all(map(operator.is_, after, given)):
        return None
    return with_epilogue(call, [step for step, _ in after], [operand for _, operand in after if operand is not None])


def _gathered(steps: list[_Taken]) -> list[_Taken]:
    """``steps`` with sums of constants before those of other activations, where they meet others to be merged with."""
    gathered: list[_Taken] = []
    for taken in steps:
        at = len(gathered)
        while at and _adds(gathered[at - 1]) and not _constant(gathered[at - 1]):
            at -= 1
        merges = at < len(gathered) and at and _adds(gathered[at - 1]) and _adds(taken) and _constant(taken)
        gathered.insert(at if merges else len(gathered), taken)
    return gathered


def _adds(taken: _Taken) -> bool:
    return taken[0].op == "add"


def _constant(taken: _Taken) -> bool:
    return float64_of(taken[1]) is not None


def _as_maximum(taken: _Taken) -> _Taken:
    """A PReLU of channels as a maximum: right for slopes of at most 1, but for infinities where a slope is zero."""
    step, operand = taken
    slopes = float64_of(operand) if (step.op, step.operand) == ("prelu", "channel") and operand is not None else None
    if slopes is None or not np.all((slopes <= 1) & (slopes != 0)):
        return taken
    return replace(step, op="max_scaled"), operand


def _shortened(run: list[tuple[Step, relax.Expr]]) -> list[tuple[Step, relax.Expr]]:
    """A product and a sum for ``run``; the run itself where it is no longer than those, or where float32 cannot hold them."""
    scale, shift = np.ones(1), np.zeros(1)
    for step, operand in run:
        values = value_of(operand).astype(np.float64)
        if step.op == "add":
            shift = shift + values
            continue
        factor = values if step.op == "mul" else reciprocal(values)
        if product(scale, factor) is None:
            return run
        scale, shift = scale * factor, shift * factor
    merged = []
    for op, values, neutral in (("mul", scale, 1), ("add", shift, 0)):
        if np.all(values == neutral):
            continue
        operand = as_float32(values)
        if operand is None:
            return run
        merged.append((Step(op, "channel" if values.ndim == 1 else "element"), operand))
    return merged if len(merged) < len(run) or any(step.op == "div" for step, _ in run) else run
