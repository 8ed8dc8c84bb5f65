"""Every row of the table of steps: its TIR through LLVM on the host, its numpy, what it says of order, its instructions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from tvm import te

from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.steps import (
    STEPS,
    Order,
    Step,
    commutes_with_maximum,
    compute,
    expression,
    order,
    sign_bit,
)
from bitkiln.schedules.workload import operand_shapes

SIZE = (3, 5, 7)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


EXPECTED = {
    "mul": lambda x, v: x * v,
    "div": lambda x, v: x / v,
    "add": lambda x, v: x + v,
    "prelu": lambda x, v: np.where(x > 0, x, x * v),
    "max_scaled": lambda x, v: np.maximum(x, x * v),
    "round": np.round,
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x, low, high: np.clip(x, low, high),
    "leaky": lambda x, slope: np.where(x > 0, x, x * slope),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / 2**0.5)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}
VALUES = {"clip": [(0.0, 6.0), (-0.5, 0.25)], "leaky": [(0.1,), (-0.5,), (2.0,)]}


def run(steps, x, operands):
    data = te.placeholder((1, *SIZE), "float32", name="data")
    shapes = [shape for shape, _ in operand_shapes(steps, SIZE)]
    tensors = [te.placeholder(shape, "float32", name=f"operand{i}") for i, shape in enumerate(shapes)]
    out = te.compute((1, *SIZE), lambda n, y, x, c: expression(steps, data[n, y, x, c], tensors, (y, x, c)))
    library = tvm.compile(te.create_prim_func([data, *tensors, out]), target="llvm")
    result = tvm.runtime.tensor(np.zeros_like(x))
    library(*map(tvm.runtime.tensor, [x, *operands]), result)
    return result.numpy()


PLAIN = sorted(op for op, row in STEPS.items() if not row.operand)
WITH_OPERAND = [op for op, row in STEPS.items() if row.operand]
#: Every step without unknowns: those without operand, and those with operands of each sign.
KNOWN = [(Step(op, "", values), None) for op in PLAIN for values in VALUES.get(op, [()])]
KNOWN += [(Step(op, "channel"), np.full(1, v, "float32")) for op in WITH_OPERAND for v in (-1.5, 0.0, 0.25)]


def test_each_row_has_an_expected_value():
    assert set(STEPS) == set(EXPECTED)


@pytest.mark.parametrize("op", PLAIN)
def test_plain_step(op):
    x = np.random.default_rng(0).normal(0, 3, (1, *SIZE)).astype("float32")
    for values in VALUES.get(op, [()]):
        expected = EXPECTED[op](x, *values)
        np.testing.assert_allclose(run((Step(op, "", values),), x, []), expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(compute((Step(op, "", values),), x, []), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("operand", ["channel", "element", "tensor"])
def test_operand_steps_in_order(operand):
    rng = np.random.default_rng(1)
    steps = tuple(Step(op, operand) for op in WITH_OPERAND)
    x = rng.normal(0, 3, (1, *SIZE)).astype("float32")
    operands = [rng.normal(0, 1, shape).astype("float32") for shape, _ in operand_shapes(steps, SIZE)]
    expected = x
    for step, value in zip(steps, operands, strict=True):
        expected = EXPECTED[step.op](expected, value)
    np.testing.assert_allclose(run(steps, x, operands), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(compute(steps, x, operands), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sign_zero", [1, -1])
def test_sign_of_zero_and_nan(sign_zero):
    values = np.array([0.0, -0.0, np.nan, -2, 2], "float32")
    data = te.placeholder(values.shape, "float32", name="data")
    out = te.compute(values.shape, lambda i: sign_bit(data[i], sign_zero).astype("uint8"))
    result = tvm.runtime.tensor(np.zeros(values.shape, "uint8"))
    library = tvm.compile(te.create_prim_func([data, out]), target="llvm")
    library(tvm.runtime.tensor(values), result)
    zero = int(sign_zero > 0)
    assert result.numpy().tolist() == [zero, zero, 0, 0, 1]


@pytest.mark.parametrize(("step", "operand"), KNOWN, ids=str)
def test_what_a_step_says_of_order_is_what_it_does(step, operand):
    rng = np.random.default_rng(3)
    x = np.unique(np.concatenate([rng.normal(0, 4, 500), [-3e38, -6, -3, 0, 1e-45, 3, 6, 3e38]]).astype("float32"))
    change = np.diff(compute([step], x, [operand]).astype("float64"))
    said = order(step, operand)
    if np.all(said == Order.RISES):
        assert np.all(change >= 0)
    elif np.all(said == Order.FALLS):
        assert np.all(change <= 0)
    else:
        assert np.all(said == Order.BENDS)


def test_order_tells_elements_apart_and_holds_for_any_operand_where_it_is_not_known():
    values = np.array([-2, 0, 3, np.nan], "float32")
    assert order(Step("mul", "channel"), values).tolist() == [Order.FALLS, Order.RISES, Order.RISES, Order.BENDS]
    assert order(Step("div", "channel"), values).tolist() == [Order.FALLS, Order.BENDS, Order.RISES, Order.BENDS]
    assert order(Step("prelu", "channel"), values).tolist() == [Order.BENDS, Order.RISES, Order.RISES, Order.BENDS]
    unknown = {op: order(Step(op, "channel")) for op in ("mul", "div", "add", "prelu")}
    assert unknown == {"mul": Order.STRAIGHT, "div": Order.BENDS, "add": Order.RISES, "prelu": Order.BENDS}


def test_order_of_leaky_slopes():
    slopes = {-0.1: Order.BENDS, 0.0: Order.RISES, 0.1: Order.RISES, 2.0: Order.RISES}
    assert {slope: order(Step("leaky", "", (slope,))) for slope in slopes} == slopes


@pytest.mark.parametrize(
    ("step", "operand", "commutes"),
    [
        (Step("relu"), None, True),
        (Step("clip", "", (-1.0, 6.0)), None, True),
        (Step("leaky", "", (0.1,)), None, True),
        (Step("leaky", "", (0.0,)), None, False),
        (Step("leaky", "", (-0.1,)), None, False),
        (Step("silu"), None, False),
        (Step("add", "channel"), None, True),
        (Step("add", "tensor"), None, False),
        (Step("mul", "channel"), None, False),
        (Step("mul", "channel"), [0.5, 2.0], True),
        (Step("mul", "channel"), [0.0, 2.0], False),
        (Step("mul", "channel"), [-0.5, 2.0], False),
        (Step("prelu", "channel"), [0.5, 2.0], True),
        (Step("prelu", "channel"), [0.0, 2.0], False),
        (Step("add", "channel"), [np.inf, 2.0], False),
    ],
    ids=str,
)
def test_steps_that_commute_with_a_maximum_rise_everywhere_and_make_numbers_of_infinities(step, operand, commutes):
    known = None if operand is None else np.array(operand, "float32")
    assert commutes_with_maximum(step, known) == commutes


def execute(text, registers):
    """``registers``: float32 [4] by number, after the vector instructions of ``text``."""
    for line in text:
        name, rest = line.split("  //")[0].split(" ", 1)
        first, *sources = (word.strip() for word in rest.split(","))
        target = int(first[1:].split(".")[0])
        values = [
            np.full(4, word[1:], "float32") if word.startswith("#") else registers[int(word[1:].split(".")[0])]
            for word in sources
        ]
        old = registers.get(target)
        registers[target] = {
            "movi": lambda v: v,
            "fmov": lambda v: v,
            "fmul": np.multiply,
            "fadd": np.add,
            "fmax": np.maximum,
            "fmin": np.minimum,
            "frintn": np.round,
            "fcmgt": lambda a, b: a > b,
            "bif": lambda value, mask: np.where(mask, old, value),  # noqa: B023
        }[name](*values)


@pytest.mark.parametrize(("step", "operand"), KNOWN, ids=str)
def test_instructions_compute_the_step(step, operand):
    if not steps_a53.by_channel(step):
        pytest.skip("no code for it")
    rng = np.random.default_rng(4)
    values = rng.normal(0, 4, (14, 4)).astype("float32")
    rows = steps_a53.operand_rows([step], [] if operand is None else [np.repeat(operand, 4)], 4)
    registers = {**dict(enumerate(values)), **{16 + i: row for i, row in enumerate(rows)}}
    pairs = [(i, range(16, 16 + len(rows))) for i in range(len(values))]
    execute(steps_a53.lines(step.op, pairs, range(16 + len(rows), 32)), registers)
    expected = compute([step], values, [operand])
    np.testing.assert_allclose([registers[i] for i in range(len(values))], expected, rtol=1e-6, atol=1e-6)


def test_code_says_for_which_slopes_it_holds():
    assert steps_a53.known(Step("leaky", "", (1.0,)))
    assert not steps_a53.known(Step("leaky", "", (1.5,)))
    assert not steps_a53.known(Step("leaky", "", (-0.5,)))
