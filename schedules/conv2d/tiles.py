"""Tiles of output pixels x output channels: a sum over rows of taps, then the epilogue, as calls or loops in a kernel.

Direct and transposed convolutions are made of them. Weights are packed in panels of a tile's channels,
[panel][row][k][channel], rows filled up with zeros to whole steps of the micro-kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d.geometry import Run
from bitkiln.schedules.conv2d.images import Images
from bitkiln.schedules.conv2d.packing import Packing
from bitkiln.schedules.kernel import Argument, MicroKernel, size_text
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53 import steps as steps_a53
from bitkiln.schedules.microkernels.a53.sgemm import (
    AHEAD_BYTES,
    FREE_REGISTERS,
    IMAGE_AHEAD,
    REACH_BYTES,
    STEP,
    Finish,
    Sgemm,
)
from bitkiln.schedules.steps import Step, commutes_with_maximum
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Floats behind a copied image: what filled up rows and fetching ahead may read.
SLACK = STEP + REACH_BYTES // 4
#: The smallest piece of output that is claimed before it is computed.
CLAIM_FLOATS = 256


def sizes(target: Target) -> list[int | str]:
    """The tiles (pixels x channels) that ``target`` has kernels for, as a knob's values."""
    return [size_text(size) for size in kernel_set(target).sgemm]


@dataclass(frozen=True)
class Storage:
    """How packed weights lie in memory: ``floats`` of them, in ``halves`` their upper 16 bits alone."""

    floats: int
    halves: bool = False

    @property
    def words(self) -> str:
        """What there is to say of it, behind other notes."""
        return ", weights in bfloat16" if self.halves else ""

    @property
    def bytes_each(self) -> int:
        """Of a weight."""
        return 2 if self.halves else 4

    @property
    def elements(self) -> int:
        """Of the whole argument: weights, and what may be read behind them."""
        return self.floats + AHEAD_BYTES // self.bytes_each

    def argument(self, pack: Callable[[Sequence[np.ndarray]], np.ndarray]) -> Argument:
        """The weights as a kernel's argument; ``pack`` gives ``floats`` of them."""
        if isinstance(pack, Packing) and not self.halves:
            spare = self.elements - self.floats
            return Argument((1,), (self.elements,), "float32", replace(pack, spare=spare))

        def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
            weights = np.concatenate([pack(arrays), np.zeros(self.elements - self.floats, "float32")])
            if not self.halves:
                return weights
            bits = weights.view("uint32")
            assert not (bits & 0xFFFF).any(), "weights in halves are bfloat16 values"
            return (bits >> 16).astype("uint16")

        return Argument((1,), (self.elements,), "uint16" if self.halves else "float32", packed)


@dataclass(frozen=True)
class Taps:
    """Rows of taps: where they begin in the table of rows, how many there are, and the floats of each, filled up."""

    first: int
    count: int
    length: int


@dataclass(frozen=True)
class Tile:
    """What a tile reads and writes. Places are in floats.

    ``first``: its first pixel in the table of pixels. ``image``: what the table's offsets count from. ``to``: its first result;
    the next pixel's lies ``pitch`` further. ``at(m)``: where in the whole result pixel m lies, (y, x). ``count``: panels one
    after the other. ``reach``: its pixels may be read beyond their taps, as ``Sgemm.reach`` asks; then lines of the image are
    fetched as its ``ahead`` and ``evenly`` say. ``claimed``: address of lines that are written as ``Finish.claims`` says.
    ``panel_pitch``: from a panel's results to the next one's; 0: they are neighbours.
    """

    pixels: Run
    panels: Run
    first: Any
    image: Any
    weights: Any
    to: Any
    pitch: int
    channel: Any
    at: Callable[[Any], tuple[Any, Any]]
    count: int = 1
    reach: bool = False
    ahead: int = IMAGE_AHEAD
    evenly: int = 0
    claimed: Any = None
    panel_pitch: int = 0


