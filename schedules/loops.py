"""Loop nests that kernels are composed of, as statements of the IR builder: padding, epilogue, pooling, packing signs.

Buffers are flat float32 unless said otherwise; images in them are [H][W][C].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.definition import window_size
from bitkiln.schedules.kernel import Argument, Constant
from bitkiln.schedules.steps import EXPONENTIALS, Step, expression, sign_bit
from bitkiln.schedules.workload import Conv2d, Pool, packed

#: A buffer of the IR builder.
Buffer = Any
#: Vector lanes handled at once: four 128-bit registers, so that LLVM has independent operations to fill latencies with.
LANES = 16
#: Lanes of what needs many registers for each vector, exponentials: more would be spilled to the stack.
_FEW_LANES = 8


def parameters(arguments: Sequence[Argument | Constant]) -> list[Buffer]:
    """Declares the parameters of the kernel under construction, without the output."""
    described = [
        (arg.shape, arg.dtype) if isinstance(arg, Argument) else (arg.array.shape, str(arg.array.dtype))
        for arg in arguments
    ]
    return [T.arg(f"a{i}", T.buffer(shape, dtype)) for i, (shape, dtype) in enumerate(described)]


def flat(buffer: Buffer, size: int, dtype: str = "float32") -> Buffer:
    """A one-dimensional view of an argument."""
    return T.decl_buffer((size,), dtype, data=buffer.data)


#: Marks a parallel loop each round of which is a task of its own: threads then work on neighbours at any time, and share what
#: these have in common in the L2 cache. Else a thread gets runs of rounds.
ONE_BY_ONE = "bitkiln.one_by_one"


def one_by_one(extent: Any) -> Any:
    """A parallel loop whose rounds are handed out one by one, in order."""
    return T.parallel(extent, annotations={ONE_BY_ONE: 1})


def sweep(extent: int, body: Callable[[Any], None], lanes: int = LANES) -> None:
    """Runs ``body(index)`` for 0 <= index < extent, vectorised: whole vectors of ``lanes``, then narrower ones."""
    first = 0
    while extent - first >= 4:
        width = min(lanes, 1 << (extent - first).bit_length() - 1)
        count = (extent - first) // width
        with T.serial(count) as block, T.vectorized(width) as lane:
            body(first + block * width + lane)
        first += count * width
    for index in range(first, extent):
        body(index)


def fill(target: Buffer, start: Any, extent: int, value: float = 0.0) -> None:
    """Sets ``extent`` elements from ``start`` on."""
    sweep(extent, lambda i: T.buffer_store(target, tirx.const(value, "float32"), [start + i]))


def claim(target: Buffer, start: Any, extent: int) -> None:
    """Streams some value into ``extent`` elements of an output that is about to be computed in another order.

    Lines that are written whole and in order need not be read from memory first; lines written in pieces do. (Not zeros:
    those would become a call of memset.)
    """
    fill(target, start, extent, 1.0)


def copy(target: Buffer, to: Any, source: Buffer, start: Any, extent: int) -> None:
    """Copies ``extent`` elements."""
    sweep(extent, lambda i: T.buffer_store(target, source[start + i], [to + i]))


def pad_row(
    padded: Buffer, to: Any, data: Buffer, y: Any, size: tuple[int, int, int], padding: tuple[int, int, int, int]
) -> None:
    """Writes row ``y`` (0 <= y < top + H + bottom) of the image ``data`` of ``size`` (H, W, C) with its zero border."""
    height, width, channels = size
    top, left, bottom, right = padding
    row = (left + width + right) * channels

    def inner() -> None:
        fill(padded, to, left * channels)
        copy(padded, to + left * channels, data, (y - top) * width * channels, width * channels)
        fill(padded, to + (left + width) * channels, right * channels)

    if not (top or bottom):
        inner()
        return
    with T.If(tirx.all(y >= top, y < top + height)):
        with T.Then():
            inner()
        with T.Else():
            fill(padded, to, row)


def apply_epilogue(
    target: Buffer,
    to: Any,
    source: Buffer,
    start: Any,
    extent: int,
    steps: Sequence[Step],
    operands: Sequence[Buffer],
    pixel: tuple[Any, Any],
    channel: Any,
) -> None:
    """target[to + i] = epilogue(source[start + i]) for ``extent`` channels from ``channel`` on, at ``pixel`` (y, x)."""

    def element(i: Any) -> None:
        value = expression(steps, source[start + i], operands, (*pixel, channel + i))
        T.buffer_store(target, value, [to + i])

    sweep(extent, element, _lanes(steps))


def _lanes(steps: Sequence[Step]) -> int:
    return _FEW_LANES if any(step.op in EXPONENTIALS for step in steps) else LANES


def apply_steps(
    result: Buffer,
    to: Any,
    first: Any,
    pixels: int,
    size: tuple[int, int],
    steps: Sequence[Step],
    operands: Sequence[Buffer],
) -> None:
    """``steps`` on ``pixels`` neighbours, in place; ``size`` is (width, channels).

    The first is pixel ``first`` of the layer's result; its channels begin at ``to`` in ``result``, which may hold a part of it.
    """
    width, channels = size
    if any(step.operand for step in steps):
        with T.serial(pixels) as index:
            pixel = first + index
            at = to + index * channels
            apply_epilogue(result, at, result, at, channels, steps, operands, (pixel // width, pixel % width), 0)
        return

    def element(i: Any) -> None:
        T.buffer_store(result, expression(steps, result[to + i], (), (0, 0, 0)), [to + i])

    sweep(pixels * channels, element, _lanes(steps))


def pool_pixel(
    target: Buffer, to: Any, source: Buffer, size: tuple[int, int, int], window: Pool, pixel: tuple[Any, Any]
) -> None:
    """Writes output pixel (y, x) of pooling ``source``, an image of ``size`` (H, W, C), to ``target`` at ``to``."""
    height, width, channels = size
    largest = window.kind == "max"
    combine = tirx.max if largest else (lambda a, b: a + b)
    start = tirx.min_value("float32") if largest else tirx.const(0, "float32")
    firsts = [at * stride - before for at, stride, before in zip(pixel, window.strides, window.padding, strict=False)]
    fill(target, to, channels, float(start))
    with T.serial(window.kernel[0]) as ry, T.serial(window.kernel[1]) as rx:
        y, x = firsts[0] + ry, firsts[1] + rx

        def tap() -> None:
            sweep(
                channels,
                lambda c: T.buffer_store(
                    target, combine(target[to + c], source[(y * width + x) * channels + c]), [to + c]
                ),
            )

        if any(window.padding):
            with T.If(tirx.all(y >= 0, y < height, x >= 0, x < width)), T.Then():
                tap()
        else:
            tap()
    if not largest:
        scale = tirx.const(1, "float32") / window_size(window, (height, width), *pixel)
        sweep(channels, lambda c: T.buffer_store(target, target[to + c] * scale, [to + c]))


def pack_signs(target: Buffer, to: Any, source: Buffer, start: Any, channels: int, sign_zero: int) -> None:
    """The signs of ``channels`` floats from ``start`` on as bits: ceil(channels/8) bytes of ``target`` uint8 at ``to``."""

    def byte(index: Any, lanes: int) -> None:
        value: Any = tirx.const(0, "uint8")
        for lane in range(lanes):
            bit = sign_bit(source[start + index * 8 + lane], sign_zero)
            value = value | tirx.Select(bit, tirx.const(1 << lane, "uint8"), tirx.const(0, "uint8"))
        T.buffer_store(target, value, [to + index])

    with T.serial(channels // 8) as index:
        byte(index, 8)
    if channels % 8:
        byte(channels // 8, channels % 8)


def finish(workload: Conv2d, result: Buffer, out: Buffer, pooled: bool = False) -> None:
    """Pools ``result``, the convolution after its epilogue, or packs its signs, or both, into ``out``.

    ``pooled``: it is pooled already, where ``workload`` pools, and lacks its signs alone.
    """
    channels = workload.out_channels
    conv_size = (*workload.conv_size, channels)
    height, width = workload.out_size
    bits = workload.out == "bits"
    target = flat(out, math.prod(workload.shapes[-1][0]), workload.shapes[-1][1])
    with T.parallel(height) as y, T.serial(width) as x:
        pixel = y * width + x
        if workload.pool and not bits:
            pool_pixel(target, pixel * channels, result, conv_size, workload.pool, (y, x))
        elif workload.pool and not pooled:
            window = T.alloc_buffer((channels,), "float32")
            pool_pixel(window, 0, result, conv_size, workload.pool, (y, x))
            pack_signs(target, pixel * packed(channels), window, 0, channels, workload.sign_zero)
        else:
            pack_signs(target, pixel * packed(channels), result, pixel * channels, channels, workload.sign_zero)
