"""The steps of an epilogue as expressions: the one meaning that references and emitted kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from bitkiln.schedules.workload import Step

#: What an operand is read from: a tirx.Buffer inside a kernel, a te.Tensor inside a reference.
Operand = Any


def apply(
    steps: Sequence[Step], value: tirx.PrimExpr, operands: Sequence[Operand], index: Sequence[tirx.PrimExpr | int]
) -> tirx.PrimExpr:
    """``value`` (float32) after ``steps``, at ``index`` = (y, x, channel) of the result.

    ``operands`` holds one tensor for each step that takes one, in order, with the shapes of ``Step.operand``. ``value``
    is mentioned more than once in the answer: give a variable or a load, not a long expression.
    """
    remaining = iter(operands)
    for step in steps:
        value = _apply_one(step, value, _read(step, next(remaining), index) if step.operand else None)
    return value


def monotone(steps: Sequence[Step]) -> bool:
    """Whether greater values of a channel never come out smaller, whatever the operands hold and wherever they lie.

    Then a maximum over pixels and ``steps`` may change places, without any change to the result.
    """
    always = {"relu", "clip"}
    return all(
        step.op in always
        or (step.op == "add" and step.operand == "channel")
        or (step.op == "leaky" and step.values[0] >= 0)
        for step in steps
    )


def sign_bit(value: tirx.PrimExpr, sign_zero: int) -> tirx.PrimExpr:
    """Whether the bit of ``value`` is set: y > 0, or y >= 0 where ``sign_zero`` is +1. False for NaN."""
    zero = tirx.const(0, "float32")
    return value >= zero if sign_zero > 0 else value > zero


def _read(step: Step, operand: Operand, index: Sequence[tirx.PrimExpr | int]) -> tirx.PrimExpr:
    y, x, channel = index
    where = {"channel": (channel,), "element": (y, x, channel), "tensor": (0, y, x, channel)}
    if step.operand == "half":
        return operand[0, y, x, channel % int(operand.shape[-1])]
    return operand[where[step.operand]]


def _apply_one(step: Step, x: tirx.PrimExpr, operand: tirx.PrimExpr | None) -> tirx.PrimExpr:
    constants = [tirx.const(value, "float32") for value in step.values]
    match step.op:
        case "mul":
            return x * operand
        case "div":
            return x / operand
        case "add":
            return x + operand
        case "prelu":
            return tirx.Select(x > 0.0, x, x * operand)
        case "relu":
            return tirx.max(x, tirx.const(0, "float32"))
        case "clip":
            return tirx.min(tirx.max(x, constants[0]), constants[1])
        case "leaky":
            return _leaky(x, step.values[0])
        case "sigmoid":
            return tirx.sigmoid(x)
        case "tanh":
            return tirx.tanh(x)
        case "silu":
            return x * tirx.sigmoid(x)
        case "hardsigmoid":
            return _unit(x * constants[0] + constants[1])
        case "hardswish":
            return x * _unit(x * tirx.const(1 / 6, "float32") + 0.5)
    raise ValueError(f"no expression for epilogue step {step}")


def _leaky(x: tirx.PrimExpr, slope: float) -> tirx.PrimExpr:
    scaled = x * tirx.const(slope, "float32")
    # The greater of the two is the answer for such slopes, and costs one operation less than a comparison and a choice.
    return tirx.max(x, scaled) if 0 <= slope <= 1 else tirx.Select(x > 0.0, x, scaled)


def _unit(x: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.max(tirx.min(x, tirx.const(1, "float32")), tirx.const(0, "float32"))
