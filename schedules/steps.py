"""The steps of an epilogue, a row each: meaning as TIR and in numpy, effect on the order of numbers, instructions.

To add a step, add a row to ``STEPS`` and a case to its test. Passes find the step by its Relax operator; the numpy reference,
plain kernels and micro-kernels read the rest of the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx

from bitkiln.schedules.exponentials import gelu

#: What an operand is read from: a tirx.Buffer inside a kernel, a te.Tensor inside a definition.
Operand = Any


@dataclass(frozen=True)
class Step:
    """One step of an epilogue, applied to the value ``x`` of an output element (float32).

    ``mul``/``div``/``add``: x*v, x/v, x+v. ``prelu``: x > 0 ? x : v*x. ``max_scaled``: max(x, v*x). ``relu``: max(x, 0).
    ``clip``: values (low, high). ``leaky``: values (slope,). ``hardswish``: x*clip(x/6 + 0.5, 0, 1). ``silu``: x*sigmoid(x).
    ``round``: to whole numbers, halves to even.

    ``operand`` is the shape of v: "channel" float32[C], "element" float32[H, W, C] (a constant), "tensor" float32[1, H, W, C]
    (another activation, e.g. a residual), "half" float32[1, H, W, C/2] (one that each half of the channels reads); "" for
    steps without one.
    """

    op: str
    operand: str = ""
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in STEPS:
            raise ValueError(f"unknown epilogue step {self.op!r}")
        if STEPS[self.op].operand != (self.operand in ("channel", "element", "tensor", "half")):
            raise ValueError(f"epilogue step {self.op!r} with operand {self.operand!r}")

    def __str__(self) -> str:
        values = "(" + ",".join(f"{v:g}" for v in self.values) + ")" if self.values else ""
        return self.op + values + (f":{self.operand}" if self.operand else "")


class Order(IntEnum):
    """What a step does to the order of two numbers, rounding included."""

    FALLS = -1
    #: Neither: it may turn some pairs around and keep others.
    BENDS = 0
    RISES = 1
    #: It rises or falls, and an operand that is not known yet decides which.
    STRAIGHT = 2


class Instruction(NamedTuple):
    """A vector instruction on floats, registers by their roles.

    "x": the value; "v0", "v1", ...: rows of the step's numbers; "k0", ...: immediates; "t0", ...: temporaries. Other sources
    stand as they are, e.g. "#0.0".
    """

    name: str
    target: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Assembly:
    """A step as straight-line vector code.

    The rows are numbers of each channel, loaded before: the operand, then ``Step.values``, then ``constants``. ``immediates``
    are numbers that an instruction can hold. An operand may share its register with "t0": no instruction reads "v0" behind
    the first one. ``applies`` tells for which ``Step.values`` the code is right.
    """

    code: tuple[Instruction, ...]
    constants: tuple[float, ...] = ()
    immediates: tuple[float, ...] = ()
    applies: Callable[[tuple[float, ...]], bool] = lambda values: True

    def _count(self, kind: str) -> int:
        roles = {role for _, target, sources in self.code for role in (target, *sources)}
        return sum(role[0] == kind for role in roles)

    @property
    def rows(self) -> int:
        """Rows of numbers that it reads."""
        return self._count("v")

    @property
    def registers(self) -> int:
        """Registers that it needs at least, beside that of a value."""
        return self.rows + len(self.immediates) + self.temporaries

    @property
    def temporaries(self) -> int:
        """Registers that each value needs beside its own."""
        return self._count("t")


@dataclass(frozen=True)
class StepRule:
    """What there is to know of a kind of step.

    ``tir`` and ``numpy`` compute it from x, the operand (None without one) and ``Step.values``; ``tir`` may mention x several
    times. ``order`` tells from the operand (None: not known) and ``Step.values`` what it does to the order of finite numbers,
    element by element. ``relax``: the operator of Relax, without attributes, that is this step. ``assembly``: its code by set
    of micro-kernels, where they can apply it to values in registers.
    """

    tir: Callable[[tirx.PrimExpr, tirx.PrimExpr | None, tuple[float, ...]], tirx.PrimExpr]
    numpy: Callable[[np.ndarray, np.ndarray | None, Sequence[np.float32]], np.ndarray]
    order: Callable[[np.ndarray | None, tuple[float, ...]], np.ndarray | Order] = lambda v, values: Order.BENDS
    operand: bool = False
    relax: str = ""
    assembly: Mapping[str, Assembly] = field(default_factory=dict)


def expression(
    steps: Sequence[Step], value: tirx.PrimExpr, operands: Sequence[Operand], index: Sequence[tirx.PrimExpr | int]
) -> tirx.PrimExpr:
    """``value`` (float32) after ``steps``, at ``index`` = (y, x, channel) of the result.

    ``operands`` holds one tensor for each step that takes one, in order, with the shapes of ``Step.operand``. ``value``
    is mentioned more than once in the answer: give a variable or a load, not a long expression.
    """
    remaining = iter(operands)
    for step in steps:
        operand = _read(step, next(remaining), index) if step.operand else None
        value = STEPS[step.op].tir(value, operand, step.values)
    return value


def compute(steps: Sequence[Step], value: np.ndarray, operands: Sequence[np.ndarray]) -> np.ndarray:
    """``value`` float32 [..., H, W, C] after ``steps``; operands broadcast to it."""
    remaining = iter(operands)
    with np.errstate(all="ignore"):
        for step in steps:
            operand = next(remaining) if step.operand else None
            if operand is not None and step.operand == "half":
                operand = np.concatenate([operand, operand], axis=-1)
            value = STEPS[step.op].numpy(value, operand, [np.float32(number) for number in step.values])
    return value


def order(step: Step, operand: np.ndarray | None = None) -> np.ndarray:
    """What ``step`` does to the order of finite numbers, an ``Order`` for each element of ``operand``.

    Without ``operand`` the answer holds whatever the step's operand is.
    """
    return np.asarray(STEPS[step.op].order(operand, step.values), np.int8)


def straight(step: Step) -> bool:
    """Whether ``step`` keeps or turns the order of numbers, whatever the values of its channels: a comparison sees its sign."""
    return step.operand in ("", "channel") and bool(np.all(order(step) != Order.BENDS))


def commutes_with_maximum(step: Step, operand: np.ndarray | None = None) -> bool:
    """Whether a maximum over pixels and ``step`` may change places without any change to the result.

    So ``step`` is the same for all pixels, rises, and makes numbers of infinities too: infinity times zero is none, and a
    maximum may be infinite where the other pixels are not. An operand that is not known is taken for finite.
    """
    if step.operand not in ("", "channel") or np.any(order(step, operand) != Order.RISES):
        return False
    known = np.ones(1, np.float32) if operand is None else operand
    ends = (compute((step,), np.full(known.shape, end, np.float32), [known]) for end in (-np.inf, np.inf))
    return not any(np.isnan(values).any() for values in ends)


def sign_bit(value: tirx.PrimExpr, sign_zero: int) -> tirx.PrimExpr:
    """Whether the bit of ``value`` is set: y > 0, or y >= 0 where ``sign_zero`` is +1. False for NaN."""
    zero = _const(0)
    return value >= zero if sign_zero > 0 else value > zero


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, rounded to float32."""
    return np.vectorize(math.erf, otypes=[np.float32])(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in the precision of ``x``."""
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


def _read(step: Step, operand: Operand, index: Sequence[tirx.PrimExpr | int]) -> tirx.PrimExpr:
    y, x, channel = index
    if step.operand == "half":
        return operand[0, y, x, channel % int(operand.shape[-1])]
    where = {"channel": (channel,), "element": (y, x, channel), "tensor": (0, y, x, channel)}
    return operand[where[step.operand]]


def _const(value: float) -> tirx.PrimExpr:
    return tirx.const(value, "float32")


def _leaky(x: tirx.PrimExpr, _v: None, values: tuple[float, ...]) -> tirx.PrimExpr:
    scaled = x * _const(values[0])
    # The greater of the two is the answer for such slopes, and costs one operation less than a comparison and a choice.
    return tirx.max(x, scaled) if _is_maximum(values) else tirx.Select(x > 0.0, x, scaled)


def _is_maximum(slope: tuple[float, ...]) -> bool:
    """Whether a leaky ReLU of this slope is max(x, slope*x)."""
    return 0 <= slope[0] <= 1


def _hardswish(x: tirx.PrimExpr, _v: None, _values: tuple[float, ...]) -> tirx.PrimExpr:
    return x * tirx.max(tirx.min(x * _const(1 / 6) + 0.5, _const(1)), _const(0))


def _by_sign(v: np.ndarray | None, unknown: Order, positive: Order, negative: Order, zero: Order) -> Any:
    """An order that the sign of the operand decides."""
    if v is None:
        return unknown
    return np.select([v > 0, v < 0, v == 0], [positive, negative, zero], Order.BENDS)


_MULTIPLY_BY_SLOPE = Instruction("fmul", "t0", ("x", "v0"))

#: Steps made of exponentials: ``exponentials`` says how they are computed.
EXPONENTIALS = frozenset({"sigmoid", "tanh", "silu", "erf", "gelu", "gelu_tanh"})


def before_exponentials(steps: Sequence[Step]) -> int:
    """How many of ``steps`` come before the first exponential."""
    return next((index for index, step in enumerate(steps) if step.op in EXPONENTIALS), len(steps))


#: The steps by their names.
STEPS: dict[str, StepRule] = {
    "mul": StepRule(
        tir=lambda x, v, values: x * v,
        numpy=lambda x, v, values: x * v,
        # Of finite numbers: zero makes them all equal.
        order=lambda v, values: _by_sign(v, Order.STRAIGHT, Order.RISES, Order.FALLS, Order.RISES),
        operand=True,
        assembly={"a53": Assembly((Instruction("fmul", "x", ("x", "v0")),))},
    ),
    "div": StepRule(
        tir=lambda x, v, values: x / v,
        numpy=lambda x, v, values: x / v,
        order=lambda v, values: _by_sign(v, Order.BENDS, Order.RISES, Order.FALLS, Order.BENDS),
        operand=True,
    ),
    "add": StepRule(
        tir=lambda x, v, values: x + v,
        numpy=lambda x, v, values: x + v,
        order=lambda v, values: Order.RISES,
        operand=True,
        assembly={"a53": Assembly((Instruction("fadd", "x", ("x", "v0")),))},
    ),
    "prelu": StepRule(
        tir=lambda x, v, values: tirx.Select(x > 0.0, x, x * v),
        numpy=lambda x, v, values: np.where(x > 0, x, x * v),
        order=lambda v, values: _by_sign(v, Order.BENDS, Order.RISES, Order.BENDS, Order.RISES),
        operand=True,
        assembly={
            "a53": Assembly(
                (
                    _MULTIPLY_BY_SLOPE,
                    Instruction("fcmgt", "t1", ("x", "#0.0")),
                    Instruction("bif", "x", ("t0", "t1")),
                )
            )
        },
    ),
    "round": StepRule(
        # Halves to even.
        tir=lambda x, v, values: tirx.nearbyint(x),
        numpy=lambda x, v, values: np.round(x),
        order=lambda v, values: Order.RISES,
        relax="round",
        assembly={"a53": Assembly((Instruction("frintn", "x", ("x",)),))},
    ),
    # A PReLU whose slopes are at most 1.
    "max_scaled": StepRule(
        tir=lambda x, v, values: tirx.max(x, x * v),
        numpy=lambda x, v, values: np.maximum(x, x * v),
        order=lambda v, values: _by_sign(v, Order.BENDS, Order.RISES, Order.BENDS, Order.RISES),
        operand=True,
        assembly={"a53": Assembly((_MULTIPLY_BY_SLOPE, Instruction("fmax", "x", ("x", "t0"))))},
    ),
    "relu": StepRule(
        tir=lambda x, v, values: tirx.max(x, _const(0)),
        numpy=lambda x, v, values: np.maximum(x, np.float32(0)),
        order=lambda v, values: Order.RISES,
        assembly={"a53": Assembly((Instruction("fmax", "x", ("x", "k0")),), immediates=(0.0,))},
    ),
    "clip": StepRule(
        tir=lambda x, v, values: tirx.min(tirx.max(x, _const(values[0])), _const(values[1])),
        numpy=lambda x, v, values: np.minimum(np.maximum(x, values[0]), values[1]),
        order=lambda v, values: Order.RISES,
        assembly={
            "a53": Assembly((Instruction("fmax", "x", ("x", "v0")), Instruction("fmin", "x", ("x", "v1")))),
        },
    ),
    "leaky": StepRule(
        tir=_leaky,
        numpy=lambda x, v, values: np.where(x > 0, x, x * values[0]),
        order=lambda v, values: Order.RISES if values[0] >= 0 else Order.BENDS,
        assembly={
            "a53": Assembly((_MULTIPLY_BY_SLOPE, Instruction("fmax", "x", ("x", "t0"))), applies=_is_maximum),
        },
    ),
    # Rising functions, but nothing promises that what computes them rounds neighbours in order.
    "sigmoid": StepRule(
        tir=lambda x, v, values: tirx.sigmoid(x),
        numpy=lambda x, v, values: sigmoid(x),
        relax="sigmoid",
    ),
    "tanh": StepRule(
        tir=lambda x, v, values: tirx.tanh(x),
        numpy=lambda x, v, values: np.tanh(x),
        relax="tanh",
    ),
    "silu": StepRule(
        tir=lambda x, v, values: x * tirx.sigmoid(x),
        numpy=lambda x, v, values: x * sigmoid(x),
        relax="nn.silu",
    ),
    "erf": StepRule(
        tir=lambda x, v, values: tirx.erf(x),
        numpy=lambda x, v, values: erf(x),
        relax="erf",
    ),
    "gelu": StepRule(
        tir=lambda x, v, values: gelu(x),
        numpy=lambda x, v, values: x * np.float32(0.5) * (1 + erf(x / np.float32(np.sqrt(2)))),
        relax="nn.gelu",
    ),
    # x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), as a logistic function.
    "gelu_tanh": StepRule(
        tir=lambda x, v, values: x * tirx.sigmoid(x * (x * x * _const(0.07135481282) + _const(1.5957691216))),
        numpy=lambda x, v, values: x * sigmoid(np.float32(np.sqrt(8 / np.pi)) * (x + np.float32(0.044715) * x * x * x)),
        relax="nn.gelu_tanh",
    ),
    "hardswish": StepRule(
        tir=_hardswish,
        numpy=lambda x, v, values: x * np.clip(x * np.float32(1 / 6) + np.float32(0.5), np.float32(0), np.float32(1)),
        relax="bitkiln.hardswish",
        assembly={
            "a53": Assembly(
                (
                    _MULTIPLY_BY_SLOPE,
                    Instruction("fadd", "t0", ("t0", "k1")),
                    Instruction("fmax", "t0", ("t0", "k0")),
                    Instruction("fmin", "t0", ("t0", "k2")),
                    Instruction("fmul", "x", ("x", "t0")),
                ),
                constants=(1 / 6,),
                immediates=(0.0, 0.5, 1.0),
            )
        },
    ),
}
