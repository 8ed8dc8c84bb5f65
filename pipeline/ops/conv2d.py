"""``relax.bitkiln.conv2d``, ``bconv2d`` and ``conv2d_transpose``: float, binary and transposed convolution with an epilogue.

All are NHWC with batch 1 and OHWI weights; ``bitkiln.schedules.workload`` states what they compute and what their attributes
mean. ``operands`` follow data and weight: one for each step of the epilogue that takes one, then the thresholds.
"""

from __future__ import annotations

from typing import Any, Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.register import image_size, ints, kernel_size, packed_size, register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, ConvTranspose2d, Pool, Signs


class _Windows(TypedDict, total=False):
    """What all convolutions have; ``padding`` is top, left, bottom, right."""

    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    epilogue: tuple[Step, ...]


class _Pooled(_Windows, total=False):
    """What float and binary convolutions have; ``out`` is "float32" or "bits"."""

    pool: Pool | None
    out: str
    sign_zero: int
    signs: tuple[Signs, ...]


class ConvAttributes(_Pooled, total=False):
    """Those of a float convolution."""

    shift: bool
    layout: str
    whole: bool
    parts: tuple[int, ...]
    begins: tuple[int, ...]
    halves: bool


class BinaryConvAttributes(_Pooled, total=False):
    """Those of a binary convolution; ``channels`` are those that the bits hold."""

    channels: Required[int]
    pad_value: int
    threshold: str
    thresholds: int


class TransposedConvAttributes(_Windows, total=False):
    """Those of a transposed convolution."""

    output_padding: tuple[int, int]


def conv2d(x: relax.Expr, weight: relax.Expr, *operands: relax.Expr, **attributes: Unpack[ConvAttributes]) -> Call:
    """x float32 [1, H, W, C], weight float32 [O, kh, kw, C/groups] -> float32 [1, H', W', O], or bits.

    With ``shift`` the last operand is added to x before its zero padding; with ``layout`` "NCHW" x is [1, C, H, W]. With
    ``whole`` the sums are whole numbers that have to be exact. With ``parts``, and ``begins`` as in ``concat``, x is the first
    of several images, and the others are the last operands.
    """
    return _CONV2D.call([x, weight, *operands], attributes)


def bconv2d(
    bits: relax.Expr, weight_bits: relax.Expr, *operands: relax.Expr, **attributes: Unpack[BinaryConvAttributes]
) -> Call:
    """bits uint8 [1, H, W, ceil(channels/8)], weight_bits uint8 [O, kh, kw, ceil(channels/groups/8)] -> float32 or bits.

    The sum is the integer dot product of the +-1 values; ``pad_value`` (+1, -1, or 0 for a true zero) is what padded taps
    hold. ``threshold`` "channel" or "element" compares the sum with int32 thresholds, the last operand; with
    several ``thresholds`` the bit is the exclusive or of the comparisons.
    """
    return _BCONV2D.call([bits, weight_bits, *operands], attributes)


def bdense(bits: relax.Expr, weight_bits: relax.Expr, *operands: relax.Expr, channels: int) -> Call:
    """bits uint8 [1, 1, 1, ceil(channels/8)], weight_bits uint8 [O, 1, 1, ceil(channels/8)] -> float32 [1, 1, 1, O].

    A binary dense layer is the 1x1 binary convolution of a 1x1 image.
    """
    return bconv2d(bits, weight_bits, *operands, channels=channels)


def conv2d_transpose(
    x: relax.Expr, weight: relax.Expr, *operands: relax.Expr, **attributes: Unpack[TransposedConvAttributes]
) -> Call:
    """x float32 [1, H, W, C], weight float32 [O, kh, kw, C/groups] -> float32 [1, H', W', O]."""
    return _CONV2D_TRANSPOSE.call([x, weight, *operands], attributes)


def _float_sizes(call: Call) -> dict[str, Any]:
    if len(call.attrs["parts"]):
        return _part_sizes(call)
    if str(call.attrs["layout"]) == "NHWC":
        return {**image_size(call), **kernel_size(call)}
    _, channels, height, width = shape_of(call.args[0])
    return {"height": height, "width": width, "channels": channels, **kernel_size(call)}


def _part_sizes(call: Call) -> dict[str, Any]:
    parts = ints(call.attrs["parts"])
    images = [call.args[0], *call.args[len(call.args) - len(parts) + 1 :]]
    widths = tuple(shape_of(image)[3] for image in images) if len(call.attrs["begins"]) else ()
    return {**image_size(call), "channels": sum(parts), **kernel_size(call), "widths": widths}


def _packed_sizes(call: Call) -> dict[str, Any]:
    return {**packed_size(call), **kernel_size(call)}


def _transposed_sizes(call: Call) -> dict[str, Any]:
    return {**image_size(call), **kernel_size(call)}


_ARGUMENTS = ("data", "weight")
_CONV2D = register("conv2d", "Convolution.", _ARGUMENTS, Conv2d, ConvAttributes, _float_sizes, binary=False)
_BCONV2D = register(
    "bconv2d", "Convolution of packed bits.", _ARGUMENTS, Conv2d, BinaryConvAttributes, _packed_sizes, binary=True
)
_CONV2D_TRANSPOSE = register(
    "conv2d_transpose",
    "Transposed convolution.",
    _ARGUMENTS,
    ConvTranspose2d,
    TransposedConvAttributes,
    _transposed_sizes,
)
