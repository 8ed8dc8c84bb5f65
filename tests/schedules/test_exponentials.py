"""Vector exponentials against double precision: a sample of all floats in the suite, every one of them on request."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln import targets
from bitkiln.schedules import exponentials, loops
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.steps import Step, expression
from tests.schedules.kernels import Floats

#: Floats in a batch.
BATCH = 1 << 18
#: A prime, so that the sample has every exponent and no pattern of mantissas.
STRIDE = 4093
SPECIAL = np.float32(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38, 88.8, -104.0]
)


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


DEFINITIONS = {
    "exp": np.exp,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}


def function(name, count):
    """A kernel that applies TVM's function ``name`` to ``count`` floats, four vectors at a time and the rest one by one."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        x = T.arg("x", T.buffer((count,), "float32"))
        y = T.arg("y", T.buffer((count,), "float32"))
        loops.sweep(count, lambda i: T.buffer_store(y, getattr(tirx, name)(x[i]), [i]))
    return builder.get()


def host(name, count):
    """That kernel for this machine, with fused multiply-adds as the A53 has them."""
    exponentials.register()
    target = {"kind": "llvm", "mcpu": "haswell"}
    try:
        module = tvm.compile(function(name, count), target=target)
    except Exception as error:
        pytest.skip(f"no code for {target}: {error}")

    def run(x):
        y = tvm.runtime.tensor(np.zeros(count, "float32"))
        module(tvm.runtime.tensor(x), y)
        return y.numpy()

    return run


def errors(name, x, y):
    """Of each result, in units of the last place; infinite where a special value is not exact. Small ones do not count."""
    with np.errstate(all="ignore"):
        wanted = DEFINITIONS[name](x.astype(np.float64))
        rounded = wanted.astype(np.float32)
        distance = np.abs(y.astype(np.float64) - wanted)
        units = distance / np.spacing(np.abs(rounded)).astype(np.float64)
        exact = np.isinf(rounded) | np.isinf(x) | (x == 0)
        right = (y == rounded) & (np.signbit(y) == np.signbit(rounded))
        units = np.where(exact, np.where(right, 0, np.inf), units)
        return np.where(np.isnan(rounded) | np.isnan(y), np.where(np.isnan(rounded) == np.isnan(y), 0, np.inf), units)


def worst(name, stride):
    """The largest error over every ``stride``-th float."""
    run, found = host(name, BATCH), 0.0
    for first in range(0, (1 << 32) // stride, BATCH):
        bits = np.arange(first, first + BATCH, dtype=np.uint64) * stride % (1 << 32)
        x = bits.astype(np.uint32).view(np.float32)
        found = max(found, float(errors(name, x, run(x)).max()))
    return found


@pytest.mark.parametrize("name", exponentials.FUNCTIONS)
def test_errors_and_special_values(name):
    assert worst(name, STRIDE) <= 4
    x = np.resize(SPECIAL, BATCH)
    assert errors(name, x, host(name, BATCH)(x)).max() <= 4


GELUS = {
    "gelu": lambda x: x / 2 * (1 + DEFINITIONS["erf"](x / 2**0.5)),
    "gelu_tanh": lambda x: x * _sigmoid((8 / np.pi) ** 0.5 * (x + 0.044715 * x**3)),
}


@pytest.mark.parametrize("name", GELUS)
def test_gelus_lose_nothing_where_they_cancel(name, run_kernel):
    x = np.concatenate([np.linspace(-12, 12, 8001), [0, -1e4, 1e4, 3e38]]).astype("float32")
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True})
        data, out = T.arg("x", T.buffer(x.shape, "float32")), T.arg("y", T.buffer(x.shape, "float32"))
        loops.sweep(x.size, lambda i: T.buffer_store(out, expression((Step(name),), data[i], (), (0, 0, 0)), [i]))
    kernel = Kernel(builder.get(), (Argument((0,), x.shape, "float32"),))
    y = run_kernel(Floats(x.size), kernel, [x], targets.load("rasp3b"), 1)
    wanted = GELUS[name](x.astype(np.float64))
    units = np.spacing(np.abs(wanted).astype(np.float32))
    assert (np.abs(y - wanted) <= np.maximum(4 * units, 1e-7)).all()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", exponentials.FUNCTIONS)
def test_errors_of_all_floats(name):
    assert worst(name, 1) <= 4


@pytest.mark.parametrize("board", ["rasp3b", "rasp3b32"])
def test_boards_compute_the_same(board, run_kernel):
    """What the compiler makes of it for boards: as exact; on 32-bit ones but for subnormals, which NEON takes for zero."""
    target = targets.load(board)
    rng = np.random.default_rng(0)
    x = np.concatenate([SPECIAL, rng.normal(0, 8, 4000).astype("float32"), rng.normal(0, 1e-3, 83).astype("float32")])
    for name in exponentials.FUNCTIONS:
        kernel = Kernel(function(name, x.size), (Argument((0,), x.shape, "float32"),))
        y = run_kernel(Floats(x.size), kernel, [x], target, 1)
        small = (np.abs(x) < 1e-37) & (x != 0) | (x < -87)
        counted = ~small if board == "rasp3b32" else np.ones(x.size, bool)
        assert errors(name, x, y)[counted].max() <= 4, name
