"""Every epilogue step against numpy, through LLVM on the host."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import te

from bitkiln.schedules import epilogue
from bitkiln.schedules.workload import OPERAND_STEPS, PLAIN_STEPS, Step, operand_shapes

SIZE = (3, 5, 7)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


EXPECTED = {
    "mul": lambda x, v: x * v,
    "div": lambda x, v: x / v,
    "add": lambda x, v: x + v,
    "prelu": lambda x, v: np.where(x > 0, x, x * v),
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x, low, high: np.clip(x, low, high),
    "leaky": lambda x, slope: np.where(x > 0, x, x * slope),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "hardsigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}
VALUES = {"clip": [(0.0, 6.0), (-0.5, 0.25)], "leaky": [(0.1,), (-0.5,), (2.0,)], "hardsigmoid": [(0.2, 0.5)]}


def run(steps, x, operands):
    data = te.placeholder((1, *SIZE), "float32", name="data")
    shapes = [shape for shape, _ in operand_shapes(steps, SIZE)]
    tensors = [te.placeholder(shape, "float32", name=f"operand{i}") for i, shape in enumerate(shapes)]
    out = te.compute((1, *SIZE), lambda n, y, x, c: epilogue.apply(steps, data[n, y, x, c], tensors, (y, x, c)))
    library = tvm.compile(te.create_prim_func([data, *tensors, out]), target="llvm")
    result = tvm.runtime.tensor(np.zeros_like(x))
    library(*map(tvm.runtime.tensor, [x, *operands]), result)
    return result.numpy()


@pytest.mark.parametrize("op", sorted(PLAIN_STEPS))
def test_plain_step(op):
    x = np.random.default_rng(0).normal(0, 3, (1, *SIZE)).astype("float32")
    for values in VALUES.get(op, [()]):
        np.testing.assert_allclose(run((Step(op, "", values),), x, []), EXPECTED[op](x, *values), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("operand", ["channel", "element", "tensor"])
def test_operand_steps_in_order(operand):
    rng = np.random.default_rng(1)
    steps = tuple(Step(op, operand) for op in ("mul", "add", "div", "prelu"))
    assert {step.op for step in steps} == OPERAND_STEPS
    x = rng.normal(0, 3, (1, *SIZE)).astype("float32")
    operands = [rng.normal(0, 1, shape).astype("float32") for shape, _ in operand_shapes(steps, SIZE)]
    expected = x
    for step, value in zip(steps, operands, strict=True):
        expected = EXPECTED[step.op](expected, value)
    np.testing.assert_allclose(run(steps, x, operands), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sign_zero", [1, -1])
def test_sign_of_zero_and_nan(sign_zero):
    values = np.array([0.0, -0.0, np.nan, -2, 2], "float32")
    data = te.placeholder(values.shape, "float32", name="data")
    out = te.compute(values.shape, lambda i: epilogue.sign_bit(data[i], sign_zero).astype("uint8"))
    result = tvm.runtime.tensor(np.zeros(values.shape, "uint8"))
    library = tvm.compile(te.create_prim_func([data, out]), target="llvm")
    library(tvm.runtime.tensor(values), result)
    zero = int(sign_zero > 0)
    assert result.numpy().tolist() == [zero, zero, 0, 0, 1]


def test_only_steps_that_keep_the_order_are_monotone():
    add, relu = Step("add", "channel"), Step("relu")
    assert epilogue.monotone((add, relu, Step("clip", values=(0.0, 6.0)), Step("leaky", values=(0.1,))))
    for step in (Step("mul", "channel"), Step("add", "tensor"), Step("leaky", values=(-0.1,)), Step("silu")):
        assert not epilogue.monotone((add, step))
