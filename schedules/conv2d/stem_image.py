"""Rows of a first layer's image as its kernels read them: NHWC, shifted where the workload says so, with zeros around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument
from bitkiln.schedules.workload import Conv2d


class ImageRows:
    """Copies rows of the data of ``workload``, or of a group of its channels."""

    def __init__(self, workload: Conv2d) -> None:
        self.workload = workload
        _, left, _, right = workload.padding
        self.channels = workload.channels // workload.groups
        row = (left + workload.width + right) * self.channels
        #: Floats of a row with its border: an even number, since loads of 64 bits that straddle their bounds take longer.
        self.pitch = row + row % 2

    def shift_argument(self, index: int) -> Argument:
        """The shift of each float of a row, made of argument ``index`` of the workload."""
        return Argument((index,), (self.workload.width * self.workload.channels,), "float32", self.pack_shift)

    def pack_shift(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The shift of each float of an image row."""
        return np.tile(arrays[0], self.workload.width)

    def fill(self, image: Any, to: Any, data: Any, y: Any, group: Any, shift: Any) -> None:
        """Row ``y`` of the group's ``data``, or zeros where it has no such row, with its border left and right.

        ``shift``: what ``pack_shift`` made, where the workload has one.
        """
        work = self.workload
        left = work.padding[1] * self.channels
        end = left + work.width * self.channels
        with T.If(tirx.all(y >= 0, y < work.height)):
            with T.Then():
                loops.fill(image, to, left)
                self._copy(image, to + left, data, y, group, shift)
                loops.fill(image, to + end, self.pitch - end)
            with T.Else():
                loops.fill(image, to, self.pitch)

    def fill_pixels(self, image: Any, to: Any, data: Any, y: Any, first: int, count: int, shift: Any) -> None:
        """As ``fill``, but ``count`` pixels from ``first`` on, of the row with its border; beyond it are more zeros."""
        work = self.workload
        left = work.padding[1]
        begin = min(max(first, left), left + work.width)
        end = max(begin, min(first + count, left + work.width))
        with T.If(tirx.all(y >= 0, y < work.height)):
            with T.Then():
                loops.fill(image, to, (begin - first) * self.channels)
                self._copy_pixels(
                    image, to + (begin - first) * self.channels, data, y, (begin - left, end - left), shift
                )
                loops.fill(image, to + (end - first) * self.channels, (first + count - end) * self.channels)
            with T.Else():
                loops.fill(image, to, count * self.channels)

    def _copy(self, image: Any, to: Any, data: Any, y: Any, group: Any, shift: Any) -> None:
        work = self.workload
        if work.groups > 1:
            with T.serial(work.width) as x:
                start = (y * work.width + x) * work.channels + group * self.channels
                loops.copy(image, to + x * self.channels, data, start, self.channels)
            return
        self._copy_pixels(image, to, data, y, (0, work.width), shift)

    def _copy_pixels(self, image: Any, to: Any, data: Any, y: Any, pixels: tuple[int, int], shift: Any) -> None:
        """Pixels from the first to before the second of row ``y``."""
        work, (begin, end) = self.workload, pixels

        def store(at: Any, source: Any) -> None:
            value = data[source] + shift[begin * work.channels + at] if work.shift else data[source]
            T.buffer_store(image, value, [to + at])

        if work.layout == "NHWC":
            first = (y * work.width + begin) * work.channels
            loops.sweep((end - begin) * work.channels, lambda i: store(i, first + i))
            return

        def interleave(channel: int) -> None:
            start = channel * work.height * work.width + y * work.width + begin
            loops.sweep(end - begin, lambda x: store(x * work.channels + channel, start + x))

        for channel in range(work.channels):
            interleave(channel)
