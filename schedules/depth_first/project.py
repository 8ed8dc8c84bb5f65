"""The last of the layers computed depth first: a product of the depthwise layer's pixels, which lie in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.conv2d.geometry import Run, split
from bitkiln.schedules.conv2d.packing import pack_panels
from bitkiln.schedules.conv2d.tiles import Taps, Tile, Tiles, at_least
from bitkiln.schedules.kernel import Argument, Constant, MicroKernel
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet
from bitkiln.schedules.microkernels.a53.sgemm import AHEAD_BYTES
from bitkiln.schedules.workload import Conv2d

#: The fewest pixels of a tile of products.
LEAST = 3


@dataclass(frozen=True)
class Pixels:
    """``count`` neighbouring pixels, of the result from pixel ``to`` on, of what is read from pixel ``start`` on."""

    to: Any
    start: Any
    count: int


class Project:
    """The layer ``work`` in tiles of ``size``, pixels x channels; pixels that it reads are ``pitch`` floats apart."""

    def __init__(self, work: Conv2d, size: tuple[int, int], kernels: KernelSet, pitch: int) -> None:
        self.work, self.size, self.pitch = work, size, pitch
        early = tiles.finished(work.epilogue)
        self.early, self.late = work.epilogue[:early], work.epilogue[early:]
        self.after = Late(self.late, kernels)
        self.finish = tiles.finish_of(self.early)
        self.tiles = Tiles(self.early, self.finish, kernels.product)
        self.panels = split(work.out_channels, size[1], kernels.channels)

    @property
    def microkernels(self) -> tuple[MicroKernel, ...]:
        """Those that were called."""
        return (*self.tiles.microkernels, *self.after.microkernels)

    def arguments(self, places: range) -> list[Argument | Constant]:
        """Weights in panels, operands, places of pixels for each number of them that a tile may have, of rows of taps."""
        work = self.work
        shapes = work.shapes[2:-1]
        size = work.channels * sum(run.count * run.size for run in self.panels) + AHEAD_BYTES // 4
        pixels = [np.minimum(np.arange(self.size[0]), used - 1) for used in range(1, self.size[0] + 1)]
        return [
            Argument((places[0],), (size,), "float32", self._pack),
            *(Argument((at,), *spec) for at, spec in zip(places[1:], shapes, strict=True)),
            Constant((np.concatenate(pixels) * (4 * self.pitch)).astype("int32")),
            Constant(np.zeros(2, "int32")),
        ]

    def bind(self, buffers: Sequence[Any]) -> None:
        """The kernel's parameters of ``arguments``."""
        self.weights, *self.operands, self.pixels, self.rows = buffers

    def claim(self, result: Any, runs: Sequence[Pixels]) -> None:
        """Claims the results of ``runs``."""
        for run in runs:
            loops.claim(result, run.to * self.work.out_channels, run.count * self.work.out_channels)

    def emit(self, between: Any, result: Any, runs: Sequence[Pixels], following: Sequence[Pixels] = ()) -> None:
        """The results of ``runs``; claims those of ``following``, as many."""
        self.tiles.bind(between, self.weights, self.pixels, self.rows, self.operands)
        for number, pixels in enumerate(runs):
            for run in (at_least(run, LEAST) for run in split(pixels.count, self.size[0])):
                with T.serial(run.count) as index:
                    pixel = run.first + index * run.size
                    ahead = following[number].to + pixel if following else None
                    self._tile(result, pixels.start + pixel, pixels.to + pixel, run, ahead)
            self._late(result, pixels.to, pixels.count)

    def _late(self, result: Any, to: Any, count: int) -> None:
        """The steps of ``count`` pixels from ``to`` on that the products left."""
        if self.late:
            size = (self.work.conv_size[1], self.work.out_channels)
            operands = tiles.operands_behind(self.work.epilogue, len(self.early), self.operands)
            self.after.apply(result, to * size[1], to, count, size, operands)

    def _tile(self, result: Any, pixel: Any, to: Any, run: Run, ahead: Any) -> None:
        """A tile of the pixels from ``pixel`` on, by all panels; beside it pixels ``ahead`` of the result are claimed."""
        work = self.work
        one = run.used == run.size
        for panels in self.panels:
            together = one and panels.used == panels.size and self.finish is not None
            inside = panels.count if together else 1
            with T.serial(panels.count // inside) as panel:
                channel = panels.first + panel * panels.size
                claimed = None
                if ahead is not None and together:
                    claimed = T.address_of(result[ahead * work.out_channels + channel * run.used])
                tile = Tile(
                    Run(0, 1, run.size, run.used),
                    panels,
                    (run.used - 1) * self.size[0],
                    image=pixel * self.pitch,
                    weights=channel * work.channels,
                    to=to * work.out_channels + channel,
                    pitch=work.out_channels,
                    channel=channel,
                    at=lambda m: ((to + m) // work.conv_size[1], (to + m) % work.conv_size[1]),
                    count=inside,
                    reach=True,
                    claimed=claimed,
                )
                self.tiles.emit(tile, result, Taps(0, 1, work.channels))

    def _pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        weights = pack_panels(arrays[0].reshape(self.work.out_channels, -1), self.panels)
        return np.concatenate([weights, np.zeros(AHEAD_BYTES // 4, "float32")])


def places(layers: Sequence[Conv2d], number: int) -> range:
    """Which arguments of ``DepthFirst`` are the weight and the operands of the layer of that ``number``."""
    counts = [len(layer.shapes) - 2 for layer in layers]
    return range(1 + sum(counts[:number]), 1 + sum(counts[: number + 1]))
