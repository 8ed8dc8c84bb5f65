"""Which tiles to try first, before a cost model has learnt anything: those that a Cortex-A53's registers suggest.

A tiled program ends in loops over a register tile, inside the inner loops of its sum. A pass of those takes an instruction
for each four multiply-accumulates, and loads what the tile reads: four floats at a time where they are neighbours, one at a
time where a value serves all lanes. The sums themselves are loaded and stored once for all inner passes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm.s_tir.schedule import Schedule
from tvm.s_tir.stmt import SBlock
from tvm.tirx.analysis import undefined_vars

from bitkiln.schedules.generic.sketches import UNROLL, Sketch
from bitkiln.targets import Target

#: Floats in a vector.
_LANES = 4
#: Vectors that the register file holds besides a few for operands, by the architecture: of 32, or of 16.
_REGISTERS = {"aarch64": 24, "armv7l": 10}
#: Bytes that stay in the L2 cache, and what DRAM gives in a cycle (a Pi 3: 2.2 GB/s at 1.2 GHz).
_CACHED, _BYTES_PER_CYCLE = 256 * 1024, 1.8
#: Points looked at for each one that is given.
_LOOKED_AT = 200
#: Parts of the outermost loops that give several threads equal work.
_PARTS = 8
_SPATIAL = 0


@dataclass(frozen=True)
class Operand:
    """What a sum reads of one tensor: the axes that its indices depend on, and those of its innermost index."""

    axes: frozenset[int]
    innermost: frozenset[int]


def first_points(sketch: Sketch, target: Target, count: int, seed: int) -> list[dict[str, int | str]]:
    """Up to ``count`` points of a sketch, the most promising first; none for programs that are not one tiled sum."""
    block = _tiled_block(sketch)
    if block is None:
        return []
    spatial = sum(int(var.iter_type) == _SPATIAL for var in block.iter_vars)
    operands = [_operand(region, block) for region in block.reads]
    registers = _REGISTERS.get(target.architecture, min(_REGISTERS.values()))
    source = random.Random(seed)
    drawn = [{name: source.choice(values) for name, values in sketch.knobs.items()} for _ in range(_LOOKED_AT * count)]

    def sizes(point: Mapping[str, int | str]) -> list[list[int]]:
        return [[int(size) for size in str(point[name]).split("x")] for name in sketch.steps[: len(block.iter_vars)]]

    def cost(point: Mapping[str, int | str]) -> float:
        tiles = sizes(point)
        shared = min(1.0, prod(tile[0] for tile in tiles[:spatial]) / _PARTS)
        inner = [tile[-1] for tile in tiles]
        instructions = 1 / _rate(inner[:spatial], prod(inner[spatial:]), operands, registers)
        return (instructions + sum(_traffic(tiles, operand) for operand in operands)) / shared

    drawn.sort(key=cost)
    return [_unrolled(point, sketch, prod(tile[-1] for tile in sizes(point)[: spatial - 1])) for point in drawn[:count]]


def _unrolled(point: dict[str, int | str], sketch: Sketch, rows: int) -> dict[str, int | str]:
    """With the rows of the tile unrolled, so that they stay in registers, and no more: loads of the next loop would spill."""
    if UNROLL not in sketch.knobs:
        return point
    enough = [value for value in sketch.knobs[UNROLL] if int(value) >= rows]
    return {**point, UNROLL: min(enough or sketch.knobs[UNROLL], key=int)}


def _tiled_block(sketch: Sketch) -> SBlock | None:
    """The one block of the function that sums products, where each of its axes has a tile in the sketch."""
    sch = Schedule(sketch.module)
    blocks = [sch.get(each) for each in sch.get_child_blocks(sch.get_sblock("root"))]
    summing = [block for block in blocks if any(int(var.iter_type) != _SPATIAL for var in block.iter_vars)]
    tiled = [name for name in sketch.steps if " in " in name]
    if len(summing) != 1 or len(tiled) != len(summing[0].iter_vars) or len(summing[0].reads) < 2:
        return None
    return summing[0]


def _operand(region: Any, block: SBlock) -> Operand:
    each = [_axes(index.min, block) for index in region.region]
    return Operand(frozenset().union(*each), each[-1] if each else frozenset())


def _axes(index: Any, block: SBlock) -> frozenset[int]:
    used = undefined_vars(index)
    return frozenset(axis for axis, var in enumerate(block.iter_vars) if any(each.same_as(var.var) for each in used))


def _rate(tile: Sequence[int], passes: int, operands: Sequence[Operand], registers: int) -> float:
    """Multiply-accumulates an instruction, of ``passes`` over a register tile with so many places along each axis."""
    products = prod(tile)
    lanes = _LANES if tile[-1] % _LANES == 0 else 1
    last = len(tile) - 1
    accumulators = products / lanes
    loads = 0.0
    for operand in operands:
        places = prod(tile[axis] for axis in operand.axes if axis <= last)
        loads += places / lanes if last in operand.innermost else places
    spilled = 2 * max(0.0, accumulators - registers)
    return products / (accumulators + loads + spilled + 2 * accumulators / passes)


def _traffic(tiles: Sequence[Sequence[int]], operand: Operand) -> float:
    """Cycles of memory for each multiply-accumulate: a tensor that the L2 cache does not hold is read in each outer pass."""
    extents = [prod(tile) for tile in tiles]
    elements = prod(extents[axis] for axis in operand.axes)
    others = [tile for axis, tile in enumerate(tiles) if axis not in operand.axes and len(tile) > 2]
    at_a_time = elements / prod(tiles[axis][0] for axis in operand.axes if len(tiles[axis]) > 2)
    passes = prod(tile[0] if 4 * at_a_time < _CACHED else prod(tile[:-2]) for tile in others)
    return 4 * elements * passes / _BYTES_PER_CYCLE / prod(extents) if 4 * elements >= _CACHED else 0.0


def points(
    sketches: Mapping[str, Sketch], target: Target, count: int, seed: int
) -> list[tuple[str, dict[str, int | str]]]:
    """Up to ``count`` first points over all sketches, in turns, each with its sketch's name."""
    each = {name: first_points(sketch, target, count, seed) for name, sketch in sketches.items()}
    turns = [(name, found[turn]) for turn in range(count) for name, found in each.items() if turn < len(found)]
    return turns[:count]
