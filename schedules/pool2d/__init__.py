"""Pooling on its own: of floats, with an epilogue, of whole numbers, and of bits, where a maximum is a bitwise OR."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import definition as stages
from bitkiln.schedules import loops
from bitkiln.schedules.binarize.beside import Beside, outputs
from bitkiln.schedules.kernel import Argument, Kernel, Knobs, MicroKernel
from bitkiln.schedules.late import Late
from bitkiln.schedules.microkernels import KernelSet, kernel_set
from bitkiln.schedules.pool2d import a53 as pool2d_a53
from bitkiln.schedules.steps import expression
from bitkiln.schedules.workload import Pool, Pool2d, packed, result_spec
from bitkiln.targets import Target

#: Channels that are reduced side by side: a cache line of floats in four registers, or 16 bytes of bits in one.
LANES = 16
#: Channels of a single pixel that are reduced at a time: cache lines side by side, which are waited for together.
LINES = 64
#: An average of fewer is done before other threads would have begun.
FEWEST_PIXELS = 16

#: Rows or columns of a window that are reduced in one expression.
MOST_TAPS = 16

#: Elements of a row that are reduced before the next ones: they stay in the cache.
PIECE = 1024

#: Emits the store of a value at (column, channel or byte); called inside a vectorised loop.
Store = Callable[[Any, Any, Any], None]


def reference(workload: Pool2d) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the outputs last."""
    if workload.bits:
        return _bits_reference(workload)
    data = te.placeholder(*workload.shapes[0], name="data")
    operands = stages.operand_tensors(workload.epilogue, (*workload.out_size, workload.channels))
    result = stages.apply_epilogue(stages.pool(data, workload.pool), workload.epilogue, operands)
    if workload.out == "bits":
        result = stages.signs(result, workload.sign_zero)
    more, bits = stages.beside(result, workload.signs, (*workload.out_size, workload.channels))
    return te.create_prim_func([data, *operands, *more, result, *bits])


