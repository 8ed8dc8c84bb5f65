"""``relax.bitkiln.conv2d_transpose``: transposed convolution with its epilogue."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, pair, register, shape_of, sides
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import ConvTranspose2d


def conv2d_transpose(
    x: relax.Expr,
    weight: relax.Expr,
    *operands: relax.Expr,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    output_padding: tuple[int, int] = (0, 0),
    epilogue: tuple[Step, ...] = (),
) -> Call:
    """x float32 [1, H, W, C], weight float32 [O, kh, kw, C/groups] -> float32 [1, H', W', O]."""
    attrs = attributes(
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        epilogue=epilogue,
    )
    return Call(_OP, [x, weight, *operands], attrs)


def _describe(call: Call) -> ConvTranspose2d:
    _, height, width, channels = shape_of(call.args[0])
    out_channels, *kernel, _ = shape_of(call.args[1])
    attrs = call.attrs
    return ConvTranspose2d(
        height,
        width,
        channels,
        out_channels,
        pair(kernel),
        pair(attrs["strides"]),
        sides(attrs["padding"]),
        pair(attrs["dilation"]),
        int(attrs["groups"]),
        pair(attrs["output_padding"]),
        epilogue_of(call),
    )


_OP = register("conv2d_transpose", "Transposed convolution with epilogue.", ("data", "weight"), _describe)
