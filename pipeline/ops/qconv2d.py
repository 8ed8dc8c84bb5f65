"""``relax.bitkiln.qconv2d``: a convolution of whole numbers of 8 bits that gives such numbers."""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import image_size, kernel_size, register
from bitkiln.schedules.workload import QConv2d


class QuantizedConvAttributes(TypedDict, total=False):
    """As in ``bitkiln.schedules.workload.QConv2d``."""

    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    zero: int
    out_zero: int
    low: int
    high: int
    segment: int
    segments: int


def qconv2d(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr,
    factor: relax.Expr,
    **attributes: Unpack[QuantizedConvAttributes],
) -> Call:
    """x int8 [1, H, W, C], weight int16 [O, kh, kw, C/groups], bias int32 [O], factor float32 [O] -> int8 [1, H', W', O]."""
    return _QCONV2D.call([x, weight, bias, factor], attributes)


def _sizes(call: Call) -> dict[str, Any]:
    return {**image_size(call), **kernel_size(call)}


_QCONV2D = register(
    "qconv2d",
    "Convolution of whole numbers of 8 bits.",
    ("data", "weight", "bias", "factor"),
    QConv2d,
    QuantizedConvAttributes,
    _sizes,
)
