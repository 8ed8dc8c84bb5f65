"""The input of a binary convolution with its border, as the kernels read it."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.bconv2d.geometry import Geometry
from bitkiln.schedules.workload import packed


def padded(where: Geometry, data: Any) -> Any:
    """Emits a copy of ``data`` uint8 [1, H, W, bytes] with its border, flat.

    A border of true zeros holds clear bits, like one of -1. Where nothing is to be added it is ``data`` itself.
    """
    work = where.workload
    top, left, _, right = work.padding
    source = loops.flat(data, work.height * work.width * packed(work.channels), "uint8")
    height, width, pixel_bytes = where.padded
    if not any(work.padding) and pixel_bytes == packed(work.channels):
        return source
    pitch = width * pixel_bytes
    copy = T.alloc_buffer((height * pitch,), "uint8")
    with T.parallel(height) as y:
        start = y * pitch

        def row() -> None:
            _border(where, copy, start, left)
            _copy_row(where, copy, start + left * pixel_bytes, source, y - top)
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


def _copy_row(where: Geometry, copy: Any, to: Any, source: Any, y: Any) -> None:
    """Emits row ``y`` of ``source`` at byte ``to``, each pixel filled up with clear bits."""
    width, given, wanted = where.workload.width, packed(where.workload.channels), where.pixel_bytes
    first = y * (width * given)
    if given == wanted:
        loops.sweep(width * given, lambda i: T.buffer_store(copy, source[first + i], [to + i]))
        return
    with T.serial(width) as x:
        loops.sweep(given, lambda i: T.buffer_store(copy, source[first + x * given + i], [to + x * wanted + i]))
        for i in range(given, wanted):
            T.buffer_store(copy, tirx.const(0, "uint8"), [to + x * wanted + i])


def _border(where: Geometry, copy: Any, start: Any, pixels: int) -> None:
    """Emits ``pixels`` pixels of border from byte ``start`` on."""
    if not pixels:
        return
    ones = where.workload.pad_value == 1
    channels, pixel_bytes = where.workload.channels, where.pixel_bytes
    value = tirx.const(0xFF if ones else 0, "uint8")
    loops.sweep(pixels * pixel_bytes, lambda i: T.buffer_store(copy, value, [start + i]))
    if not ones:
        return
    # The spare bits of a pixel are clear everywhere.
    for byte in range(channels // 8, pixel_bytes):
        rest = (1 << channels % 8) - 1 if byte == channels // 8 else 0
        with T.serial(pixels) as pixel:
            T.buffer_store(copy, tirx.const(rest, "uint8"), [start + pixel * pixel_bytes + byte])
