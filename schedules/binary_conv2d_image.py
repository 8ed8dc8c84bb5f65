"""The input of a binary convolution with its border, as the kernels read it."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.binary_conv2d_geometry import Geometry


def padded(where: Geometry, data: Any, spare: int = 0) -> Any:
    """Emits a copy of ``data`` uint8 [1, H, W, bytes] with its border and ``spare`` readable bytes behind it, flat.

    A border of true zeros holds clear bits, like one of -1. Without border and spare bytes it is ``data`` itself.
    """
    work = where.workload
    top, left, _, right = work.padding
    source = loops.flat(data, work.height * work.width * where.pixel_bytes, "uint8")
    if not any(work.padding) and not spare:
        return source
    height, width, pixel_bytes = where.padded
    pitch, inner = width * pixel_bytes, work.width * pixel_bytes
    copy = T.alloc_buffer((height * pitch + spare,), "uint8")
    with T.parallel(height) as y:
        start = y * pitch

        def row() -> None:
            _border(where, copy, start, left)
            first = (y - top) * inner
            loops.sweep(inner, lambda i: T.buffer_store(copy, source[first + i], [start + left * pixel_bytes + i]))
            _border(where, copy, start + (left + work.width) * pixel_bytes, right)

        if height == work.height:
            row()
        else:
            with T.If(tirx.all(y >= top, y < top + work.height)):
                with T.Then():
                    row()
                with T.Else():
                    _border(where, copy, start, width)
    return copy


def _border(where: Geometry, copy: Any, start: Any, pixels: int) -> None:
    """Emits ``pixels`` pixels of border from byte ``start`` on."""
    if not pixels:
        return
    ones = where.workload.pad_value == 1
    channels, pixel_bytes = where.workload.channels, where.pixel_bytes
    value = tirx.const(0xFF if ones else 0, "uint8")
    loops.sweep(pixels * pixel_bytes, lambda i: T.buffer_store(copy, value, [start + i]))
    if ones and channels % 8:
        # The spare bits of a pixel's last byte are clear everywhere.
        last = tirx.const((1 << channels % 8) - 1, "uint8")
        with T.serial(pixels) as pixel:
            T.buffer_store(copy, last, [start + pixel * pixel_bytes + pixel_bytes - 1])
