"""First layers for the Cortex-A53: a strip of a few-channel image against 8 output channels, taps unrolled.

A tile is ``rows`` x ``pixels`` output pixels x 8 channels, its 16 sums in registers. The taps of one kernel row are adjacent
floats (kernel width x channels), so an output pixel's taps are lanes of the same few registers as its neighbours': each
value of the image is loaded once for a tile and kernel row (three times where pixels lie far apart), each weight once for
a tile. Where the code of all taps would not fit the instruction cache, a loop runs over the kernel's rows.

C call: ``(float *out, int64 pixel_pitch, const float *image, int64 image_pitch, const float *weights, const float
*operands, int64 tiles, float *claimed, float *fetched)``, pitches in bytes.
``weights`` is [ky][kx][c][8]; ``operands`` has 8 floats for each step that
takes one. Tiles go along a row; with ``pool`` the two rows of a tile become one by the maximum of 2x2 pixels.
With ``claims`` as many bytes as a tile's results have are written to ``claimed``, tile after tile: whole lines of the result
that later tiles store in pieces. With ``fetches`` so many cache lines are fetched from ``fetched`` on, tile after tile. With
``stored`` the lines that the next tile stores to are fetched.
Up to 16 bytes behind the last image value and the weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

from bitkiln.schedules.microkernels.a53 import asm, stream
from bitkiln.schedules.microkernels.a53 import steps as steps_a53

CHANNELS = 8
_VECTORS = CHANNELS // 4
_OUT, _PIXEL_PITCH, _IMAGE, _IMAGE_PITCH, _WEIGHTS, _OPERANDS, _TILES = (f"x{i}" for i in range(7))
_ROWS = ("x7", *(f"x{i}" for i in range(8, 16)), "x16", "x17")
_WORDS = ("x19", "x20", "x21", "x22")
_CLAIMED, _FETCHED, _NEXT = "x23", "x24", "x25"
_OPERAND_REGISTERS = tuple(range(16, 32))
#: Taps that are written out: 16 instructions each, and their loads, in an instruction cache of 32 KiB.
_UNROLLED = 160


@dataclass(frozen=True)
class Stem:
    """The micro-kernel of one kind of first layer; ``steps`` are names of those that ``steps_a53`` knows."""

    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    steps: tuple[str, ...]
    pool: bool
    claims: bool = False
    fetches: int = 0
    stored: bool = False
    #: Whether it can fetch.
    fetching: ClassVar[bool] = True
    #: Registers: pointers to the image's rows and to the weights; of operands; what carries their high halves.
    row_pointers: ClassVar[Sequence[str]] = _ROWS
    weights: ClassVar[str] = _WEIGHTS
    operand_registers: ClassVar[Sequence[int]] = _OPERAND_REGISTERS
    words: ClassVar[Sequence[str]] = _WORDS
    #: How the instruction set is written.
    writer: ClassVar[stream.Writer] = stream.A64
    step_writer: ClassVar[steps_a53.Writer] = steps_a53.A64

    @property
    def rows(self) -> int:
        """Output rows of a tile, before pooling."""
        return 2 if self.pool else 1

    @property
    def pixels(self) -> int:
        """Output pixels of a tile's row, before pooling."""
        return 4 if self.pool else 8

    @property
    def looped(self) -> bool:
        """Whether its kernel rows are a loop; then it does not pool."""
        return self.kernel[0] * self.kernel[1] * self.channels > _UNROLLED

    @property
    def symbol(self) -> str:
        """Its name."""
        shape = f"{self.channels}c{self.kernel[0]}x{self.kernel[1]}s{self.strides[0]}x{self.strides[1]}"
        words = [
            "bk_stem",
            shape,
            *self.steps,
            *(["max2x2"] if self.pool else []),
            *(["claims"] if self.claims else []),
            *([f"fetches{self.fetches}"] if self.fetches else []),
            *(["stored"] if self.stored else []),
        ]
        return "_".join([*words, "a53"])

    @property
    def image_rows(self) -> int:
        """Rows of the image that a tile has pointers to."""
        return 1 if self.looped else (self.rows - 1) * self.strides[0] + self.kernel[0]

    def assembly(self) -> str:
        """Its text."""
        return _assembly(self)

    @property
    def cycles(self) -> int:
        """Cycles of a tile's sums when every load hits."""
        return sums_of(self)[1] * (self.kernel[0] if self.looped else 1)

    @property
    def sums(self) -> list[int]:
        """Registers of all sums."""
        return [
            self.sum(row, pixel, v) for row in range(self.rows) for pixel in range(self.pixels) for v in range(_VECTORS)
        ]

    @property
    def tile_bytes(self) -> int:
        """Bytes of the image from tile to tile."""
        return self.pixels * self.strides[1] * self.channels * 4

    @property
    def fits(self) -> bool:
        """Whether a tile's image values fit the registers and its code the instruction cache."""
        if self.kernel[1] * self.channels > _UNROLLED or self.image_rows > len(self.row_pointers):
            return False
        try:
            return not (self.looped and self.pool) and self.cycles > 0
        except ValueError:
            return False

    def sum(self, row: int, pixel: int, vector: int) -> int:
        """Register of a sum."""
        return (row * self.pixels + pixel) * _VECTORS + vector

    def load_rows(self, registers: Sequence[int], first: int) -> list[str]:
        """Rows of the steps' numbers from the ``first`` on, two ``registers`` each."""
        pairs = zip(registers[::_VECTORS], registers[1::_VECTORS], strict=True)
        return [f"ldp q{a}, q{b}, [{_OPERANDS}, #{(first + row) * CHANNELS * 4}]" for row, (a, b) in enumerate(pairs)]

    def maximum(self, a: int, b: int) -> str:
        """The greater of two registers, in the first."""
        return f"fmax v{a}.4s, v{a}.4s, v{b}.4s"


