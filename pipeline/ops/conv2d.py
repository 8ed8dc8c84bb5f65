"""``relax.bitkiln.conv2d`` and ``relax.bitkiln.bconv2d``: float and binary convolution with epilogue and pooling.

Both are NHWC with batch 1 and OHWI weights; ``bitkiln.schedules.workload.Conv2d`` states what they compute. ``padding`` is
top, left, bottom, right. ``operands`` follow data and weight: one for each step of the epilogue that takes one, then the
thresholds.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, pair, pool_of, register, shape_of, sides
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Conv2d, Pool


def conv2d(
    x: relax.Expr,
    weight: relax.Expr,
    *operands: relax.Expr,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    epilogue: tuple[Step, ...] = (),
    pool: Pool | None = None,
    out: str = "float32",
    sign_zero: int = 1,
    shift: bool = False,
    layout: str = "NHWC",
    whole: bool = False,
) -> Call:
    """x float32 [1, H, W, C], weight float32 [O, kh, kw, C/groups] -> float32 [1, H', W', O], or bits.

    With ``shift`` the last operand is added to x before its zero padding; with ``layout`` "NCHW" x is [1, C, H, W]. With
    ``whole`` the sums are whole numbers that have to be exact.
    """
    attrs = attributes(
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        epilogue=epilogue,
        pool=pool,
        out=out,
        sign_zero=sign_zero,
        shift=shift,
        layout=layout,
        whole=whole,
    )
    return Call(_CONV2D, [x, weight, *operands], attrs)


def bconv2d(
    bits: relax.Expr,
    weight_bits: relax.Expr,
    *operands: relax.Expr,
    channels: int,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
    epilogue: tuple[Step, ...] = (),
    pool: Pool | None = None,
    out: str = "float32",
    threshold: str = "",
    thresholds: int = 1,
    sign_zero: int = 1,
) -> Call:
    """bits uint8 [1, H, W, ceil(channels/8)], weight_bits uint8 [O, kh, kw, ceil(channels/groups/8)] -> float32 or bits.

    The sum is the integer dot product of the +-1 values; ``pad_value`` (+1, -1, or 0 for a true zero) is what padded taps
    hold. ``threshold`` "channel" or "element" compares the sum with int32 thresholds, the last operand; of
    several ``thresholds`` an odd number must be reached for a bit to be set.
    """
    attrs = attributes(
        channels=channels,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pad_value=pad_value,
        epilogue=epilogue,
        pool=pool,
        out=out,
        threshold=threshold,
        thresholds=thresholds,
        sign_zero=sign_zero,
    )
    return Call(_BCONV2D, [bits, weight_bits, *operands], attrs)


def bdense(bits: relax.Expr, weight_bits: relax.Expr, *operands: relax.Expr, channels: int) -> Call:
    """bits uint8 [1, 1, 1, ceil(channels/8)], weight_bits uint8 [O, 1, 1, ceil(channels/8)] -> float32 [1, 1, 1, O].

    A binary dense layer is the 1x1 binary convolution of a 1x1 image.
    """
    return bconv2d(bits, weight_bits, *operands, channels=channels)


def _describe_float(call: Call) -> Conv2d:
    layout = str(call.attrs["layout"])
    size = shape_of(call.args[0])
    height, width, channels = size[1:] if layout == "NHWC" else (*size[2:], size[1])
    plain = _describe(call, height, width, channels, binary=False, pad_value=0, threshold="")
    return replace(plain, shift=bool(call.attrs["shift"]), layout=layout, whole=bool(call.attrs["whole"]))


def _describe_binary(call: Call) -> Conv2d:
    _, height, width, _ = shape_of(call.args[0])
    attrs = call.attrs
    plain = _describe(
        call,
        height,
        width,
        int(attrs["channels"]),
        binary=True,
        pad_value=int(attrs["pad_value"]),
        threshold=str(attrs["threshold"]),
    )
    return replace(plain, thresholds=int(attrs["thresholds"]))


def _describe(
    call: Call, height: int, width: int, channels: int, *, binary: bool, pad_value: int, threshold: str
) -> Conv2d:
    out_channels, *kernel, _ = shape_of(call.args[1])
    attrs = call.attrs
    return Conv2d(
        height,
        width,
        channels,
        out_channels,
        pair(kernel),
        pair(attrs["strides"]),
        sides(attrs["padding"]),
        pair(attrs["dilation"]),
        int(attrs["groups"]),
        binary,
        pad_value,
        epilogue_of(call),
        pool_of(call),
        str(attrs["out"]),
        threshold,
        int(attrs["sign_zero"]),
    )


_CONV2D = register("conv2d", "Convolution with epilogue and pooling.", ("data", "weight"), _describe_float)
_BCONV2D = register("bconv2d", "Binary convolution on packed bits.", ("data", "weight"), _describe_binary)
