"""Merge multiplications, divisions and additions by constants within epilogues, as ``fold_affine`` does between operators."""

from __future__ import annotations

import operator

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import rewrite, value_of
from bitkiln.pipeline.ir.operands import as_float32, float64_of, product, reciprocal
from bitkiln.pipeline.ops.register import has_workload, operands_of, with_epilogue, workload_of
from bitkiln.schedules.steps import Step


def fold_steps(module: tvm.IRModule) -> tvm.IRModule:
    """As ``fold_affine``, within epilogues."""
    return rewrite(module, lambda _graph, _name, value: _with_fewer_steps(value) if has_workload(value) else None)


def _with_fewer_steps(call: Call) -> Call | None:
    """``call`` with runs of multiplications, divisions and additions of constants in its epilogue merged."""
    operands = iter(operands_of(call))
    before = [(step, next(operands) if step.operand else None) for step in workload_of(call).epilogue]
    after: list[tuple[Step, relax.Expr | None]] = []
    run: list[tuple[Step, relax.Expr]] = []
    for taken in before:
        if taken[0].op in ("mul", "div", "add") and float64_of(taken[1]) is not None:
            run.append(taken)
            continue
        after += [*_shortened(run), taken]
        run = []
    after += _shortened(run)
    if len(after) == len(before) and all(map(operator.is_, after, before)):
        return None
    return with_epilogue(call, [step for step, _ in after], [operand for _, operand in after if operand is not None])


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