@cache
def sums_of(stem: Stem) -> tuple[list[str], int]:
    """The sums, and their cycles. Pixels far apart have a vector each at any time: they may be too many to share."""
    found = []
    for shared in ("rows", "row", ""):
        with suppress(ValueError):
            operations = _operations(stem, shared)
            found.append(stream.schedule(operations, stem.operand_registers, stem.words, stem.writer))
    if not found:
        raise ValueError(f"the image values of {stem.symbol} do not fit the registers")
    return min(found, key=lambda plan: plan[1])


def _operations(stem: Stem, shared: str) -> list[stream.MultiplyAdd]:
    """Multiply-adds in the order of the weights: each pair of weight vectors serves all pixels of the tile.

    ``shared``: a vector of the image stays in its register for all pixels of a "row" of the kernel that use it, or of all
    "rows"; else it is loaded for each of them.
    """
    operations = []
    for ky in range(1 if stem.looped else stem.kernel[0]):
        for k in range(stem.kernel[1] * stem.channels):
            at = (ky * stem.kernel[1] * stem.channels + k) * CHANNELS * 4
            for vector in range(_VECTORS):
                weight = stream.Value(stem.weights, at + 16 * vector)
                for row in range(stem.rows):
                    for pixel in range(stem.pixels):
                        scalar, lane = _tap(stem, ky + row * stem.strides[0], ky, pixel, k, shared)
                        sum_ = stem.sum(row, pixel, vector)
                        operations.append(stream.MultiplyAdd(sum_, weight, scalar, lane, at == 0 and not stem.looped))
    return operations


