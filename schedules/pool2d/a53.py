"""Pooling of floats by lines of channels: which windows a micro-kernel serves, and its calls for a row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.pool import BLOCK, MOST, PoolRow
from bitkiln.schedules.workload import Pool

#: So many that the pixels of a window and the next one's fit the L1 cache.
_MOST_CHANNELS = 1024


def applies(window: Pool, size: tuple[int, int], channels: int, kernels: KernelSet) -> bool:
    """Whether a micro-kernel pools floats of an image of ``size`` (H, W): whole cache lines, and few taps."""
    if not kernels.pool or channels % BLOCK or channels > _MOST_CHANNELS or max(window.kernel) > MOST:
        return False
    if window.strides[1] > window.kernel[1] or min(window.out_size(*size)) < 1:
        return False
    return window.kind == "max" or not any(window.padding)


def emit_row(
    target: Any,
    to: Any,
    source: Any,
    size: tuple[int, int],
    window: Pool,
    channels: int,
    y: Any,
    kernel: Callable[..., PoolRow],
) -> PoolRow:
    """Emits output row ``y`` of pooling ``source``, a flat image of ``size`` (H, W), to the flat ``target`` from ``to`` on.

    ``kernel``: the set's; gives the micro-kernel that is called. A pixel outside of the image is replaced by the nearest one
    inside, which changes no maximum.
    """
    height, width = size
    pitch = width * channels
    rows = [y * window.strides[0] - window.padding[0] + tap for tap in range(window.kernel[0])]
    if window.padding[0] or window.padding[2]:
        rows = [tirx.min(tirx.max(row, 0), height - 1) for row in rows]
    micro = kernel(window.kind, window.kernel, window.strides[1], channels)
    for first, pixels, columns in _runs(window, size):
        offsets = [T.int64((column - columns[0]) * channels * 4) for column in columns]
        pointers = [T.address_of(source[row * pitch + columns[0] * channels]) for row in rows]
        T.evaluate(
            T.call_extern(
                "int32",
                micro.symbol,
                T.address_of(target[to + first * channels]),
                *_filled(pointers),
                *_filled(offsets),
                T.int64(pixels),
            )
        )
    return micro


def _filled(values: list[Any]) -> list[Any]:
    """As many arguments as the micro-kernel has."""
    return [*values, *values[-1:] * (MOST - len(values))]


def _runs(window: Pool, size: tuple[int, int]) -> list[tuple[int, int, list[int]]]:
    """Runs of output pixels whose windows are alike: the first, how many, and the first one's columns."""
    _, width = size
    found = []
    at = range(window.out_size(*size)[1])

    def firsts(x: int) -> list[int]:
        return [x * window.strides[1] - window.padding[1] + tap for tap in range(window.kernel[1])]

    # Each window that reaches over the edge is a run of its own.
    for _, group in groupby(at, lambda x: -1 if firsts(x)[0] >= 0 and firsts(x)[-1] < width else x):
        members = list(group)
        columns = [min(max(column, 0), width - 1) for column in firsts(members[0])]
        found.append((members[0], len(members), columns))
    return found
