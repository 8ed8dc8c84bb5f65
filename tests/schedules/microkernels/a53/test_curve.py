"""Functions made of exponentials, as micro-kernels, against double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln import targets
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.microkernels.a53.curve import FUNCTIONS, Curve
from tests.schedules.kernels import Floats

TARGET = targets.load("rasp3b")


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


DEFINITIONS = {
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "gelu": lambda x: x / 2 * np.vectorize(math.erfc, otypes=[np.float64])(-x / 2**0.5),
    "gelu_tanh": lambda x: x * _sigmoid((8 / np.pi) ** 0.5 * (x + 0.044715 * x**3)),
}


def curve(name, sizes):
    """A kernel that copies its floats and applies the micro-kernel to runs of ``sizes`` of them."""
    count, micro = sum(sizes), Curve(name)
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        data, out = T.arg("x", T.buffer((count,), "float32")), T.arg("y", T.buffer((count,), "float32"))
        with T.serial(count) as i:
            T.buffer_store(out, data[i], [i])
        at = 0
        for size in sizes:
            T.evaluate(T.call_extern("int32", micro.symbol, T.address_of(out[at]), T.int64(size)))
            at += size
    return Kernel(builder.get(), (Argument((0,), (count,), "float32"),), (micro,))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors(name, run_kernel):
    special = [0.0, 1e-45, -1e-39, np.nan, 3e38, 86.9, 88.8, 104.0, -86.0]
    x = np.concatenate([np.linspace(-12, 12, 8001), np.geomspace(1e-6, 80, 401), special]).astype("float32")
    # Runs with and without a rest, and with nothing but one.
    sizes = (1, 15, 16, 17, 47, x.size - 96)
    y = run_kernel(Floats(x.size), curve(name, sizes), [x], TARGET, 1)
    with np.errstate(all="ignore"):
        wanted = DEFINITIONS[name](x.astype(np.float64))
    assert (np.isnan(y) == np.isnan(x)).all()
    known = ~np.isnan(x)
    error = np.abs(y - wanted)[known]
    if not name.startswith("gelu"):
        # Their relative error stays small where they do.
        assert (error <= 1.2e-6 * np.abs(wanted[known]) + 1e-37).all()
    units = np.spacing(np.abs(wanted[known]).astype(np.float32))
    worst = (error / np.maximum(4 * units, 1.2e-7)).max()
    assert worst <= 1, (worst, x[known][(error / np.maximum(4 * units, 1.2e-7)).argmax()])
