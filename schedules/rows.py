"""Sums and maxima over rows of adjacent floats, as statements of the IR builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.loops import LANES

#: Rows that a thread takes at a time, at least so many floats.
_SHARE = 2048


def shared(rows: int, columns: int, body: Callable[[Any], None]) -> None:
    """Runs ``body(row)`` for all rows, in parallel where they are worth it."""
    together = min(rows, max(1, _SHARE // columns))
    with T.parallel(-(-rows // together)) as part, T.serial(together) as row:
        index = part * together + row
        if rows % together:
            with T.If(index < rows), T.Then():
                body(index)
        else:
            body(index)


def fold(
    extent: int,
    value: Callable[[Any], tirx.PrimExpr],
    combine: Callable[[Any, Any], tirx.PrimExpr],
    start: tirx.PrimExpr,
    lanes: int = LANES,
) -> Any:
    """``value(i)`` for all i < ``extent``, combined in any order, as a number with a name; ``value`` may store on its way."""
    parts = T.alloc_buffer((lanes,), "float32", scope="local")
    for lane in range(lanes):
        T.buffer_store(parts, start, [lane])
    done = 0
    width = lanes
    while width:
        count = (extent - done) // width
        if count:
            first = done
            with T.serial(count) as block, T.vectorized(width) as lane:
                T.buffer_store(parts, combine(parts[lane], value(first + block * width + lane)), [lane])
            done += count * width
        width = width // 2 if width > 4 else (1 if width == 4 else 0)
    left = lanes
    while left > 1:
        left //= 2
        for lane in range(left):
            T.buffer_store(parts, combine(parts[lane], parts[lane + left]), [lane])
    return T.bind(parts[0])