class Tiles:
    """Emits tiles into the kernel under construction and remembers the micro-kernels that they call.

    ``finish``: the epilogue as the micro-kernel does it, None where it cannot. ``product``: the micro-kernel of a set of
    kernels; without it all is plain loops. ``halves``: packed weights are in halves, as ``Storage`` says.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        finish: Finish | None,
        product: Callable[..., Sgemm] | None,
        halves: bool = False,
    ) -> None:
        self.steps = steps
        self.finish = finish
        self.product = functools.partial(product, halves=True) if product and halves else product
        self._used: dict[str, Sgemm] = {}

    @property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        return tuple(self._used.values())

    def bind(self, image: Any, weights: Any, pixels: Any, rows: Any, operands: Sequence[Any]) -> None:
        """The buffers that all tiles read: flat floats; tables of byte offsets; operands of the epilogue."""
        self.image, self.weights, self.pixels, self.rows, self.operands = image, weights, pixels, rows, operands

    def emit(self, tile: Tile, result: Any, taps: Taps) -> None:
        """The results of ``tile``; without taps its sums are zero."""
        whole = tile.pixels.used == tile.pixels.size and tile.panels.used == tile.panels.size
        if self.product and self.finish is not None and whole and taps.count:
            finish = replace(self.finish, claims=tile.claimed is not None)
            pixels, stored = tile.pixels.size, 0
            if finish.claims and taps.count == 1:
                stored = stored_steps(taps.length // STEP, pixels)
            kernel = self.product(
                pixels, tile.panels.size, finish, tile.reach, ahead=tile.ahead, evenly=tile.evenly, stored=stored
            )
            self._call(kernel, tile, result, tile.to, tile.pitch, taps)
            return
        size = tile.panels.size
        sums = T.alloc_buffer((tile.pixels.size * size,), "float32", scope="local")
        if not taps.count:
            loops.fill(sums, 0, tile.pixels.size * size)
        elif self.product:
            kernel = self.product(tile.pixels.size, size, reach=tile.reach, ahead=tile.ahead, evenly=tile.evenly)
            self._call(kernel, tile, sums, 0, size, taps)
        else:
            self._plain(sums, tile, taps)
        with T.serial(tile.pixels.used) as m:
            end, start = tile.to + m * tile.pitch, m * size
            loops.apply_epilogue(
                result, end, sums, start, tile.panels.used, self.steps, self.operands, tile.at(m), tile.channel
            )

    def _call(self, kernel: Sgemm, tile: Tile, out: Any, to: Any, pitch: int, taps: Taps) -> None:
        """A tile by its micro-kernel; the arguments are those of ``Sgemm``."""
        self._used[kernel.symbol] = kernel
        bias = self.operands[0][tile.channel] if kernel.finish.bias else self.weights[0]
        T.evaluate(
            T.call_extern(
                "int32",
                kernel.symbol,
                T.address_of(out[to]),
                T.int64(pitch * 4),
                T.address_of(self.image[tile.image]),
                T.address_of(self.pixels[tile.first]),
                T.address_of(self.weights[tile.weights]),
                T.address_of(self.rows[taps.first]),
                T.int64(taps.count),
                T.int64(taps.length // STEP),
                T.int64(tile.count),
                T.int64((tile.panel_pitch or kernel.tile_n) * 4),
                T.address_of(bias),
                T.int64(0),
                tile.claimed if kernel.finish.claims else T.int64(0),
            )
        )

    def _plain(self, sums: Any, tile: Tile, taps: Taps) -> None:
        """A tile by loops that any machine runs."""
        tile_m, tile_n = tile.pixels.size, tile.panels.size
        loops.fill(sums, 0, tile_m * tile_n)
        with T.serial(taps.count) as row, T.serial(taps.length) as k:
            at = tile.image + self.rows[taps.first + row] // 4 + k
            weight = tile.weights + (row * taps.length + k) * tile_n
            for m in range(tile_m):
                tap = self.image[at + self.pixels[tile.first + m] // 4]
                with T.vectorized(tile_n) as n:
                    index = m * tile_n + n
                    T.buffer_store(sums, sums[index] + tap * self.weights[weight + n], [index])


def finish_of(steps: Sequence[Step], window: int = 1, registers: int = FREE_REGISTERS) -> Finish | None:
    """``steps`` behind a maximum over ``window`` pixels, as a micro-kernel with so many free ``registers`` finishes them.

    None where it cannot.
    """
    bias = bool(steps) and steps[0].op == "add" and steps[0].operand == "channel"
    rest = steps[bias:]
    if len(rest) > 1 or any(step.operand or not steps_a53.known(step, registers) for step in rest):
        return None
    if window > 1 and not all(map(commutes_with_maximum, steps)):
        return None
    return Finish(bias, rest[0].op, rest[0].values, window) if rest else Finish(bias, window=window)


def finished(steps: Sequence[Step], registers: int = FREE_REGISTERS) -> int:
    """How many of ``steps`` a micro-kernel with so many free ``registers`` can finish with."""
    return next(
        count for count in range(len(steps), -1, -1) if finish_of(steps[:count], registers=registers) is not None
    )


def operands_behind(steps: Sequence[Step], count: int, operands: Sequence[Any]) -> Sequence[Any]:
    """What of ``operands`` belongs to the steps that follow the first ``count``.

    These are done in place, on many neighbouring results at once while they are in the cache.
    """
    return operands[sum(step.operand != "" for step in steps[:count]) :]


def row_length(floats: int, assembly: bool) -> int:
    """The length of rows of ``floats`` taps, filled up for the micro-kernel."""
    return -(-floats // STEP) * STEP if assembly else floats


def stored_steps(steps: int, pixels: int) -> int:
    """``Sgemm.stored`` of a tile with so many ``steps``: the most that each of its ``pixels`` can have."""
    return 1 << max(0, (steps // pixels).bit_length() - 1)


def at_least(run: Run, size: int) -> Run:
    """``run`` with tiles filled up to ``size``."""
    return Run(run.first, run.count, max(run.size, size), run.used)


def image_read(images: Images, workload: Conv2d, copies: bool) -> Any:
    """The image of ``workload`` with its border, a copy, or else the input itself, or the first piece of it."""
    size, first = (workload.height, workload.width, workload.channels), images.buffers[0]
    if copies and workload.parts:
        return padded_pieces(images, size, workload.padding)
    return padded_image(first, size, workload.padding) if copies else first


def rows_read(images: Images, offsets: MicroKernel | None, table: Any) -> Any:
    """Byte offsets of the rows of taps, and of the first one once more; those of pieces from the first, as they lie in memory.

    ``table`` has them within a piece; ``offsets`` finds the distances where the input consists of pieces.
    """
    if not offsets:
        return table
    rows = T.alloc_buffer((len(images.buffers) + 1,), "int32")
    first, *others = (T.address_of(buffer[0]) for buffer in images.buffers)
    for number, start in enumerate((first, *others, first)):
        at = T.address_of(rows[number]), T.address_of(table[number])
        T.evaluate(T.call_extern("int32", offsets.symbol, *at, first, start))
    return rows


def padded_pieces(images: Images, size: tuple[int, int, int], padding: tuple[int, int, int, int]) -> Any:
    """As ``padded_image``, of ``images`` side by side."""
    height, width, channels = size
    top, left, bottom, right = padding
    rows, row = top + height + bottom, (left + width + right) * channels
    padded = T.alloc_buffer((rows * row + SLACK,), "float32")

    def inside(y: Any) -> None:
        loops.fill(padded, y * row, left * channels)
        with T.serial(width) as x:
            images.copy_pixel(padded, y * row + (left + x) * channels, (y - top) * width + x)
        loops.fill(padded, y * row + (left + width) * channels, right * channels)

    with T.parallel(rows) as y, T.If(tirx.all(y >= top, y < top + height)):
        with T.Then():
            inside(y)
        with T.Else():
            loops.fill(padded, y * row, row)
    loops.fill(padded, rows * row, SLACK)
    return padded


def padded_image(data: Any, size: tuple[int, int, int], padding: tuple[int, int, int, int], slack: int = SLACK) -> Any:
    """A copy of ``data`` of ``size`` (H, W, C) with its zero border, and ``slack`` zeros behind it."""
    height, width, channels = size
    top, left, bottom, right = padding
    rows, row = top + height + bottom, (left + width + right) * channels
    padded = T.alloc_buffer((rows * row + slack,), "float32")
    with T.parallel(rows) as y:
        loops.pad_row(padded, y * row, data, y, size, padding)
    loops.fill(padded, rows * row, slack)
    return padded
