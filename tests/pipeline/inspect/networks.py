"""Small networks for the tests of inspect."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline.model import Model, TensorSpec

RNG = np.random.default_rng(3)


def model_of(body, shape=(1, 4, 6, 6)) -> Model:
    """A model whose ``main`` is ``body(emit, x)``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(lambda expr, name: builder.emit(expr, name_hint=name), x), name_hint="y")
        builder.emit_func_output(result)
    module: tvm.IRModule = builder.get()
    return Model("test", module, (TensorSpec("x", shape),), (TensorSpec("y", shape),), "")


def weight(*shape, binary=False):
    values = RNG.choice([-1, 1], shape) * 0.5 if binary else RNG.normal(size=shape)
    return relax.const(values.astype(np.float32))
