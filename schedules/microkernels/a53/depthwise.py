"""Depthwise convolution for the Cortex-A53: tiles of output pixels by vectors of 4 channels, out of a block of the image.

A block is some channels, e.g. 16, a cache line, of some rows and columns of the image with their zeros around,
[row][column][channel]: small enough for the L1 cache, and without the conflicts that pixels a power of two apart have there.
``Gather`` copies it; ``Depthwise`` goes along a row of tiles. The sums of a tile stay in registers; each value of the image is
loaded once for all output rows and columns that use it, in trains of loads (``stream``). Beside its arithmetic a tile fetches
lines of the image that the next block will copy, few at a time: the core waits when a fourth line is under way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm, stream
from bitkiln.schedules.microkernels.a53 import steps as steps_a53

#: Channels of a vector and of a block.
LANES = 4
BLOCK = 16
_VECTOR, _LINE = 4 * LANES, 4 * BLOCK
_VECTORS = BLOCK // LANES
#: The largest offset that all loads take.
MOST_OFFSET = 32752
#: Streams that the core's prefetcher follows.
_STREAMS = 4
#: Operations from one until its result can be stored beside the next.
_DONE = 4
#: Lines that ``Gather`` fetches ahead: as many as can be under way.
_AHEAD = 3

OUT, IMAGE, WEIGHTS, OPERANDS, FETCH, TILES, _COUNT = (f"x{i}" for i in range(7))
_TABLE, LEFT, WIDE, _ROW_1, _ROW_2 = "x7", "x7", "x8", "x9", "x10"
#: Pointers to rows of the image where a table says where they are.
IMAGE_ROWS = tuple(f"x{i}" for i in range(11, 18))
_WORDS = ("x19", "x20", "x21", "x22")


@dataclass(frozen=True)
class Gather:
    """``void symbol(float *block, const float *image, int64 pixels)``: copies ``vectors`` vectors of adjacent pixels.

    Pixels of the image are ``channels`` floats apart, those of the block ``pitch``.
    """

    channels: int
    vectors: int
    pitch: int = BLOCK

    @property
    def symbol(self) -> str:
        """Its name."""
        to = f"_{self.pitch}p" if self.pitch != BLOCK else ""
        return f"bk_gather_{self.channels}c_{self.vectors}v{to}_a53"

    def assembly(self) -> str:
        """Its text."""
        pitch = self.channels * 4
        ahead, copy = "prfm pldl1keep, [x3]", [f"ldr q{i}, [x1, #{i * _VECTOR}]" for i in range(self.vectors)]
        copy += [f"str q{i}, [x0, #{i * _VECTOR}]" for i in range(self.vectors)]
        copy += [*asm.add("x1", "x1", pitch), f"add x0, x0, #{self.pitch * 4}"]
        lines = [
            *asm.add("x3", "x1", _AHEAD * pitch),
            f"subs x4, x2, #{_AHEAD}",
            "b.le 2f",
            f"mov x2, #{_AHEAD}",
            *("1:", ahead, *asm.add("x3", "x3", pitch), *copy, "subs x4, x4, #1", "b.gt 1b"),
            *("2:", *copy, "subs x2, x2, #1", "b.gt 2b", "ret"),
        ]
        registers = {
            "x0": "block",
            "x1": "image",
            "x2": "pixels left behind those that are fetched ahead",
            "x3": "line that is fetched ahead",
            "x4": "pixels left that have one",
            asm.span(range(self.vectors)): "a pixel",
        }
        return asm.routine(self.symbol, lines, registers)


@dataclass(frozen=True)
class Depthwise:
    """The micro-kernel of one kind of tile, ``tile`` rows x columns of output pixels.

    ``void symbol(float *out, const float *block, const float *weights, const float *operands, const float *fetch,
    int64 tiles, int64 vectors, const int32 *rows)``: ``weights`` is [vector][tap][4], ``operands`` [vector][row][4] with a row
    for each operand of the steps. For each tile and vector ``fetched`` lines are read from ``fetch`` on, which must be there.
    The block has ``block_width`` columns of ``pitch`` floats, the output ``out_width`` of ``channels`` floats. ``scattered``:
    rows of the image lie ``rows`` bytes behind ``block``; else one behind the other, and there is no such argument.
    """

    channels: int
    block_width: int
    out_width: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    tile: tuple[int, int]
    steps: tuple[str, ...]
    fetches: bool
    pitch: int = BLOCK
    scattered: bool = False
    #: Vector registers, what carries upper halves, and how instructions are written.
    file: ClassVar[int] = 32
    words: ClassVar[Sequence[str]] = _WORDS
    writer: ClassVar[stream.Writer] = stream.A64

    @property
    def symbol(self) -> str:
        """Its name."""
        size = f"{self.channels}c{self.block_width}b{self.out_width}o"
        shape = "_".join(f"{a}x{b}" for a, b in (self.kernel, self.strides, self.dilation, self.tile))
        way = ["fetch"] * self.fetches + [f"rows{self.pitch}"] * self.scattered
        return "_".join(["bk_depthwise", size, shape, *self.steps, *way, "a53"])

    @property
    def cycles(self) -> int:
        """Cycles of the sums of one vector of channels when every load hits."""
        return self._sums[1]

    def assembly(self) -> str:
        """Its text."""
        enter, leave = asm.saved(19, 22, vectors=True)
        lines = [
            *enter,
            *self._set_up(),
            "1:",
            f"mov {LEFT}, {_COUNT}",
            "2:",
            *stream.with_guests(self._sums[0], self._fetches()),
            *self._finish(),
            f"subs {LEFT}, {LEFT}, #1",
            "b.gt 2b",
            *self._next_tile(),
            f"subs {TILES}, {TILES}, #1",
            "b.gt 1b",
            *leave,
            "ret",
        ]
        registers = {
            ", ".join(self._out_rows): "rows of the result",
            ", ".join(self._image_rows): "rows of the image" if self.scattered else "block of the image",
            WEIGHTS: "weights",
            OPERANDS: "numbers of the steps",
            FETCH: "lines that are fetched ahead",
            TILES: "tiles left",
            _COUNT: "vectors of channels",
            LEFT: "vectors left",
            WIDE: "bytes of all vectors",
            asm.span(range(self.tile[0] * self.tile[1])): f"sums, {self.tile[0]} x {self.tile[1]} pixels of 4 channels",
        }
        return asm.routine(self.symbol, lines, registers)

    @cached_property
    def _sums(self) -> tuple[list[str], int]:
        """The instructions that make the sums of one vector of channels, and their cycles."""
        return stream.schedule(self._operations(), range(math.prod(self.tile), self.file), self.words, self.writer)

    def _operations(self) -> list[stream.MultiplyAdd]:
        """Multiply-adds image row by image row: its values and two rows of weights fit the registers beside the sums."""
        return [
            operation
            for place in range(self._reach)
            for kx in range(self.kernel[1])
            for row in range(self.tile[0])
            for operation in self._tap(row, place, kx)
        ]

    def _tap(self, row: int, place: int, kx: int) -> list[stream.MultiplyAdd]:
        """What image row ``place`` adds to output row ``row`` by column ``kx`` of the kernel."""
        ky, rest = divmod(place - row * self.strides[0], self.dilation[0])
        if rest or not 0 <= ky < self.kernel[0]:
            return []
        weight = self._weight(ky * self.kernel[1] + kx, place)
        columns = [x * self.strides[1] + kx * self.dilation[1] for x in range(self.tile[1])]
        values = [self._value(place, column) for column in columns]
        if values[-1].offset > MOST_OFFSET:
            raise ValueError(f"{self.symbol}: a row of the block is too long")
        sums = [row * self.tile[1] + x for x in range(self.tile[1])]
        return [
            stream.MultiplyAdd(s, value, weight, None, ky == kx == 0) for s, value in zip(sums, values, strict=True)
        ]

    def _weight(self, tap: int, _place: int) -> stream.Value:
        """The weights of a tap, which meet an image row."""
        return stream.Value(WEIGHTS, tap * _VECTOR)

    def _value(self, place: int, column: int) -> stream.Value:
        """Values of the block in an image row and a column of the tile."""
        if self.scattered:
            return stream.Value(self._image_rows[place], column * self.pitch * 4)
        return stream.Value(IMAGE, (place * self.block_width + column) * self.pitch * 4)

    @property
    def _reach(self) -> int:
        """Rows of the image that a tile reads."""
        return (self.tile[0] - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def _image_rows(self) -> Sequence[str]:
        """A pointer for each row of the image that has one. ValueError where there are too many."""
        if self.scattered and self._reach > len(IMAGE_ROWS):
            raise ValueError(f"{self.symbol}: no registers for {self._reach} rows")
        return IMAGE_ROWS[: self._reach] if self.scattered else (IMAGE,)

    @property
    def _pixel(self) -> int:
        """Floats from pixel to pixel of the result."""
        return self.channels

    @property
    def _out_rows(self) -> list[str]:
        """A pointer for each output row."""
        return [OUT, _ROW_1, _ROW_2][: self.tile[0]]

    @property
    def fetched(self) -> int:
        """Lines fetched for each tile and vector: as many as the pixels that a tile adds to the image above it have."""
        return math.ceil(math.prod((*self.tile, *self.strides)) / _VECTORS) if self.fetches else 0

    def _set_up(self) -> list[str]:
        lines = []
        if self.scattered:
            for row, pointer in enumerate(self._image_rows):
                lines += [f"ldrsw {pointer}, [{_TABLE}, #{4 * row}]", f"add {pointer}, {IMAGE}, {pointer}"]
        lines.append(f"lsl {WIDE}, {_COUNT}, #4")
        for row, pointer in enumerate(self._out_rows[1:], 1):
            lines += asm.add(pointer, OUT, row * self.out_width * self.channels * 4)
        return lines

    def _fetches(self) -> list[str]:
        """Lines that a later tile reads: of the image in memory, or of more rows in the L2 cache than the core follows."""
        # With stride 1 a tile reads few new lines, and its arithmetic is over before they would pay.
        if self.scattered and self.strides[1] > 1 and self._reach > _STREAMS:
            step = self.tile[1] * self.strides[1] * self.pitch * 4
            first = (
                ((self.tile[1] - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilation[1] + 1) * self.pitch * 4
            )
            offsets = range(first // 8 * 8, first + step, _LINE)
            return [f"prfm pldl1keep, [{row}, #{offset}]" for offset in offsets for row in self._image_rows]
        return [f"prfm pldl1keep, [{FETCH}, #{_LINE * line}]" for line in range(self.fetched)]

    def _finish(self) -> list[str]:
        """The steps, the stores, and the pointers moved on to the next vector."""
        lines, operand = [], 0
        for step in self.steps:
            registers = range(steps_a53.FIRST_OPERAND, steps_a53.FIRST_OPERAND + steps_a53.rows([step]))
            lines += [f"ldr q{v}, [{OPERANDS}, #{(operand + row) * _VECTOR}]" for row, v in enumerate(registers)]
            operand += len(registers)
            sums = [(total, registers) for total in range(self.tile[0] * self.tile[1])]
            lines += steps_a53.lines(step, sums, range(registers.stop, 32))
        stores = [
            f"str q{row * self.tile[1] + column}, [{pointer}, #{column * self._pixel * 4}]"
            for row, pointer in enumerate(self._out_rows)
            for column in range(self.tile[1])
        ]
        moves = [
            *(f"add {pointer}, {pointer}, #{_VECTOR}" for pointer in self._image_rows),
            f"add {WEIGHTS}, {WEIGHTS}, #{self.kernel[0] * self.kernel[1] * _VECTOR}",
        ]
        after = [
            f"add {OPERANDS}, {OPERANDS}, #{operand * _VECTOR}",
            f"add {FETCH}, {FETCH}, #{_LINE * self.fetched}",
        ]
        after += [f"add {pointer}, {pointer}, #{_VECTOR}" for pointer in self._out_rows]
        return [*_woven(_stored(lines, stores), moves), *after]

    def _next_tile(self) -> list[str]:
        """Moves all pointers from behind the last vector to the next tile's first."""
        rows = steps_a53.rows(self.steps)
        lines = []
        steps = [(pointer, self.tile[1] * self.strides[1] * self.pitch * 4) for pointer in self._image_rows]
        steps += [(pointer, self.tile[1] * self._pixel * 4) for pointer in self._out_rows]
        for pointer, step in steps:
            lines += [f"sub {pointer}, {pointer}, {WIDE}", *asm.add(pointer, pointer, step)]
        for pointer, each in ((WEIGHTS, self.kernel[0] * self.kernel[1]), (OPERANDS, rows)):
            lines += [f"mov {LEFT}, #{each}", f"msub {pointer}, {LEFT}, {WIDE}, {pointer}"]
        return lines


def _woven(lines: Sequence[str], moves: Sequence[str]) -> list[str]:
    """``moves`` of pointers that ``lines`` do not use, one behind each of the last lines."""
    first = max(0, len(lines) - len(moves))
    pairs = zip_longest(lines[first:], moves)
    return [*lines[:first], *(text for pair in pairs for text in pair if text)]


def _stored(lines: Sequence[str], stores: Sequence[str]) -> list[str]:
    """``stores`` of v0, v1, ... behind ``lines`` that end with an operation on each of these; beside them once it is done."""
    if len(lines) < len(stores):
        return [*lines, *stores]
    first = len(lines) - len(stores) + _DONE
    return [*lines[:first], *(text for pair in zip_longest(lines[first:], stores) for text in pair if text)]
