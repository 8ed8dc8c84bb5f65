"""Depthwise convolution for the Cortex-A53 that reads its image where it lies: no block is copied, no zero border added.

Taps that fall outside the image are left out, which adds what a zero would: tiles at a border have micro-kernels of their own.
A tile goes through all channels, four vectors (a cache line) at a time. Beside the arithmetic of a line it fetches the next
one of all its pixels and results from the L2 cache, behind the last line the next tile's first one: they are as far apart as
pixels, which the core's prefetcher would not guess. Besides it fetches lines of the image that later tiles need from memory,
in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitkiln.schedules.microkernels.a53 import asm, depthwise, stream
from bitkiln.schedules.microkernels.a53.depthwise import LANES

_LINE = 64
#: Vectors of a cache line.
_VECTORS = _LINE // (4 * LANES)
#: The most image rows that have a pointer each, and the largest offset of a fetch.
_ROWS, _MOST_OFFSET = len(depthwise.IMAGE_ROWS), 32760
_AHEAD, _FETCHED_ROW, _OUT_AHEAD = "x23", "x24", "x25"


@dataclass(frozen=True)
class InPlace(depthwise.Depthwise):
    """The micro-kernel of one kind of tile; the C call is that of ``Depthwise``, without its last two arguments.

    The image has rows of ``block_width`` pixels of ``channels`` floats; the block is the first pixel that the tile reads and
    the image has. ``missing``: rows above, columns left, rows below and columns right of the image that the tile's taps reach.
    ``out_width``: pixels from row to row of the result, which are ``out_pitch`` floats apart.
    """

    missing: tuple[int, int, int, int] = (0, 0, 0, 0)
    out_pitch: int = 0

    @property
    def symbol(self) -> str:
        """Its name."""
        return f"{super().symbol.removesuffix('_a53')}_in_place{''.join(map(str, self.missing))}_to{self.out_pitch}_a53"

    def assembly(self) -> str:
        """Its text."""
        enter, leave = asm.saved(19, 26, vectors=True)
        lines = [
            *enter,
            *self._set_up(),
            "1:",
            *self._lines_of_channels(),
            *self._rest(),
            *self._next_tile(),
            f"subs {depthwise.TILES}, {depthwise.TILES}, #1",
            "b.gt 1b",
            *leave,
            "ret",
        ]
        registers = {
            ", ".join(self._out_rows): "rows of the result",
            ", ".join(self._image_rows): "rows of the image",
            depthwise.WEIGHTS: "weights",
            depthwise.OPERANDS: "numbers of the steps",
            depthwise.FETCH: "lines that are fetched from memory",
            depthwise.TILES: "tiles left",
            depthwise.LEFT: "lines of channels left",
            f"{_AHEAD}, {_OUT_AHEAD}": "how far ahead of pixels and of results lines are fetched",
            _FETCHED_ROW: "a row of these",
            asm.span(range(self.tile[0] * self.tile[1])): f"sums, {self.tile[0]} x {self.tile[1]} pixels of 4 channels",
        }
        return asm.routine(self.symbol, lines, registers)

    @property
    def _pixel(self) -> int:
        return self.out_pitch

    @property
    def _vectors(self) -> int:
        return self.channels // LANES

    @property
    def _columns(self) -> int:
        """Columns of the image that a tile reads, those outside included."""
        return (self.tile[1] - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilation[1] + 1

    @property
    def _image_rows(self) -> Sequence[str]:
        """Pointers to the rows of the image that are there. ValueError where there are too many."""
        count = self._reach - self.missing[0] - self.missing[2]
        if count > _ROWS:
            raise ValueError(f"{self.symbol}: no registers for {count} rows")
        return depthwise.IMAGE_ROWS[:count]

    def _operations(self) -> list[stream.MultiplyAdd]:
        """As of a tile with its border; a sum begins with its first tap that is there."""
        begun: set[int] = set()
        found = []
        for operation in super()._operations():
            first = operation.sum not in begun
            begun.add(operation.sum)
            found.append(stream.MultiplyAdd(operation.sum, operation.vector, operation.scalar, operation.lane, first))
        if len(begun) < self.tile[0] * self.tile[1]:
            raise ValueError(f"{self.symbol}: a pixel has no tap inside the image")
        return found

    def _tap(self, row: int, place: int, kx: int) -> list[stream.MultiplyAdd]:
        top, left, bottom, right = self.missing
        if not top <= place < self._reach - bottom:
            return []
        ky, rest = divmod(place - row * self.strides[0], self.dilation[0])
        if rest or not 0 <= ky < self.kernel[0]:
            return []
        weight = self._weight(ky * self.kernel[1] + kx, place)
        columns = ((x, x * self.strides[1] + kx * self.dilation[1]) for x in range(self.tile[1]))
        there = [(x, column) for x, column in columns if left <= column < self._columns - right]
        if there and self._value(place, there[-1][1]).offset > depthwise.MOST_OFFSET:
            raise ValueError(f"{self.symbol}: pixels are too far apart")
        return [
            stream.MultiplyAdd(row * self.tile[1] + x, self._value(place, column), weight, None, False)
            for x, column in there
        ]

    def _value(self, place: int, column: int) -> stream.Value:
        top, left, _, _ = self.missing
        return stream.Value(self._image_rows[place - top], (column - left) * self.channels * 4)

    def _set_up(self) -> list[str]:
        lines = []
        for row, pointer in enumerate(self._image_rows):
            lines += asm.add(pointer, depthwise.IMAGE, row * self.block_width * self.channels * 4)
        for row, pointer in enumerate(self._out_rows[1:], 1):
            lines += asm.add(pointer, depthwise.OUT, row * self.out_width * self.out_pitch * 4)
        return [*lines, f"mov {depthwise.WIDE}, #{self._vectors * 16}"]

    def _lines_of_channels(self) -> list[str]:
        """The loop over whole lines of channels."""
        count, rest = divmod(self._vectors, _VECTORS)
        if not count:
            return []
        lines = [f"mov {depthwise.LEFT}, #{count}", "2:", *(f"mov {each}, #{_LINE}" for each in (_AHEAD, _OUT_AHEAD))]
        if not rest:
            # Behind the last line comes the next tile's first one.
            lines.append(f"cmp {depthwise.LEFT}, #1")
            image, out = self.tile[1] * self.strides[1] * self.channels, self.tile[1] * self.out_pitch
            for ahead, floats in ((_AHEAD, image), (_OUT_AHEAD, out)):
                step = floats * 4 - (count - 1) * _LINE
                lines += [f"movz {_FETCHED_ROW}, #{step & 0xFFFF}", f"movk {_FETCHED_ROW}, #{step >> 16}, lsl #16"]
                lines.append(f"csel {ahead}, {_FETCHED_ROW}, {ahead}, eq")
        for number in range(_VECTORS):
            lines += self._vector(self._ahead(number, _VECTORS))
        return [*lines, f"subs {depthwise.LEFT}, {depthwise.LEFT}, #1", "b.gt 2b"]

    def _rest(self) -> list[str]:
        """Vectors behind the last whole line."""
        rest = self._vectors % _VECTORS
        lines: list[str] = []
        for number in range(rest):
            lines += self._vector(self._ahead(number, rest) if not number else [])
        return lines

    def _vector(self, guests: Sequence[str]) -> list[str]:
        """A vector of channels: its sums with ``guests`` beside them, its end."""
        far = [f"prfm pldl1keep, [{depthwise.FETCH}, #{_LINE * line}]" for line in range(self.fetched)]
        return [*stream.with_guests(self._sums[0], [*guests, *far]), *self._finish()]

    def _ahead(self, part: int, parts: int) -> list[str]:
        """Fetches of one of so many parts of the next line of all pixels and of all results."""
        # Not in order: the core's prefetcher would take pixels for a stream and fetch those of tiles that come much later.
        columns = sorted(
            range(self._columns - self.missing[1] - self.missing[3]), key=lambda column: (column % 3, column)
        )
        places = [(_AHEAD, row, column) for row in self._image_rows for column in columns]
        places += [(_OUT_AHEAD, row, column) for row in self._out_rows for column in range(self.tile[1])]
        lines, before = [], ""
        for ahead, row, column in places[len(places) * part // parts : len(places) * (part + 1) // parts]:
            if row != before:
                lines.append(f"add {_FETCHED_ROW}, {row}, {ahead}")
            before = row
            kind, pitch = ("pldl1keep", self.channels) if ahead == _AHEAD else ("pstl1keep", self.out_pitch)
            lines.append(f"prfm {kind}, [{_FETCHED_ROW}, #{column * pitch * 4}]")
        return lines
