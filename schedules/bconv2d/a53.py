"""Binary convolution on the Cortex-A53: patches packed into panels, multiplied by micro-kernels in tiles.

The panel holds pairs of patches (see ``bpack_a53``), the weights stand in blocks of as many vectors of 8 channels as a tile
has (see ``bgemm_tile_a53``). Two orders of the loops:

- pixels outside: a chunk of tiles is packed, then multiplied with all weights. The panel stays in L1; weights that do not
  fit there come from L2 once a chunk. Threads share the chunks.
- channels outside (a chunk of 0): everything is packed first; then each block of weights meets all tiles. Weights are read
  once. Threads share the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.bconv2d import image, result
from bitkiln.schedules.bconv2d.epilogue_a53 import Epilogue
from bitkiln.schedules.bconv2d.geometry import LANES, Geometry
from bitkiln.schedules.binarize.beside import Beside
from bitkiln.schedules.kernel import Argument, Constant, Kernel, Knobs, MicroKernel, size_of
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.microkernels.a53.bgemm_float import IN_REGISTERS
from bitkiln.schedules.microkernels.a53.bgemm_tile import OVERREAD
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

#: Words of a pixel up to which the set's last tile, with whole lines of floats of many channels,
#: wins where the result does not fit the L2 cache.
_SHORT_AND_LARGE = 16


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """The tuning space."""
    return {"tile": [_name(tile) for tile in _tiles(target)], "chunk": [0, 1, 2, 4, 8]}


def default(workload: Conv2d, target: Target) -> dict[str, int | str]:
    """The tile with the fewest loads. Pixels outside, so that results are written in order, if all threads get some.

    A product too short to hide the traffic of its floats takes the tile that meets memory in order itself.
    """
    where, threads = Geometry(workload, alignment=2), int(target.cpu["cores"])
    offered = _tiles(target)
    wide = offered[-1]
    words = where.taps * where.pixel_bytes // 2
    leaves_l2 = 4 * where.pixels * workload.out_channels > target.cpu["l2_kib"] * 1024
    short = words <= (_SHORT_AND_LARGE if leaves_l2 else offered[0][0])
    tile = wide if short and workload.out == "float32" and where.channel_groups >= wide[1] else offered[0]
    tile = next((each for each in (tile, *offered) if _unbroken(workload, each[1])), tile)
    tiles = where.pixels // tile[0]
    if tiles < 2 * threads:
        return {"tile": _name(tile), "chunk": 0}
    return {"tile": _name(tile), "chunk": 2 if tiles >= 8 * threads and tile != wide else 1}


def emit(workload: Conv2d, knobs: Knobs, target: Target) -> Kernel:
    """The implementation at one point of the space."""
    pixels, vectors = size_of(knobs["tile"])
    kernels, threads = kernel_set(target), int(target.cpu["cores"])
    return _Emitter(workload, pixels, vectors // LANES, int(knobs["chunk"]), threads, kernels).kernel()


def _tiles(target: Target) -> tuple[tuple[int, int], ...]:
    """Pixels x vectors of 8 channels."""
    return tuple((pixels, channels // LANES) for pixels, channels in kernel_set(target).bgemm)


def _unbroken(workload: Conv2d, vectors: int) -> bool:
    """Whether the micro-kernel's epilogue, if it has it, can serve blocks of so many vectors."""
    where = Geometry(workload, alignment=2)
    blocks = _blocks(where.channel_groups, vectors)
    return not Epilogue.applies(where) or all(Epilogue(where).fits(block.vectors) for block in blocks)


def _name(tile: tuple[int, int]) -> str:
    return f"{tile[0]}x{tile[1] * LANES}"


@dataclass(frozen=True)
class _Block:
    """``count`` blocks of ``vectors`` channel groups from group ``first`` on."""

    first: int
    count: int
    vectors: int