def space(workload: Pool2d, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Pool2d, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Pool2d, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """Rows of the result in parallel, of a single pixel its channels; the window is clipped to the input.

    Channels are vector lanes.
    """
    beside = Beside(workload, workload.out_size[1], kernel_set(target).binarize)
    own = 1 + workload.invert + sum(step.operand != "" for step in workload.epilogue)
    arguments = (*(Argument((i,), *spec) for i, spec in enumerate(workload.shapes[:own])), *beside.arguments)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("pool2d")
        T.func_attr({"tirx.noalias": True})
        data, *others = loops.parameters(arguments)
        operands, tables = others[: own - 1], others[own - 1 :]
        out = T.arg("out", T.buffer(*result_spec(workload)))
        bits = outputs(workload)
        kernels = kernel_set(target)
        micro: tuple[MicroKernel, ...] = ()
        size = (workload.height, workload.width)
        floats = workload.shapes[0][1] == "float32"
        lines = floats and pool2d_a53.applies(workload.pool, size, workload.channels, kernels)
        single = workload.out_size == (1, 1) and workload.out == "float32" and floats and not lines
        single &= math.prod(size) >= FEWEST_PIXELS
        # An image that is in memory is read in the order in which it lies there.
        large = math.prod(size) * workload.channels * 4 > target.cpu["l2_kib"] * 1024 // 2
        with T.parallel(workload.out_size[0]) as y:
            if single and large and workload.pool.kernel == size:
                _whole_image(data, workload.pool, _store_floats(workload, operands, out, y), threads)
            elif single:
                _clipped_row(data, workload.pool, y, _store_floats(workload, operands, out, y), LINES, T.parallel)
            elif lines:
                micro = _lines_row(workload, data, operands, out, y, kernels)
            elif workload.bits:
                pool_row(data, workload.pool, y, _store_bits(workload, operands, out, y))
            elif workload.out == "bits":
                _signs_row(workload, data, operands, out, y)
            else:
                pool_row(data, workload.pool, y, _store_floats(workload, operands, out, y))
            if bits:
                width = workload.out_size[1]
                floats = loops.flat(out, math.prod(result_spec(workload)[0]))
                beside.emit_run(floats, y * (width * workload.channels), y * width, width, tables, bits)
    notes = "lines of 16 channels" if micro else "plain"
    return Kernel(builder.get(), arguments, (*micro, *beside.microkernels), notes)


def _lines_row(
    workload: Pool2d, data: Any, operands: list[Any], out: Any, y: Any, kernels: KernelSet
) -> tuple[MicroKernel, ...]:
    """Emits row ``y`` by micro-kernels; the epilogue runs in place over the row while it is in the cache."""
    assert kernels.pool
    size, width, channels = (workload.height, workload.width), workload.out_size[1], workload.channels
    source = loops.flat(data, math.prod(size) * channels)
    bits = workload.out == "bits"
    row = (
        T.alloc_buffer((width * channels,), "float32") if bits else loops.flat(out, math.prod(result_spec(workload)[0]))
    )
    to = 0 if bits else y * (width * channels)
    after = Late(workload.epilogue, kernels)
    micro = pool2d_a53.emit_row(row, to, source, size, workload.pool, channels, y, kernels.pool)
    if workload.epilogue:
        after.apply(row, to, y * width, width, (width, channels), operands)
    if bits:
        _pack_row(workload, row, out, y)
    return (micro, *after.microkernels)


def emit_row(
    out: Any, y: Any, source: Any, size: tuple[int, int], window: Pool, channels: int, row: Any, kernels: KernelSet
) -> list[MicroKernel]:
    """Emits row ``y`` of ``out`` [1, OH, OW, C], by micro-kernels where they apply.

    It is row ``row`` of pooling ``source``, an image of ``size`` of flat floats.

    Returns the micro-kernels that it calls.
    """
    if kernels.pool and pool2d_a53.applies(window, size, channels, kernels):
        shape = [int(extent) for extent in out.shape]
        target = loops.flat(out, math.prod(shape))
        to = y * (shape[2] * channels)
        return [pool2d_a53.emit_row(target, to, source, size, window, channels, row, kernels.pool)]
    image = T.decl_buffer((1, *size, channels), "float32", data=source.data)
    pool_row(image, window, row, lambda x, channel, value: T.buffer_store(out, value, [0, y, x, channel]))
    return []


def pool_row(data: Any, window: Pool, y: Any, store: Store) -> None:
    """Emits row ``y`` of the pooling of ``data`` [1, H, W, C]: float32, int8, or bits, whose maximum is the OR.

    Rows are reduced first, in the order they lie in memory, then columns; the reduced row stays in the cache.
    """
    if max(window.kernel) > MOST_TAPS or (window.kind == "avg" and any(window.padding)):
        _clipped_row(data, window, y, store)
        return
    _, height, width, channels = (int(extent) for extent in data.shape)
    pitch = width * channels
    source = loops.flat(data, height * pitch, data.dtype)
    reduced = T.alloc_buffer((pitch,), data.dtype)
    rows = [row * pitch for row in _taps(window, 0, y, height)]
    combine = _combination(window, data.dtype)
    each_block(pitch, PIECE, lambda first, size: _reduce_rows(reduced, source, rows, combine, first, size))
    scale = tirx.const(1 / (window.kernel[0] * window.kernel[1]), "float32")
    with T.serial(window.out_size(height, width)[1]) as x:
        columns = [column * channels for column in _taps(window, 1, x, width)]

        def channel(c: Any) -> None:
            value = reduce(combine, [reduced[column + c] for column in columns])
            store(x, c, value if window.kind == "max" else value * scale)

        loops.sweep(channels, channel)


def _reduce_rows(
    reduced: Any, source: Any, rows: Sequence[Any], combine: Callable[[Any, Any], Any], first: Any, size: int
) -> None:
    """Emits reduced[i] = source[row + i] combined over all rows, a row at a time: the core fetches one stream best."""
    begin, *others = rows
    loops.sweep(size, lambda i: T.buffer_store(reduced, source[begin + first + i], [first + i]))

    def add(row: Any) -> None:
        loops.sweep(
            size, lambda i: T.buffer_store(reduced, combine(reduced[first + i], source[row + first + i]), [first + i])
        )

    for row in others:
        add(row)


def _taps(window: Pool, axis: int, at: Any, size: int) -> list[Any]:
    """The rows or columns of the window at ``at``. Outside the input stands its nearest: a maximum may count it twice."""
    first = at * window.strides[axis] - window.padding[axis]
    padded = window.padding[axis] or window.padding[axis + 2]
    taps = [first + tap for tap in range(window.kernel[axis])]
    return [tirx.min(tirx.max(tap, 0), size - 1) for tap in taps] if padded else taps


def _combination(window: Pool, dtype: str) -> Callable[[Any, Any], Any]:
    if dtype == "uint8":
        return operator.or_
    return tirx.max if window.kind == "max" else operator.add


def _clipped_row(
    data: Any,
    window: Pool,
    y: Any,
    store: Store,
    most_lanes: int = LANES,
    loop: Callable[[Any], Any] | None = None,
) -> None:
    """As ``pool_row``, for averages that leave out what is padded, and for huge windows.

    ``loop`` goes over the channels, ``most_lanes`` at a time.
    """
    _, height, width, channels = (int(extent) for extent in data.shape)
    with T.serial(window.out_size(height, width)[1]) as x:

        def block(first: Any | int, lanes: int) -> None:
            reduced = T.alloc_buffer((lanes,), data.dtype, scope="local")
            _reduce(data, window, (y, x), first, reduced)
            scale = _scale(window, (height, width), (y, x))
            with T.vectorized(lanes) as lane:
                store(x, first + lane, reduced[lane] if scale is None else reduced[lane] * scale)

        each_block(channels, most_lanes, block, loop)


def _whole_image(data: Any, window: Pool, store: Store, threads: int) -> None:
    """The one pixel that a window as large as the image gives: each thread reduces a band of rows, pixel by pixel."""
    _, height, width, channels = (int(extent) for extent in data.shape)
    pitch = width * channels
    source = loops.flat(data, height * pitch)
    combine = _combination(window, data.dtype)
    scale = tirx.const(1.0 if window.kind == "max" else 1 / (height * width), "float32")
    bands = min(threads, height)
    reduced = T.alloc_buffer((bands * channels,), "float32")
    with T.parallel(bands) as band:
        first, begin, end = band * channels, band * height // bands, (band + 1) * height // bands
        loops.copy(reduced, first, source, begin * pitch, channels)
        with T.serial(begin * width + 1, end * width) as pixel:

            def add(i: Any) -> None:
                T.buffer_store(reduced, combine(reduced[first + i], source[pixel * channels + i]), [first + i])

            loops.sweep(channels, add)

    def finish(i: Any) -> None:
        store(0, i, reduce(combine, [reduced[band * channels + i] for band in range(bands)]) * scale)

    loops.sweep(channels, finish)


def each_block(
    channels: int, lanes: int, body: Callable[[Any | int, int], None], loop: Callable[[Any], Any] | None = None
) -> None:
    """Emits ``body(first channel, lane count)`` over all channels: full blocks in a ``loop``, then the rest."""
    if channels // lanes:
        with (loop or T.serial)(channels // lanes) as block:
            body(block * lanes, lanes)
    if channels % lanes:
        body(channels - channels % lanes, channels % lanes)


def _reduce(data: Any, window: Pool, at: tuple[Any, ...], first: Any | int, reduced: Any) -> None:
    """Emits ``reduced`` = the maximum, sum or OR of the channels from ``first`` over the window at (y, x)."""
    (lanes,) = (int(extent) for extent in reduced.shape)
    start = tirx.min_value(data.dtype) if window.kind == "max" else tirx.const(0, data.dtype)
    with T.vectorized(lanes) as lane:
        T.buffer_store(reduced, start, [lane])
    begin_y, end_y, begin_x, end_x = _span(data, window, at)
    combine = _combination(window, data.dtype)
    with T.serial(begin_y, end_y) as row, T.serial(begin_x, end_x) as column, T.vectorized(lanes) as lane:
        T.buffer_store(reduced, combine(reduced[lane], data[0, row, column, first + lane]), [lane])


def _span(data: Any, window: Pool, at: tuple[Any, ...]) -> list[Any]:
    """First row, end row, first column and end column of the window at (y, x), inside ``data``."""
    ends = []
    for axis in (0, 1):
        first = at[axis] * window.strides[axis] - window.padding[axis]
        last = first + window.kernel[axis]
        padded = window.padding[axis] or window.padding[axis + 2]
        ends += [tirx.max(first, 0), tirx.min(last, data.shape[axis + 1])] if padded else [first, last]
    return ends


def _scale(window: Pool, size: tuple[int, int], at: tuple[Any, ...]) -> Any | None:
    """What the sum over the window at (y, x) is multiplied with for an average; None for a maximum."""
    if window.kind == "max":
        return None
    if window.count_include_pad or not any(window.padding):
        return tirx.const(1 / (window.kernel[0] * window.kernel[1]), "float32")
    return tirx.const(1, "float32") / stages.window_size(window, size, *at)


def _store_bits(workload: Pool2d, operands: list[Any], out: Any, y: Any) -> Store:
    def store(x: Any, byte: Any, value: Any) -> None:
        T.buffer_store(out, value ^ operands[0][byte] if workload.invert else value, [0, y, x, byte])

    return store


def _store_floats(workload: Pool2d, operands: list[Any], out: Any, y: Any) -> Store:
    def store(x: Any, channel: Any, value: Any) -> None:
        result = expression(workload.epilogue, value, operands, (y, x, channel))
        T.buffer_store(out, result, [0, y, x, channel])

    return store


def _signs_row(workload: Pool2d, data: Any, operands: list[Any], out: Any, y: Any) -> None:
    """Emits row ``y`` as bits: the floats of the row first, then their signs."""
    channels = workload.channels
    row = T.alloc_buffer((workload.out_size[1] * channels,), "float32")

    def store(x: Any, channel: Any, value: Any) -> None:
        result = expression(workload.epilogue, value, operands, (y, x, channel))
        T.buffer_store(row, result, [x * channels + channel])

    pool_row(data, workload.pool, y, store)
    _pack_row(workload, row, out, y)


def _pack_row(workload: Pool2d, row: Any, out: Any, y: Any) -> None:
    """The signs of ``row``, row ``y`` of the result."""
    width, channels = workload.out_size[1], workload.channels
    target = loops.flat(out, workload.out_size[0] * width * packed(channels), "uint8")
    with T.serial(width) as x:
        pixel = y * width + x
        loops.pack_signs(target, pixel * packed(channels), row, x * channels, channels, workload.sign_zero)


def _bits_reference(workload: Pool2d) -> tirx.PrimFunc:
    data = te.placeholder(workload.shapes[0][0], "uint8", name="data")
    window = workload.pool
    padded = stages.pad(data, window.padding, tirx.const(0, "uint8"))
    taps = [(ry, rx) for ry in range(window.kernel[0]) for rx in range(window.kernel[1])]

    def union(n: tirx.Var, y: tirx.Var, x: tirx.Var, byte: tirx.Var) -> Any:
        value = tirx.const(0, "uint8")
        for ry, rx in taps:
            value = value | padded[n, y * window.strides[0] + ry, x * window.strides[1] + rx, byte]
        return value

    result = te.compute(workload.shapes[-1][0], union, name="union")
    if not workload.invert:
        return te.create_prim_func([data, result])
    invert = te.placeholder((packed(workload.channels),), "uint8", name="invert")
    flipped = te.compute(result.shape, lambda n, y, x, byte: result[n, y, x, byte] ^ invert[byte], name="flipped")
    return te.create_prim_func([data, invert, flipped])
