"""Where the bits of a binary convolution lie, and the integers that thresholds and true-zero padding turn into.

The convolution is a product of matrices of bits: a *patch*, all bytes of an output pixel's taps one after the other, with
the weights of each output channel. Spare bits are clear in both and count nothing. With ``count`` the number of bits that
differ, the accumulator is ``base - 2 * count``. The base is the number of bits; padding with a true zero reads clear bits,
and the base of a pixel makes up for what they counted. Pixels that miss the same taps share a *class*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bitkiln.schedules.workload import Conv2d, packed

#: Output channels side by side in a vector of 16-bit lanes.
LANES = 8
#: Counts are 16 bits wide, and a bound one above the greatest count must fit as well.
MAX_BITS = 65534


@dataclass(frozen=True)
class Geometry:
    """The shapes of the bit matrices of ``workload``. Pixels are filled up to a multiple of ``alignment`` bytes."""

    workload: Conv2d
    alignment: int = 1

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in a patch."""
        return -(-packed(self.workload.channels) // self.alignment) * self.alignment

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return self.workload.kernel[0] * self.workload.kernel[1]

    @property
    def channel_groups(self) -> int:
        """Vectors of LANES output channels, the last one filled up."""
        return -(-self.workload.out_channels // LANES)

    @property
    def pixels(self) -> int:
        """Output pixels of the convolution."""
        return self.workload.conv_size[0] * self.workload.conv_size[1]

    @property
    def padded(self) -> tuple[int, int, int]:
        """Height, width and bytes per pixel of the input with its border."""
        top, left, bottom, right = self.workload.padding
        return self.workload.height + top + bottom, self.workload.width + left + right, self.pixel_bytes

    @property
    def run_bytes(self) -> int:
        """Bytes of a patch that lie one after the other in the padded input: those of a kernel row, or of one tap."""
        dense = self.workload.dilation[1] == 1 or self.workload.kernel[1] == 1
        return self.pixel_bytes * (self.workload.kernel[1] if dense else 1)

    @cached_property
    def runs(self) -> np.ndarray:
        """Offset of each run of a patch from its first byte."""
        _, width, pixel_bytes = self.padded
        step_y, step_x = (step * size for step, size in zip(self.workload.dilation, (width, 1), strict=True))
        rows = np.arange(self.workload.kernel[0]) * step_y * pixel_bytes
        columns = np.arange(self.workload.kernel[1]) * step_x * pixel_bytes
        return (rows[:, None] + columns[None, :: self.run_bytes // pixel_bytes]).ravel().astype("int32")

    @cached_property
    def taps_at(self) -> np.ndarray:
        """Offset of each tap of a patch from its first byte."""
        inside = np.arange(self.taps // len(self.runs)) * self.pixel_bytes
        return (self.runs[:, None] + inside[None]).ravel().astype("int32")

    @cached_property
    def patches(self) -> np.ndarray:
        """Offset of each output pixel's patch in the padded input."""
        _, width, pixel_bytes = self.padded
        stride_y, stride_x = self.workload.strides
        y, x = np.mgrid[0 : self.workload.conv_size[0], 0 : self.workload.conv_size[1]]
        return ((y * stride_y * width + x * stride_x) * pixel_bytes).ravel().astype("int32")

    @cached_property
    def _missing(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct sets of taps that pixels miss, bool [class][taps], and each pixel's class."""
        work = self.workload
        outside = []
        for axis, size in enumerate((work.height, work.width)):
            start = np.arange(work.conv_size[axis])[:, None] * work.strides[axis] - work.padding[axis]
            at = start + np.arange(work.kernel[axis])[None] * work.dilation[axis]
            outside.append((at < 0) | (at >= size))
        rows, columns = outside
        missing = rows[:, None, :, None] | columns[None, :, None, :]
        sets, classes = np.unique(missing.reshape(self.pixels, self.taps), axis=0, return_inverse=True)
        return sets, classes.reshape(-1)

    @property
    def true_zeros(self) -> bool:
        """Whether padded taps contribute nothing, so that pixels differ."""
        return self.workload.pad_value == 0 and len(self._missing[0]) > 1

    @property
    def uniform_base(self) -> int | None:
        """The base of all pixels and channels, if it is one."""
        if self.workload.pad_value == 0 and self._missing[0].any():
            return None
        return self.taps * (self.workload.channels // self.workload.groups)

    @property
    def classes(self) -> np.ndarray:
        """Class of each output pixel, int32 [pixels]."""
        return self._missing[1].astype("int32") if self.true_zeros else np.zeros(self.pixels, "int32")

    def bases(self, weights: np.ndarray) -> np.ndarray:
        """The base of each class and output channel, int32 [class][O], for weights uint8 [O, kh, kw, bytes]."""
        if self.uniform_base is not None:
            return np.full((1, self.workload.out_channels), self.uniform_base, "int32")
        per_group = self.workload.channels // self.workload.groups
        total = self.taps * per_group
        sets = self._missing[0].astype("int64")
        set_bits = np.unpackbits(weights.reshape(*weights.shape[:1], self.taps, -1), axis=2).sum(axis=2, dtype="int64")
        present = total - sets.sum(axis=1) * per_group
        return (present[:, None] + 2 * sets @ set_bits.T).astype("int32")

    def bounds(self, weights: np.ndarray, thresholds: np.ndarray, dtype: str) -> np.ndarray:
        """Counts below which a threshold is reached: ``dtype`` [row][channel groups * LANES], 0 in spare lanes.

        There is a row for each class, or for each pixel where each has its thresholds; of several ``thresholds``, so many.
        """
        work = self.workload
        bases = self.bases(weights).astype("int64")
        if work.threshold == "element":
            bases = bases[self.classes]
        each = thresholds.reshape(work.thresholds, -1, work.out_channels).astype("int64")
        limits = ((bases - each) // 2 + 1).swapaxes(0, 1).reshape(-1, work.out_channels)
        table = np.zeros((len(limits), self.channel_groups * LANES), dtype)
        table[:, : work.out_channels] = np.clip(limits, 0, np.iinfo(dtype).max)
        return table

    @property
    def bound_rows(self) -> np.ndarray:
        """Row of each output pixel in the table of bounds, int32 [pixels]."""
        return np.arange(self.pixels, dtype="int32") if self.workload.threshold == "element" else self.classes

    def pack_lanes(self, weights: np.ndarray) -> np.ndarray:
        """uint8 [O, kh, kw, bytes] as [channel groups][LANES][bytes of a patch], spare channels clear."""
        out_channels, weight_bytes = len(weights), weights.shape[-1]
        lanes = np.zeros((self.channel_groups * LANES, self.taps, self.pixel_bytes), "uint8")
        lanes[:out_channels, :, :weight_bytes] = weights.reshape(out_channels, self.taps, weight_bytes)
        return lanes.reshape(self.channel_groups, LANES, -1)
