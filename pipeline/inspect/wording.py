"""Figures, shapes and operations in words for people."""

from __future__ import annotations

from collections.abc import Sequence

from bitkiln.pipeline.inspect.result import Row
from bitkiln.pipeline.support.text import printable


def milliseconds(value: float) -> str:
    """A time for people, four digits of it."""
    return f"{value:.4g} ms"


def times(shape: Sequence[int]) -> str:
    """A shape as text, "?" for what is not known."""
    return "×".join("?" if extent < 0 else str(extent) for extent in shape)


def image(shape: Sequence[int]) -> str:
    """A shape without its batch of one."""
    return times(shape[1:] if len(shape) > 1 and shape[0] == 1 else shape)


def logical(shape: Sequence[int], bits: int) -> tuple[int, ...]:
    """The shape of a tensor that is ``shape`` in memory, where ``bits`` channels are packed into its last axis."""
    return (*shape[:-1], bits) if bits else tuple(shape)


def operation(row: Row) -> str:
    """What a row does, with its kernel: "conv2d 3x3/2 g4"."""
    words = [row.kind]
    if row.kernel:
        strides = sorted(set(row.strides))
        words.append("x".join(map(str, row.kernel)) + ("" if strides == [1] else "/" + "x".join(map(str, strides))))
    words += [f"d{max(row.dilation)}"] if row.dilation and max(row.dilation) > 1 else []
    words += [f"g{row.groups}"] if row.groups > 1 else []
    return " ".join(words)


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many there are more."""
    shown = ", ".join(printable(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
