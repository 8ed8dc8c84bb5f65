"""``relax.bitkiln.prelu``: PReLU whose slopes may differ per element, as ELL's networks have them.

Relax's own ``nn.prelu`` knows slopes per channel only. This operator has no kernel of its own: the passes fuse it into the
epilogue of the layer before it, and where there is none it is legalized to plain elementwise TIR.
"""

from __future__ import annotations

from tvm import relax, te, tirx, topi
from tvm.ir import Call, Op
from tvm.ir import _ffi_api as ir_ffi

from bitkiln.pipeline.ops.register import shape_of

PRELU = "relax.bitkiln.prelu"


def prelu(x: relax.Expr, slope: relax.Expr) -> Call:
    """x > 0 ? x : slope*x, for x float32 [1, H, W, C] and slope float32 [C] or [H, W, C]."""
    return Call(Op.get(PRELU), [x, slope])


def _infer_type(call: Call, _builder: relax.BlockBuilder) -> relax.TensorType:
    data, slope = (shape_of(arg) for arg in call.args)
    if len(data) != 4 or slope not in (data[3:], data[1:]):
        raise ValueError(f"{PRELU} takes slopes of shape {data[3:]} or {data[1:]}, got {slope}")
    return relax.TensorType(data, call.args[0].ty.dtype)


def _legalize(builder: relax.BlockBuilder, call: Call) -> relax.Expr:
    def compute(x: te.Tensor, slope: te.Tensor) -> te.Tensor:
        scaled = topi.multiply(x, slope)
        return te.compute(x.shape, lambda *i: tirx.Select(x(*i) > 0, x(*i), scaled(*i)), name="prelu")

    return builder.call_te(compute, *call.args, primfunc_name_hint="prelu")


def _register() -> None:
    ir_ffi.RegisterOp(PRELU, "PReLU with slopes per channel or per element.")
    op = Op.get(PRELU)
    op.set_num_inputs(2)
    op.add_argument("data", "Tensor", "")
    op.add_argument("slope", "Tensor", "")
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", _infer_type)
    op.set_attr("FLegalize", _legalize)


_register()