@dataclass
class _Buffers:
    image: Any
    weights: Any
    patches: Any
    runs: Any
    results: list[Any]
    target: Any
    #: The tables of signs and where the signs go.
    tables: list[Any]
    bits: list[Any]


class _Emitter:
    def __init__(
        self, workload: Conv2d, pixels: int, vectors: int, chunk: int, threads: int, kernels: KernelSet
    ) -> None:
        assert kernels.binary
        self.set, self.given = kernels.binary, workload
        workload = result.with_floats(workload)
        self.where = Geometry(workload, alignment=2)
        self.spec = result.Spec(self.where, "uint16")
        self.epilogue = Epilogue(self.where) if self.set.floats and Epilogue.applies(self.where) else None
        self.words = self.where.taps * self.where.pixel_bytes // 2
        self.tile, self.chunk, self.threads = pixels, chunk, threads
        self.pack: MicroKernel = self.set.pack(len(self.where.runs), self.where.run_bytes)
        self.blocks = _blocks(self.where.channel_groups, vectors)
        if self.epilogue and not all(self.epilogue.fits(block.vectors) for block in self.blocks):
            self.epilogue = None
        if self.epilogue and Epilogue.packs_signs(self.where, self._all_tiles):
            self.epilogue = Epilogue(self.where, self._all_tiles, self.given.out == "float32")
        packed = self.epilogue is not None and self.epilogue.sign is not None
        self.beside = Beside(replace(workload, signs=()) if packed else workload, self._run, kernels.binarize)
        self.microkernels: dict[str, MicroKernel] = {
            each.symbol: each for each in (self.pack, *self.beside.microkernels)
        }

    def kernel(self) -> Kernel:
        arguments = self._arguments()
        with IRBuilder() as builder, T.prim_func():
            T.func_name("bconv2d")
            T.func_attr({"tirx.noalias": True})
            data, weights, patches, runs, *results = loops.parameters(arguments)
            out, bits = result.outputs(self.given)
            own = len(results) - len(self.beside.arguments)
            source = image.padded(self.where, data)
            unpooled = result.unpooled(self.where.workload, out)
            self.buffers = _Buffers(source, weights, patches, runs, results[:own], unpooled, results[own:], bits)
            (self._by_pixels if self.chunk else self._by_channels)()
            result.pool(self.where.workload, unpooled, out)
            if not self._packs_runs:
                self.beside.emit(out, results[own:], bits)
        order = f"{self.chunk} tiles at a time" if self.chunk else "channels outside"
        notes = f"micro-kernel {self.tile} pixels x {self.blocks[0].vectors * LANES} channels, {order}"
        return Kernel(builder.get(), arguments, tuple(self.microkernels.values()), notes)

    def _arguments(self) -> tuple[Argument | Constant, ...]:
        where, spare = self.where, OVERREAD // 2
        patches = where.patches if where.pixels % 2 == 0 else np.append(where.patches, where.patches[-1:])
        return (
            Argument((0,), *where.workload.shapes[0]),
            Argument((1,), (where.channel_groups * self.words * LANES + spare,), "uint16", self._pack_weights),
            Constant(patches),
            Constant(where.runs),
            *(self.epilogue or self.spec).arguments,
            *self.beside.arguments,
        )

    def _pack_weights(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [O, kh, kw, bytes] as uint16 [block][words][vectors][LANES]."""
        words = self.where.pack_lanes(arrays[0]).view("<u2")
        parts = []
        for block in self.blocks:
            lanes = words[block.first : block.first + block.count * block.vectors]
            lanes = lanes.reshape(block.count, block.vectors, LANES, self.words)
            parts.append(lanes.transpose(0, 3, 1, 2).ravel())
        return np.concatenate([*parts, np.zeros(OVERREAD // 2, "uint16")])

    @cached_property
    def _tiles(self) -> int:
        """Full tiles."""
        return self.where.pixels // self.tile

    @property
    def _rest(self) -> int:
        """Pixels behind the full tiles."""
        return self.where.pixels % self.tile

    @property
    def _all_tiles(self) -> tuple[tuple[int, int], ...]:
        """Pixels and vectors of every tile there is."""
        pixels = [size for size, count in ((self.tile, self._tiles), (self._rest, self._rest)) if count]
        return tuple((size, block.vectors) for size in pixels for block in self.blocks)

    @property
    def _packs_runs(self) -> bool:
        """Whether signs are packed when a chunk of tiles is done; else when all is."""
        return self.chunk > 0 and self.where.workload.pool is None

    @property
    def _run(self) -> int:
        """Pixels whose signs are packed at a time, at least."""
        if not self._packs_runs:
            return self.where.workload.out_size[1]
        return min(self.chunk * self.tile, self.where.pixels)

    def _signs(self, first: Any, pixels: int) -> None:
        """Those of ``pixels`` pixels from pixel ``first`` on, which are done."""
        if self._packs_runs and self.beside.work.signs:
            channels = self.where.workload.out_channels
            floats = loops.flat(self.buffers.target, self.where.pixels * channels)
            self.beside.emit_run(floats, first * channels, first, pixels, self.buffers.tables, self.buffers.bits)

    @property
    def _bound_rows(self) -> str:
        """How many rows the table of bounds has, as the micro-kernel calls it."""
        if self.where.workload.threshold == "element":
            return "each"
        return "some" if self.where.true_zeros else "one"

    @property
    def _compares(self) -> bool:
        """Whether a micro-kernel holds the counts against the bounds."""
        return self._bound_rows in self.set.rows and self.where.workload.thresholds <= self.set.thresholds

    def _by_pixels(self) -> None:
        chunks, rest = divmod(self._tiles, self.chunk)
        panel_pixels = self.chunk * self.tile
        if chunks:
            with T.parallel(min(self.threads, chunks)) as thread:
                panel = self._panel(panel_pixels)
                begin, end = (bound * chunks // min(self.threads, chunks) for bound in (thread, thread + 1))
                with T.serial(begin, end) as chunk:
                    first = chunk * panel_pixels
                    self._fill(panel, 0, first, panel_pixels // 2)
                    self._multiply(panel, first, self.chunk, 0)
                    self._signs(first, panel_pixels)
        if rest or self._rest:
            panel = self._panel(panel_pixels)
            first = chunks * panel_pixels
            self._fill(panel, 0, first, -(-(self.where.pixels - first) // 2))
            self._multiply(panel, first, rest, self._rest)
            # Some of those before once more, where these are too few.
            last = max(self.where.pixels - first, self._run)
            self._signs(self.where.pixels - last, last)

    def _by_channels(self) -> None:
        panel = self._panel(self.where.pixels)
        pairs = -(-self.where.pixels // 2)
        threads = min(self.threads, pairs)
        with T.parallel(threads) as thread:
            begin, end = (bound * pairs // threads for bound in (thread, thread + 1))
            self._fill(panel, begin, begin * 2, end - begin)
        for block in self.blocks:
            with T.parallel(block.count) as i:
                self._sweep(panel, 0, self._tiles, self._rest, block, i)

    def _panel(self, pixels: int) -> Any:
        return T.alloc_buffer((-(-pixels // 2) * self.words * 2 + OVERREAD // 2,), "uint16")

    def _fill(self, panel: Any, pair: Any, first: Any, pairs: Any) -> None:
        """Packs ``pairs`` pairs of patches from pixel ``first`` on into the panel, from its pair ``pair`` on."""
        at, buffers = T.address_of, self.buffers
        arguments = (at(panel[pair * self.words * 2]), at(buffers.image[0]), at(buffers.patches[first]))
        T.evaluate(T.call_extern("int32", self.pack.symbol, *arguments, at(buffers.runs[0]), pairs))

    def _multiply(self, panel: Any, first: Any, tiles: int, rest: int) -> None:
        """The panel, which begins with pixel ``first``, with all weights."""
        for block in self.blocks:
            with T.serial(block.count) as i:
                self._sweep(panel, first, tiles, rest, block, i)

    def _sweep(self, panel: Any, first: Any, tiles: int, rest: int, block: _Block, i: Any) -> None:
        """All tiles of a panel with block ``i``."""
        group = block.first + i * block.vectors
        if tiles:
            with T.serial(tiles) as tile:
                self._one_tile(panel, tile * self.tile, first + tile * self.tile, self.tile, group, block.vectors)
        if rest:
            self._one_tile(panel, tiles * self.tile, first + tiles * self.tile, rest, group, block.vectors)

    def _one_tile(self, panel: Any, at: Any, first: Any, pixels: int, group: Any, vectors: int) -> None:
        """The tile at pixel ``at`` of the panel, which is pixel ``first`` of the image."""
        buffers, width = self.buffers, self.where.workload.conv_size[1]
        sources = (
            T.address_of(panel[at * self.words]),
            T.address_of(buffers.weights[group * (self.words * LANES)]),
        )
        y, x = first // width, first % width
        if self.spec.bits and self._compares:
            table, rows = buffers.results
            self._call(
                self.set.bits(pixels, vectors, self.words, self._bound_rows, self.where.workload.thresholds),
                *sources,
                T.address_of(buffers.target[0, y, x, group]),
                self.where.channel_groups,
                T.address_of(table[0, group * LANES]),
                T.address_of(rows[first]),
            )
        elif self.epilogue:
            self._call(
                self.epilogue.microkernel(pixels, vectors, self.words),
                *sources,
                T.address_of(buffers.target[0, y, x, group * LANES]),
                self._strides(first, pixels),
                *self._last_arguments(self.epilogue, first, pixels, group, vectors),
            )
        else:
            counts = T.alloc_buffer((pixels * vectors * LANES,), "uint16", scope="local")
            self._call(self.set.counts(pixels, vectors, self.words), *sources, T.address_of(counts[0]))
            writer = result.Writer(self.spec, buffers.results, buffers.target)
            with T.serial(pixels) as pixel, T.serial(vectors) as vector:
                writer.store(first + pixel, group + vector, counts, (pixel * vectors + vector) * LANES)

    def _last_arguments(self, epilogue: Epilogue, first: Any, pixels: int, group: Any, vectors: int) -> list[Any]:
        """Those of a tile behind its strides; what signs take follows on the stack, behind arguments that nobody reads."""
        results, width = self.buffers.results, self.where.workload.conv_size[1]
        addresses = epilogue.addresses(results, first, group)
        if epilogue.sign is None:
            return addresses
        (target,) = self.buffers.bits
        bits = T.address_of(target[0, first // width, first % width, group])
        unread = [T.int64(0)] * (IN_REGISTERS - 4 - len(addresses))
        return [*addresses, *unread, *epilogue.sign_addresses(results, bits, group, (pixels, vectors))]

    def _strides(self, first: Any, pixels: int) -> Any:
        """Bytes between pixels of the result and, in the upper half, pixels from a tile to the next, if it lies inside."""
        ahead = tirx.Select(first + 2 * pixels <= self.where.pixels, T.int64(pixels << 32), T.int64(0))
        return ahead + T.int64(self.where.workload.out_channels * 4)

    def _call(self, microkernel: MicroKernel, *arguments: Any) -> None:
        self.microkernels[microkernel.symbol] = microkernel
        T.evaluate(T.call_extern("int32", microkernel.symbol, *arguments))


def _blocks(groups: int, vectors: int) -> list[_Block]:
    """Full blocks, then the rest in blocks of up to 4 vectors."""
    full, rest = divmod(groups, vectors)
    blocks = [_Block(0, full, vectors)] if full else []
    while rest:
        blocks.append(_Block(groups - rest, 1, min(rest, 4)))
        rest -= min(rest, 4)
    return blocks
