"""The operands of a product, as its register tiles want them: one in panels of columns, the other as rows.

``Panels`` are the second operand's matrices, [panel][inner][column], ``inner`` filled up with zeros to whole steps of the
micro-kernel. Tiles read a block of the first operand's rows that lies in the cache, or the tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.tiles import SLACK, Taps, Tile, Tiles, at_least
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES
from bitkiln.schedules.product.definition import place
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Matrices

#: The rows that a micro-kernel begins at.
_LEAST = 3


class Panels:
    """The matrices [inner, columns] of an operand, packed while the network runs, times ``factor``."""

    def __init__(
        self,
        matrices: Matrices,
        stack: tuple[int, ...],
        size: tuple[int, int],
        tile_n: int,
        kernels: KernelSet,
        factor: float = 1.0,
    ) -> None:
        self.matrices, self.stack = matrices, stack
        self.inner, self.columns = size
        self.depth = tiles.row_length(self.inner, kernels.assembly)
        self.runs = split(self.columns, tile_n, kernels.channels)
        self.floats = self.depth * sum(run.count * run.size for run in self.runs)
        self.factor = factor
        # Matrices that a stack repeats are packed once.
        self._own = tuple(extent if pitch else 1 for extent, pitch in zip(stack, matrices.stack, strict=True))

    def pack(self, source: Any) -> Any:
        """The buffer of all packed matrices of the tensor ``source``, flat floats."""
        count = prod(self._own)
        packed = T.alloc_buffer((count * self.floats + AHEAD_BYTES // 4,), "float32")
        for run in self.runs:
            with T.parallel(count * run.count) as piece:
                matrix, panel = piece // run.count, piece % run.count
                first = run.first + panel * run.size
                begin = place(self.matrices, self._own, matrix, 0, first)
                self._pack_panel(packed, matrix * self.floats + first * self.depth, source, begin, run)
        return packed

    def _pack_panel(self, packed: Any, to: Any, source: Any, begin: Any, run: Run) -> None:
        row, column = self.matrices.row, self.matrices.column

        def put(index: Any, at: Any) -> None:
            value = source[at] if self.factor == 1 else source[at] * tirx.const(self.factor, "float32")
            T.buffer_store(packed, value, [index])

        if column == 1:
            with T.serial(self.inner) as k:
                loops.sweep(run.used, lambda n: put(to + k * run.size + n, begin + k * row + n))
                loops.fill(packed, to + k * run.size + run.used, run.size - run.used)
        else:
            if run.used < run.size:
                loops.fill(packed, to, self.inner * run.size)
            with T.serial(self.inner) as k:
                for n in range(run.used):
                    put(to + k * run.size + n, begin + k * row + n * column)
        loops.fill(packed, to + self.inner * run.size, (self.depth - self.inner) * run.size)

    def begin(self, matrix: Any) -> Any:
        """Where the panels of a matrix of the stack begin."""
        at: Any = 0
        for axis, extent in enumerate(self._own):
            if extent > 1:
                at = at + matrix // prod(self.stack[axis + 1 :]) % extent * prod(self._own[axis + 1 :])
        return at * self.floats


class Rows:
    """Rows of the first operand in blocks of tiles: how many there are, and where a tile's pointers find them."""

    def __init__(self, rows: int, tile_m: int, block: int, kernels: KernelSet) -> None:
        self.least = _LEAST if kernels.assembly else 1
        self.tile_m = min(tile_m, max(rows, self.least))
        self.size = self.tile_m * block
        self.blocks = split(rows, self.size)

    def tiles(self, rows: int) -> list[Run]:
        """The tiles of a block of ``rows``."""
        return [at_least(run, self.least) for run in split(rows, self.tile_m)]

    def table(self, pitch: int, rows: int) -> np.ndarray:
        """Byte offsets of so many rows that lie ``pitch`` floats apart; the last is repeated where a tile is filled up."""
        offsets = np.arange(rows) * (4 * pitch)
        return np.pad(offsets, (0, self.tile_m + self.least), "edge").astype("int32")


class Blocks:
    """Emits a block of rows times a packed matrix."""

    def __init__(self, rows: Rows, panels: Panels, steps: Sequence[Step], kernels: KernelSet) -> None:
        self.rows, self.panels = rows, panels
        self._finish = tiles.finish_of(steps) if kernels.finishes else None
        self.tiles = Tiles(steps, self._finish, kernels.product)

    def bind(self, source: Any, packed: Any, table: Any, no_rows: Any, operands: Sequence[Any]) -> None:
        """Flat floats of rows and panels; the table of rows, and one that holds a zero; operands of the epilogue."""
        self.tiles.bind(source, packed, table, no_rows, operands)

    def emit(
        self,
        block: Run,
        first: Any,
        image: Any,
        matrix: Any,
        result: Any,
        place_of: Callable[[Any], Any],
        pitch: int,
        place_in_all: Callable[[Any], tuple[Any, Any]],
    ) -> None:
        """All panels for the ``block.used`` rows from ``first`` of the table on, whose offsets count from ``image``.

        Results of row m of the block go to ``place_of(m)`` of ``result``, those of the next row ``pitch`` further;
        ``place_in_all(m)`` is that row's (matrix, row) to operands of the epilogue.
        """
        own = self.rows.tiles(block.used)
        taps = Taps(0, 1, self.panels.depth)
        for panels in self.panels.runs:
            whole = panels.used == panels.size and self._finish is not None
            together = panels.count if whole and len(own) == own[0].count == 1 and own[0].used == own[0].size else 1
            with T.serial(panels.count // together) as panel:
                column = panels.first + panel * panels.size
                for run in own:
                    with T.serial(run.count) as tile:
                        within = run.first + tile * run.size
                        self.tiles.emit(
                            Tile(
                                run,
                                panels,
                                first + within,
                                image=image,
                                weights=self.panels.begin(matrix) + column * self.panels.depth,
                                to=place_of(within) + column,
                                pitch=pitch,
                                channel=column,
                                at=_behind(place_in_all, within),
                                count=together,
                            ),
                            result,
                            taps,
                        )


def _behind(place: Callable[[Any], tuple[Any, Any]], first: Any) -> Callable[[Any], tuple[Any, Any]]:
    """``place`` of rows counted from ``first`` on."""
    return lambda m: place(first + m)


def copy_rows(target: Any, source: Any, matrices: Matrices, begin: Any, size: tuple[int, int], pitch: int) -> None:
    """Copies ``size`` (rows, inner) from ``begin`` of ``source`` to rows ``pitch`` apart, filled up with zeros."""
    rows, inner = size
    with T.serial(rows) as m:
        if matrices.column == 1:
            loops.copy(target, m * pitch, source, begin + m * matrices.row, inner)
        else:
            with T.serial(inner) as k:
                value = source[begin + m * matrices.row + k * matrices.column]
                T.buffer_store(target, value, [m * pitch + k])
        loops.fill(target, m * pitch + inner, pitch - inner)


def block_buffer(rows: Rows, pitch: int) -> Any:
    """Room for a block's rows, and what fetching ahead may read behind them."""
    return T.alloc_buffer(((rows.size + rows.least) * pitch + SLACK,), "float32")
