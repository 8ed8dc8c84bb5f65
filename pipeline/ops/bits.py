"""Bit tensors in numpy: the packing that every kernel and the reference share (see ``bitkiln.schedules.workload``)."""

from __future__ import annotations

import numpy as np


def pack_bits(signs: np.ndarray) -> np.ndarray:
    """Pack the last axis: anything greater than zero becomes a set bit.

    ``signs`` is bool or numeric [..., C] (+1/-1 or 1/0); the result is uint8 [..., ceil(C/8)], least significant bit
    first, tail bits clear.
    """
    return np.packbits(signs > 0, axis=-1, bitorder="little")


def unpack_bits(bits: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [..., ceil(C/8)] -> int8 [..., channels] of +1 and -1."""
    plain = np.unpackbits(bits, axis=-1, count=channels, bitorder="little")
    return (2 * plain.astype(np.int8) - 1).astype(np.int8)
