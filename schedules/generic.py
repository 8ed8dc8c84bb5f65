"""The schedule of whatever has no operator of its own: softmax, layout changes, odd activations, means.

Such kernels are a few per cent of a network, so one plain recipe serves all: inline what is cheap to recompute, run the
innermost spatial loop in vectors, spread outer loops over the threads where the work is worth it.
"""

from __future__ import annotations

from contextlib import suppress
from math import prod

from tvm import tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV, Schedule, ScheduleError

#: Vector widths in elements, the best first: four 128-bit registers of float32 hide the latency of arithmetic.
WIDTHS = (16, 8, 4)
#: Elements of a cache line.
LINE = 16
#: Below this many innermost iterations, waking threads costs more than they save (about 20 us of work).
PARALLEL_WORK = 16384

_SPATIAL, _REDUCTION = 0, 2


def schedule(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the recipe applied block by block; blocks of a form it does not fit stay as they are."""
    sch = Schedule(func.with_attr("global_symbol", "main"))
    _inline(sch)
    for block in _blocks(sch):
        attempt = sch.copy()
        with suppress(ScheduleError):
            _schedule_block(attempt, block)
            sch = attempt
    return _restore(sch.mod["main"], func)


def _restore(scheduled: tirx.PrimFunc, func: tirx.PrimFunc) -> tirx.PrimFunc:
    symbol = func.attrs.get("global_symbol") if func.attrs else None
    return scheduled.with_attr("global_symbol", symbol) if symbol else scheduled.without_attr("global_symbol")


def _blocks(sch: Schedule) -> list[SBlockRV]:
    root = sch.get_sblock("root")
    return list(sch.get_child_blocks(root))


def _inline(sch: Schedule) -> None:
    """Inline blocks with one reader into it, where both are free of reductions; what cannot be inlined stays."""
    for block in _blocks(sch):
        readers = sch.get_consumers(block)
        if len(readers) == 1 and _is_spatial(sch, block) and _is_spatial(sch, readers[0]):
            with suppress(ScheduleError):
                sch.compute_inline(block)


def _is_spatial(sch: Schedule, block: SBlockRV) -> bool:
    return all(int(var.iter_type) == _SPATIAL for var in sch.get(block).iter_vars)


def _schedule_block(sch: Schedule, block: SBlockRV) -> None:
    spatial, reduction = _loops(sch, block)
    if not spatial:
        return
    extents = [int(sch.get(loop).extent) for loop in spatial]
    work = prod(extents) * prod(int(sch.get(loop).extent) for loop in reduction)
    across = None if reduction else _across(sch, block, spatial)
    if across is not None:
        _transpose(sch, spatial, across, work)
        return
    width = next((width for width in WIDTHS if extents[-1] % width == 0), 1)
    outer, lanes = sch.split(spatial[-1], factors=[None, width])
    sch.reorder(*spatial[:-1], outer, *reduction, lanes)
    if width > 1:
        sch.vectorize(lanes)
    if work >= PARALLEL_WORK:
        sch.parallel(sch.fuse(*spatial[:-1], outer))
    if reduction:
        # Last: loops of a block without its own initial value cannot be made parallel any more.
        sch.decompose_reduction(block, reduction[0])


def _across(sch: Schedule, block: SBlockRV, spatial: list[LoopRV]) -> LoopRV | None:
    """The loop over neighbours in what a transpose reads, where it is another than that over neighbours in what it writes."""
    info = sch.get(block)
    if len(info.reads) != 1 or len(spatial) != len(info.iter_vars):
        return None
    last = info.reads[0].region[-1].min
    found = [loop for loop, var in zip(spatial, info.iter_vars, strict=True) if last.same_as(var.var)]
    extents = [int(sch.get(loop).extent) for loop in (*found, spatial[-1])]
    return found[0] if found and found[0] is not spatial[-1] and min(extents) >= LINE // 2 else None


def _transpose(sch: Schedule, spatial: list[LoopRV], across: LoopRV, work: int) -> None:
    """About a cache line of what is read at a time, so that it is not fetched again for each of its elements."""
    extent = int(sch.get(across).extent)
    near = sorted(range(LINE // 2, LINE * 5 // 4 + 1), key=lambda size: abs(size - LINE))
    size = next((size for size in near if extent % size == 0), LINE)
    outer, inner = sch.split(across, factors=[None, size])
    others = [loop for loop in spatial if loop is not across]
    sch.reorder(outer, *others, inner)
    if work >= PARALLEL_WORK:
        sch.parallel(outer)


def _loops(sch: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Spatial and reduction loops of a block with one loop for each of its axes, in order."""
    loops = list(sch.get_loops(block))
    kinds = [int(var.iter_type) for var in sch.get(block).iter_vars]
    if len(loops) != len(kinds) or any(kind not in (_SPATIAL, _REDUCTION) for kind in kinds):
        return [], []
    pairs = list(zip(loops, kinds, strict=True))
    return [loop for loop, kind in pairs if kind == _SPATIAL], [loop for loop, kind in pairs if kind == _REDUCTION]
