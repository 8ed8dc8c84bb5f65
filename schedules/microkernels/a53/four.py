"""Vector code on four registers side by side: as many independent operations as an addition takes cycles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: The vectors of a block.
VECTORS = range(4)
#: Floats of a block.
BLOCK = 16


def registers(count: int) -> tuple[range, ...]:
    """``count`` times four registers, from v0 on."""
    return tuple(range(first, first + 4) for first in range(0, 4 * count, 4))


def each(name: str, targets: Sequence[int], left: Sequence[int], right: Sequence[int]) -> list[str]:
    """An operation of two vectors, four times."""
    return [f"{name} v{t}.4s, v{a}.4s, v{b}.4s" for t, a, b in zip(targets, left, right, strict=True)]


def by_lane(name: str, targets: Sequence[int], left: Sequence[int], register: int, lane: int) -> list[str]:
    """A product with one number of ``register``, four times."""
    return [f"{name} v{t}.4s, v{a}.4s, v{register}.s[{lane}]" for t, a in zip(targets, left, strict=True)]


def copies(targets: Sequence[int], source: int) -> list[str]:
    """A whole register."""
    return [f"mov v{t}.16b, v{source}.16b" for t in targets]


def spread(targets: Sequence[int], register: int, lane: int) -> list[str]:
    """One number of a register, to all lanes."""
    return [f"dup v{t}.4s, v{register}.s[{lane}]" for t in targets]


def numbers(scratch: str, *values: tuple[int, float]) -> list[str]:
    """A register each with a number in all lanes, by way of w``scratch``."""
    return [line for register, value in values for line in (*_word(scratch, value), f"dup v{register}.4s, {scratch}")]


def lane(scratch: str, register: int, at: int, value: float) -> list[str]:
    """A number in one lane."""
    return [*_word(scratch, value), f"ins v{register}.s[{at}], {scratch}"]


def _word(scratch: str, value: float) -> list[str]:
    pattern = int(np.float32(value).view("uint32"))
    return [f"mov {scratch}, #{pattern & 0xFFFF}", f"movk {scratch}, #{pattern >> 16}, lsl #16"]
