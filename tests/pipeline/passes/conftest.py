"""Small networks to rewrite, and comparisons of a network with itself after a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import tvm
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import bindings, op_name


@dataclass
class Network:
    """A Relax network under construction: ``net.add(expr, name)`` binds an operation."""

    shape: tuple[int, ...]
    rng: np.random.Generator
    dtype: str = "float32"
    x: relax.Var = field(init=False)
    values: list[tuple[relax.Var, relax.Expr]] = field(default_factory=list)

    def __post_init__(self):
        self.x = relax.Var("x", relax.TensorType(self.shape, self.dtype))
        self.builder = relax.BlockBuilder()

    def add(self, expr, name=None):
        """Bind ``expr``."""
        expr = self.builder.normalize(expr)
        var = relax.DataflowVar(name or f"t{len(self.values)}", expr.ty)
        self.values.append((var, expr))
        return var

    def normal(self, *shape, scale=1.0):
        """A constant of normal numbers."""
        return constant((self.rng.standard_normal(shape) * scale).astype("float32"))

    def signs(self, *shape):
        """A constant of +1 and -1."""
        return constant(self.rng.choice([-1.0, 1.0], shape).astype("float32"))

    def module(self, *results):
        """The finished network."""
        outs = [relax.Var(f"out{i}", var.ty) for i, var in enumerate(results)]
        block = [relax.VarBinding(var, expr) for var, expr in self.values]
        block += [relax.VarBinding(out, var) for out, var in zip(outs, results, strict=True)]
        result = outs[0] if len(outs) == 1 else relax.Tuple(outs)
        ty = self.builder.normalize(result).ty
        function = relax.Function([self.x], relax.SeqExpr([relax.DataflowBlock(block)], result), ty)
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        return relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(module))


def constant(array):
    """A Relax constant that keeps the shape of scalars."""
    return relax.const(np.asarray(array), str(np.asarray(array).dtype))


@pytest.fixture
def network() -> Callable[..., Network]:
    """Start a network: ``network((1, 8, 8, 3), seed=1)``."""
    return lambda shape, seed=0: Network(shape, np.random.default_rng(seed))


@pytest.fixture
def const():
    """Make a Relax constant of an array or number (float32 unless it has a type)."""

    def make(value):
        array = np.asarray(value)
        return constant(array.astype("float32") if array.dtype == np.float64 or array.dtype == np.int64 else array)

    return make


@pytest.fixture
def same():
    """Assert that two modules compute the same from random inputs: exactly, or relative to the largest value."""

    def check(before, after, tolerance=0.0, seeds=(0, 1), scale=1.0):
        for seed in seeds:
            inputs = random_inputs(before, seed, scale)
            for wanted, actual in zip(reference.run(before, inputs), reference.run(after, inputs), strict=True):
                assert actual.shape == wanted.shape
                limit = tolerance * np.abs(wanted).max()
                np.testing.assert_allclose(actual, wanted, rtol=0, atol=limit)

    return check


def random_inputs(module, seed, scale=1.0):
    """Normal numbers for every parameter."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for param in module["main"].params:
        shape = tuple(int(size) for size in param.ty.shape.values)
        inputs[param.name] = (rng.standard_normal(shape) * scale).astype("float32")
    return inputs


@pytest.fixture
def operators():
    """The operators of a network, in order."""
    return lambda module: [op_name(value) for _, value in bindings(module["main"]) if op_name(value)]
