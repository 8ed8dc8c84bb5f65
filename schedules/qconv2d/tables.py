"""What the micro-kernels end sums of whole numbers with: a table of bytes for every 8 output channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.workload import QConv2d


def shifted_bias(workload: QConv2d, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The bias int32 [O] that makes sums of x of those of x - ``zero``; it may wrap round, as sums in 32 bits do."""
    sums = weight.astype(np.int64).sum(axis=(1, 2, 3))
    return (bias.astype(np.int64) - workload.zero * sums).astype(np.int32)


def firsts(channels: int) -> list[int]:
    """The first channel of each panel; where channels are no multiple, the last repeats some of the one before."""
    return [min(first, channels - CHANNELS) for first in range(0, channels, CHANNELS)]


def limited(workload: QConv2d) -> bool:
    """Whether results have other limits than int8."""
    return (workload.low, workload.high) != (-128, 127)


def of(workload: QConv2d, arrays: Sequence[np.ndarray], starts: Sequence[int] | None = None) -> np.ndarray:
    """The tables, int8, one after the other, as ``rescale`` reads them; ``arrays`` are weights, bias and factors.

    ``starts``: the first channel of each panel, where panels are others than ``firsts`` has.
    """
    bias, factor = shifted_bias(workload, arrays[0], arrays[1]), arrays[2].astype(np.float32)
    starts = starts or firsts(workload.out_channels)
    limits = ((workload.out_zero, np.int16), (workload.low, np.int8), (workload.high, np.int8))
    parts = [
        *(np.stack([values[first : first + CHANNELS] for first in starts]) for values in (bias, factor)),
        *(np.full((len(starts), CHANNELS), value, kind) for value, kind in limits),
    ]
    return np.concatenate([np.ascontiguousarray(part).view(np.int8) for part in parts], axis=1).ravel()
