"""``relax.bitkiln.prelu`` and ``relax.bitkiln.hardswish``: activations that Relax has no operator for.

Relax's own ``nn.prelu`` knows slopes per channel only; ELL's networks have one per element. These operators have no kernel of
their own: the passes fuse them into the epilogue of the layer before, and where there is none they are legalized to plain
elementwise TIR.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te, topi
from tvm.ir import Call, Op
from tvm.ir import _ffi_api as ir_ffi

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.schedules.steps import STEPS


def prelu(x: relax.Expr, slope: relax.Expr) -> Call:
    """x > 0 ? x : slope*x; ``slope`` broadcasts to the shape of ``x``, so [C] and [H, W, C] fit an image [1, H, W, C]."""
    return Call(_PRELU, [x, slope])


def hardswish(x: relax.Expr) -> Call:
    """x * clip(x/6 + 0.5, 0, 1)."""
    return Call(_HARDSWISH, [x])


def _prelu_type(call: Call, _builder: relax.BlockBuilder) -> relax.TensorType:
    data, slope = (shape_of(arg) for arg in call.args)
    if np.broadcast_shapes(data, slope) != data:
        raise ValueError(f"slopes of shape {slope} do not broadcast to {data}")
    return relax.TensorType(data, call.args[0].ty.dtype)


def _hardswish_type(call: Call, _builder: relax.BlockBuilder) -> relax.TensorType:
    return relax.TensorType(shape_of(call.args[0]), call.args[0].ty.dtype)


def _prelu_tir(x: te.Tensor, slope: te.Tensor) -> te.Tensor:
    wide = topi.broadcast_to(slope, x.shape)
    return te.compute(x.shape, lambda *i: STEPS["prelu"].tir(x(*i), wide(*i), ()), name="prelu")


def _hardswish_tir(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *i: STEPS["hardswish"].tir(x(*i), None, ()), name="hardswish")


def _register(name: str, doc: str, arguments: tuple[str, ...], infer_type: Callable, compute: Callable) -> Op:
    full_name = f"relax.bitkiln.{name}"
    ir_ffi.RegisterOp(full_name, doc)
    op = Op.get(full_name)
    op.set_num_inputs(len(arguments))
    for argument in arguments:
        op.add_argument(argument, "Tensor", "")
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", infer_type)
    op.set_attr("FLegalize", lambda builder, call: builder.call_te(compute, *call.args, primfunc_name_hint=name))
    return op


_PRELU = _register("prelu", "PReLU with slopes that broadcast.", ("data", "slope"), _prelu_type, _prelu_tir)
_HARDSWISH = _register("hardswish", "Hard swish.", ("data",), _hardswish_type, _hardswish_tir)
