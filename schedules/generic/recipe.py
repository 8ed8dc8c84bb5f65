"""The schedule of whatever has no operator of its own: softmax, layout changes, odd activations, means.

Such kernels are a few per cent of a network, so one plain recipe serves all: inline what is cheap to recompute, run the
innermost spatial loop in vectors, spread outer loops over the threads where the work is worth it.
"""

from __future__ import annotations

from contextlib import suppress
from math import prod

from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.s_tir.schedule import LoopRV, SBlockRV, Schedule, ScheduleError
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops

#: Vector widths in elements, the best first: four 128-bit registers of float32 hide the latency of arithmetic.
WIDTHS = (16, 8, 4)
#: Rows of an image that are turned at a time: they stay in the L2 cache.
_ROWS_BYTES = 160 * 1024
#: Below this many innermost iterations, waking threads costs more than they save (about 20 us of work).
PARALLEL_WORK = 16384

_SPATIAL, _REDUCTION = 0, 2


def schedule(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the recipe applied block by block; blocks of a form it does not fit stay as they are."""
    sch = Schedule(func.with_attr("global_symbol", "main"))
    _inline(sch)
    planes = _planes_of(sch)
    if planes is not None:
        return _restore(_planes(*planes), func)
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
    """Inline blocks with one reader into it, where that computes nothing twice; what cannot be inlined stays.

    A reduction may take in what it reads once, as a sum over an image does.
    """
    for block in _blocks(sch):
        readers = sch.get_consumers(block)
        if len(readers) != 1 or not _is_spatial(sch, block):
            continue
        if _is_spatial(sch, readers[0]) or _iterations(sch, readers[0]) == _iterations(sch, block):
            with suppress(ScheduleError):
                sch.compute_inline(block)


def _iterations(sch: Schedule, block: SBlockRV) -> int:
    return prod(int(var.dom.extent) for var in sch.get(block).iter_vars)


def _is_spatial(sch: Schedule, block: SBlockRV) -> bool:
    return all(int(var.iter_type) == _SPATIAL for var in sch.get(block).iter_vars)


def _schedule_block(sch: Schedule, block: SBlockRV) -> None:
    spatial, reduction = _loops(sch, block)
    if not spatial:
        return
    extents = [int(sch.get(loop).extent) for loop in spatial]
    work = prod(extents) * prod(int(sch.get(loop).extent) for loop in reduction)
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


def _planes_of(sch: Schedule) -> tuple[int, int, int] | None:
    """Height, width and channels of the image that a function brings from NHWC to NCHW, if that is all it does."""
    blocks = _blocks(sch)
    info = sch.get(blocks[0]) if len(blocks) == 1 else None
    if info is None or len(info.reads) != 1 or len(info.iter_vars) != 4 or not _is_spatial(sch, blocks[0]):
        return None
    n, c, y, x = (var.var for var in info.iter_vars)
    for region, order in ((info.reads[0].region, (n, y, x, c)), (info.writes[0].region, (n, c, y, x))):
        if len(region) != 4 or not all(each.min.same_as(var) for each, var in zip(region, order, strict=True)):
            return None
    params = sch.mod["main"].params
    if len(params) != 2:
        return None
    image = params[0]
    batch, height, width, channels = map(int, image.shape)
    copies = isinstance(info.body, tirx.BufferStore) and isinstance(info.body.value, TensorLoad)
    fits = batch == 1 and 4 * width * channels <= _ROWS_BYTES and str(image.dtype) == "float32"
    return (height, width, channels) if copies and fits and min(width, channels) > 1 else None


def _planes(height: int, width: int, channels: int) -> tirx.PrimFunc:
    """NHWC to NCHW: some rows are copied, as they lie in memory, to where a plane of channels is picked from at a time."""
    most = _ROWS_BYTES // (4 * width * channels)
    rows = max(count for count in range(1, most + 1) if height % count == 0)
    pixels, floats = rows * width, rows * width * channels
    with IRBuilder() as builder, T.prim_func():
        T.func_name("transpose")
        T.func_attr({"tirx.noalias": True})
        image = T.arg("image", T.buffer((1, height, width, channels), "float32"))
        planes = T.arg("planes", T.buffer((1, channels, height, width), "float32"))
        source, target = (loops.flat(each, height * width * channels) for each in (image, planes))
        many = height * width * channels >= PARALLEL_WORK
        with (T.parallel if many else T.serial)(height // rows) as block:
            part = T.alloc_buffer((floats,), "float32")
            loops.copy(part, 0, source, block * floats, floats)
            with T.serial(channels) as channel, T.serial(pixels) as pixel:
                at = channel * (height * width) + block * pixels + pixel
                T.buffer_store(target, part[pixel * channels + channel], [at])
    return builder.get()


def _loops(sch: Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Spatial and reduction loops of a block with one loop for each of its axes, in order."""
    loops = list(sch.get_loops(block))
    kinds = [int(var.iter_type) for var in sch.get(block).iter_vars]
    if len(loops) != len(kinds) or any(kind not in (_SPATIAL, _REDUCTION) for kind in kinds):
        return [], []
    pairs = list(zip(loops, kinds, strict=True))
    return [loop for loop, kind in pairs if kind == _SPATIAL], [loop for loop, kind in pairs if kind == _REDUCTION]
