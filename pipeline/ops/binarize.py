"""``relax.bitkiln.binarize``: the signs of an activation as packed bits."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, register, shape_of
from bitkiln.schedules.workload import Binarize, Step


def binarize(x: relax.Expr, *operands: relax.Expr, sign_zero: int = 1, epilogue: tuple[Step, ...] = ()) -> Call:
    """x float32 [1, H, W, C] -> uint8 [1, H, W, ceil(C/8)]; ``sign_zero`` (+1 or -1) is the sign of an exact zero."""
    return Call(_OP, [x, *operands], attributes(sign_zero=sign_zero, epilogue=epilogue))


def _describe(call: Call) -> Binarize:
    _, height, width, channels = shape_of(call.args[0])
    return Binarize(height, width, channels, epilogue_of(call), int(call.attrs["sign_zero"]))


_OP = register("binarize", "Signs of an activation as packed bits.", ("data",), _describe)
