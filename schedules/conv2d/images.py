"""The images that a convolution's input consists of, side by side along the channels: read where they are, joined nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument
from bitkiln.schedules.workload import Conv2d, argument_specs

#: Channels that every piece is a multiple of: what micro-kernels and transforms take at a time.
STEP = 4


@dataclass(frozen=True)
class Piece:
    """Channels ``begin`` and after it of the input: ``count`` channels from ``first`` on of an image of ``width`` channels."""

    begin: int
    count: int
    first: int
    width: int


def pieces(workload: Conv2d) -> tuple[Piece, ...]:
    """What the input of ``workload`` consists of."""
    parts = workload.parts or (workload.channels,)
    begins, widths = workload.begins or (0,) * len(parts), workload.widths or parts
    at = [sum(parts[:number]) for number in range(len(parts))]
    return tuple(map(Piece, at, parts, begins, widths))


def can_read(workload: Conv2d) -> bool:
    """Whether all kernels of ``workload`` can read its ``parts`` where they are.

    A kernel that copies no pixels reaches all pieces of one from a pointer: they must be of one size, in images of one size.
    """
    if workload.binary or workload.groups > 1 or workload.shift or workload.layout != "NHWC" or workload.whole:
        return False
    if workload.signs:
        return False
    alike = len({(piece.count, piece.width) for piece in pieces(workload)}) == 1
    aligned = all(piece.count % STEP == piece.first % STEP == piece.width % STEP == 0 for piece in pieces(workload))
    return aligned and (alike or not _pointwise(workload))


def joined(workload: Conv2d) -> Conv2d:
    """``workload`` as if its input were one image."""
    return replace(workload, parts=(), begins=(), widths=())


def arguments(workload: Conv2d) -> list[Argument]:
    """The images as arguments of a kernel, in order."""
    behind = len(argument_specs(workload)) - len(workload.parts) + 1
    sources = [0, *(behind + number for number in range(len(workload.parts) - 1))]
    return [Argument((source,), *workload.shapes[source]) for source in sources]


def read_in_place(workload: Conv2d) -> bool:
    """Whether micro-kernels go from piece to piece by themselves."""
    return bool(workload.parts) and _pointwise(workload)


class Images:
    """The pieces of ``workload`` in ``buffers``, those of ``arguments``, as flat floats."""

    def __init__(self, workload: Conv2d, buffers: Sequence[Any]) -> None:
        self.pieces = pieces(workload)
        pixels = workload.height * workload.width
        self.buffers = [
            loops.flat(buffer, pixels * piece.width) for buffer, piece in zip(buffers, self.pieces, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[Any, Piece]]:
        """The buffers with what of them is read."""
        return iter(zip(self.buffers, self.pieces, strict=True))

    def copy_pixel(self, target: Any, to: Any, pixel: Any) -> None:
        """All channels of ``pixel``."""
        for buffer, piece in zip(self.buffers, self.pieces, strict=True):
            loops.copy(target, to + piece.begin, buffer, pixel * piece.width + piece.first, piece.count)

    def element(self, pixel: Any, channel: int, at: Any) -> Any:
        """Channel ``channel + at`` of ``pixel``; no end of a piece lies between."""
        number, piece = next(
            (number, piece)
            for number, piece in enumerate(self.pieces)
            if piece.begin <= channel < piece.begin + piece.count
        )
        return self.buffers[number][pixel * piece.width + piece.first + (channel - piece.begin) + at]


def _pointwise(workload: Conv2d) -> bool:
    return workload.kernel == (1, 1) and not any(workload.padding)
