"""``relax.bitkiln.pool2d`` and ``relax.bitkiln.bmaxpool2d``: pooling of floats and whole numbers, and of bits."""

from __future__ import annotations

from typing import Any, Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import image_size, packed_size, register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Pool, Pool2d, Signs


class PoolAttributes(TypedDict, total=False):
    """As in ``bitkiln.schedules.workload.Pool2d``."""

    pool: Required[Pool]
    epilogue: tuple[Step, ...]
    out: str
    sign_zero: int
    signs: tuple[Signs, ...]


class PackedPoolAttributes(TypedDict):
    """``channels`` are those that the bits hold."""

    channels: int
    pool: Pool


def pool2d(x: relax.Expr, *operands: relax.Expr, **attributes: Unpack[PoolAttributes]) -> Call:
    """x float32 [1, H, W, C] -> float32 [1, H', W', C], or its signs as bits; the epilogue follows the pooling.

    The maximum of x int8 is int8, without an epilogue.
    """
    return _POOL2D.call([x, *operands], attributes)


def bmaxpool2d(bits: relax.Expr, *invert: relax.Expr, **attributes: Unpack[PackedPoolAttributes]) -> Call:
    """The bitwise OR over each window: bits uint8 [1, H, W, ceil(channels/8)] -> uint8 [1, H', W', ceil(channels/8)].

    ``invert``, if given, is uint8 [ceil(channels/8)]: the result's bits are exclusive-ored with it.
    """
    return _BMAXPOOL2D.call([bits, *invert], attributes)


def _sizes(call: Call) -> dict[str, Any]:
    return {**image_size(call), "whole": str(call.args[0].ty.dtype) == "int8"}


def _packed(call: Call) -> dict[str, Any]:
    return {**packed_size(call), "invert": len(call.args) > 1}


_POOL2D = register("pool2d", "Maximum or average pooling.", ("data",), Pool2d, PoolAttributes, _sizes, bits=False)
_BMAXPOOL2D = register(
    "bmaxpool2d", "Maximum pooling of bits.", ("data",), Pool2d, PackedPoolAttributes, _packed, bits=True, out="bits"
)
