"""Tensor-expression stages that plain definitions share: padding, epilogue, pooling, packing signs to bits.

All tensors are NHWC with batch 1. Slow and obviously right: what emitted kernels are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx

from bitkiln.schedules.steps import Step, expression, sign_bit
from bitkiln.schedules.workload import Conv2d, ConvTranspose2d, Pool, QConv2d, Signs, operand_shapes, packed


def operand_tensors(steps: Sequence[Step], size: tuple[int, int, int]) -> list[te.Tensor]:
    """One placeholder for each step that takes an operand, for a result of ``size`` (H, W, C)."""
    shapes = operand_shapes(tuple(steps), size)
    return [te.placeholder(shape, dtype, name=f"operand{i}") for i, (shape, dtype) in enumerate(shapes)]


def pad(data: te.Tensor, padding: tuple[int, int, int, int], value: tirx.PrimExpr) -> te.Tensor:
    """``data`` [1, H, W, C] with a border of ``value``; padding is top, left, bottom, right."""
    top, left, bottom, right = padding
    if not any(padding):
        return data
    _, height, width, channels = (int(extent) for extent in data.shape)

    def element(n: tirx.Var, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        inside = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
        return tirx.if_then_else(inside, data[n, y - top, x - left, c], value)

    return te.compute((1, height + top + bottom, width + left + right, channels), element, name="padded")


def side_by_side(images: Sequence[tuple[te.Tensor, int, int]], shape: tuple[int, ...], name: str) -> te.Tensor:
    """``images`` [1, H, W, ...] as one of ``shape``: of each the channels from its first one on, and how many."""

    def element(n: tirx.Var, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        end = shape[-1]
        value = None
        for image, first, count in reversed(images):
            begin = end - count
            own = image[n, y, x, c - begin + first]
            value = own if value is None else tirx.if_then_else(c < end, own, value)
            end = begin
        return value

    return te.compute(shape, element, name=name)


def convolve(workload: Conv2d | QConv2d, padded: te.Tensor, tap: Callable[..., tirx.PrimExpr], name: str) -> te.Tensor:
    """The sums of ``workload`` over the image ``padded``, [1, OH, OW, O]; ``tap(o, ry, rx, rc)`` is a weight, OHWI."""
    (stride_y, stride_x), (step_y, step_x) = workload.strides, workload.dilation
    out_per_group = workload.out_channels // workload.groups
    ry, rx, rc = taps(workload)

    def element(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.PrimExpr:
        channel = (o // out_per_group) * (workload.channels // workload.groups) + rc
        value = padded[n, y * stride_y + ry * step_y, x * stride_x + rx * step_x, channel]
        return te.sum(value * tap(o, ry, rx, rc), axis=[ry, rx, rc])

    return te.compute((1, *workload.conv_size, workload.out_channels), element, name=name)


def taps(workload: Conv2d | QConv2d | ConvTranspose2d) -> tuple[tirx.IterVar, tirx.IterVar, tirx.IterVar]:
    """Axes of a sum over the rows, columns and input channels of a group's kernel."""
    sizes = (*workload.kernel, workload.channels // workload.groups)
    ry, rx, rc = (te.reduce_axis((0, size), name) for size, name in zip(sizes, ("ry", "rx", "rc"), strict=True))
    return ry, rx, rc


def apply_epilogue(data: te.Tensor, steps: Sequence[Step], operands: Sequence[te.Tensor]) -> te.Tensor:
    """``data`` after ``steps``."""
    if not steps:
        return data
    return te.compute(
        data.shape, lambda n, y, x, c: expression(steps, data[n, y, x, c], operands, (y, x, c)), name="epilogue"
    )


def pool(data: te.Tensor, window: Pool) -> te.Tensor:
    """``data`` [1, H, W, C] after pooling."""
    _, height, width, channels = (int(extent) for extent in data.shape)
    shape = (1, *window.out_size(height, width), channels)
    ry, rx = (te.reduce_axis((0, extent), name) for extent, name in zip(window.kernel, ("ry", "rx"), strict=True))

    def tap(tensor: te.Tensor, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        return tensor[0, y * window.strides[0] + ry, x * window.strides[1] + rx, c]

    if window.kind == "max":
        padded = pad(data, window.padding, tirx.min_value(data.dtype))
        return te.compute(shape, lambda n, y, x, c: te.max(tap(padded, y, x, c), axis=[ry, rx]), name="pooled")
    padded = pad(data, window.padding, tirx.const(0, "float32"))
    total = te.compute(shape, lambda n, y, x, c: te.sum(tap(padded, y, x, c), axis=[ry, rx]), name="total")
    return te.compute(shape, lambda n, y, x, c: total[n, y, x, c] / window_size(window, (height, width), y, x))


def window_size(window: Pool, size: tuple[int, int], y: tirx.PrimExpr, x: tirx.PrimExpr) -> tirx.PrimExpr:
    """What the sum over the window at output position (y, x) is divided by, for an input of ``size`` (H, W)."""
    if window.count_include_pad:
        return tirx.const(window.kernel[0] * window.kernel[1], "float32")
    counts = []
    for at, kernel, stride, before, extent in zip(
        (y, x), window.kernel, window.strides, window.padding, size, strict=False
    ):
        first = at * stride - before
        counts.append(tirx.min(first + kernel, extent) - tirx.max(first, 0))
    return (counts[0] * counts[1]).astype("float32")


def pack_bits(bit: te.Tensor) -> te.Tensor:
    """Booleans [1, H, W, C] as uint8 [1, H, W, ceil(C/8)], least significant bit first."""
    _, height, width, channels = (int(extent) for extent in bit.shape)
    lane = te.reduce_axis((0, 8), "lane")

    def byte(n: tirx.Var, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        channel = c * 8 + lane
        inside = tirx.if_then_else(channel < channels, bit[n, y, x, tirx.min(channel, channels - 1)], False)
        return te.sum(inside.astype("uint8") << lane.var.astype("uint8"), axis=lane)

    return te.compute((1, height, width, packed(channels)), byte, name="bits")


def beside(
    data: te.Tensor, several: Sequence[Signs], size: tuple[int, int, int]
) -> tuple[list[te.Tensor], list[te.Tensor]]:
    """Placeholders for the operands of ``several`` signs of ``data``, [1, H, W, C] of ``size``; the bits of each."""
    operands = [operand_tensors(each.epilogue, size) for each in several]
    values = [apply_epilogue(data, each.epilogue, own) for each, own in zip(several, operands, strict=True)]
    bits = [signs(value, each.sign_zero) for each, value in zip(several, values, strict=True)]
    return [tensor for own in operands for tensor in own], bits


def signs(data: te.Tensor, sign_zero: int) -> te.Tensor:
    """The signs of ``data`` float32 [1, H, W, C] as bits."""
    bit = te.compute(data.shape, lambda n, y, x, c: sign_bit(data[n, y, x, c], sign_zero), name="sign")
    return pack_bits(bit)