def _tap(stem: Stem, image_row: int, ky: int, pixel: int, k: int, shared: str) -> tuple[stream.Value, int]:
    """Where tap ``k`` of a kernel row lies for ``pixel``: a vector of the image and a lane."""
    element = pixel * stem.strides[1] * stem.channels + k
    # Adjacent output rows share image rows: a vector stays in its register from one kernel row to the next.
    tag = 0 if stem.strides[0] == 1 and shared == "rows" else ky
    if not shared:
        tag = ky * stem.kernel[1] * stem.channels + k // 4
    return stream.Value(stem.row_pointers[image_row], element // 4 * 16, tag), element % 4


@cache
def _assembly(stem: Stem) -> str:
    last = 26 if stem.fetches or stem.stored else 24
    enter, leave = asm.saved(19, last, vectors=True)
    # They spread over the sums, but for those that a loop repeats.
    guests = [*_claims(stem), *_fetches(stem)]
    lines = [
        *enter,
        *([f"ldr {_FETCHED}, [sp, #{asm.frame_bytes(19, last, vectors=True)}]"] if stem.fetches else []),
        *([f"mov {_CLAIMED}, x7"] if stem.claims else []),
        f"mov {_ROWS[0]}, {_IMAGE}",
        *(f"add {b}, {a}, {_IMAGE_PITCH}" for a, b in pairwise(_ROWS[: stem.image_rows])),
        "1:",
        *stream.with_guests(_rows(stem) if stem.looped else sums_of(stem)[0], [] if stem.looped else guests),
        *asm.beside(epilogue(stem), guests if stem.looped else []),
        *asm.named("store", _store(stem)),
        *(f"add {row}, {row}, #{stem.tile_bytes}" for row in _ROWS[: stem.image_rows]),
        f"subs {_TILES}, {_TILES}, #1",
        "b.gt 1b",
        *leave,
        "ret",
    ]
    registers = {
        _OUT: "result",
        _PIXEL_PITCH: "bytes from pixel to pixel of the result",
        _IMAGE: "image",
        _IMAGE_PITCH: "bytes of an image row",
        _WEIGHTS: "weights",
        _OPERANDS: "numbers of the steps",
        _TILES: "tiles left",
        ", ".join(_ROWS[: stem.image_rows]): "image rows of the tile",
        **({_CLAIMED: "lines that later tiles store"} if stem.claims else {}),
        **({_FETCHED: "lines that are fetched"} if stem.fetches else {}),
        **({_NEXT: "results of the next tile"} if stem.stored else {}),
        asm.span(sorted(stem.sums)): f"sums, {stem.rows} x {stem.pixels} pixels x 8 channels",
        asm.span(_OPERAND_REGISTERS): "image and weights, then the steps' numbers",
    }
    return asm.routine(stem.symbol, lines, registers)


def _claims(stem: Stem) -> list[str]:
    """Writes as many bytes as the tile's results have."""
    if not stem.claims:
        return []
    size = stem.pixels // stem.rows * CHANNELS * 4
    return [
        *(f"stp xzr, xzr, [{_CLAIMED}, #{at}]" for at in range(0, size, 16)),
        f"add {_CLAIMED}, {_CLAIMED}, #{size}",
    ]


def _fetches(stem: Stem) -> list[str]:
    """Prefetches of lines that later tiles read, and of those that the next one stores to."""
    lines = [f"prfm pldl1keep, [{_FETCHED}, #{64 * line}]" for line in range(stem.fetches)]
    if stem.fetches:
        lines.append(f"add {_FETCHED}, {_FETCHED}, #{64 * stem.fetches}")
    if stem.stored:
        pixels = stem.pixels // stem.rows
        lines.append(f"add {_NEXT}, {_OUT}, {_PIXEL_PITCH}, lsl #{pixels.bit_length() - 1}")
        lines += [f"prfm pstl1keep, [{_NEXT}]", f"add {_NEXT}, {_NEXT}, {_PIXEL_PITCH}"] * pixels
    return lines


def _rows(stem: Stem) -> list[str]:
    """The sums by a loop over the kernel's rows, which leaves the pointers as they were."""
    row, left, weights = _ROWS[0], _ROWS[1], stem.kernel[1] * stem.channels * CHANNELS * 4
    return [
        f"mov {_ROWS[2]}, {row}",
        f"mov {_ROWS[3]}, {_WEIGHTS}",
        *(f"movi v{i}.16b, #0" for i in range(stem.pixels * _VECTORS)),
        f"mov {left}, #{stem.kernel[0]}",
        "2:",
        *sums_of(stem)[0],
        f"add {row}, {row}, {_IMAGE_PITCH}",
        *asm.add(_WEIGHTS, _WEIGHTS, weights),
        f"subs {left}, {left}, #1",
        "b.gt 2b",
        f"mov {row}, {_ROWS[2]}",
        f"mov {_WEIGHTS}, {_ROWS[3]}",
    ]


def epilogue(stem: Stem) -> list[str]:
    """The steps on the sums; all other vector registers are free."""
    lines, operand, free = [], 0, stem.operand_registers
    for step in stem.steps:
        rows = steps_a53.rows([step])
        registers = free[: rows * _VECTORS]
        lines += stem.load_rows(registers, operand)
        operand += rows
        sums = [
            (stem.sum(row, pixel, vector), registers[vector::_VECTORS])
            for vector in range(_VECTORS)
            for row in range(stem.rows)
            for pixel in range(stem.pixels)
        ]
        lines += steps_a53.lines(step, sums, free[len(registers) :], stem.step_writer)
    return lines


def _store(stem: Stem) -> list[str]:
    if stem.pool:
        return [*pool(stem), *_store_pixels(stem, range(0, stem.pixels, 2))]
    return _store_pixels(stem, range(stem.pixels))


def pool(stem: Stem) -> list[str]:
    """The maximum of 2x2 pixels, left in the sums of the first row's even pixels."""
    pairs = [(stem.sum(0, pixel, v), stem.sum(1, pixel, v)) for pixel in range(stem.pixels) for v in range(_VECTORS)]
    pairs += [(stem.sum(0, p, v), stem.sum(0, p + 1, v)) for p in range(0, stem.pixels, 2) for v in range(_VECTORS)]
    return [stem.maximum(a, b) for a, b in pairs]


def _store_pixels(stem: Stem, pixels: Sequence[int]) -> list[str]:
    lines = []
    for pixel in pixels:
        lines += [f"str q{stem.sum(0, pixel, v)}, [{_OUT}, #{16 * v}]" for v in range(_VECTORS)]
        lines += [f"add {_OUT}, {_OUT}, {_PIXEL_PITCH}"]
    return lines
