"""Packing signs into bits on the Cortex-A53: one comparison for each float, whatever monotone epilogue stands before it.

An epilogue of steps that are monotone whatever their constants (a product or sum with a value of the channel, a clip, ...)
is a monotone function of x, rounding included. So the sign of its result is a comparison: bit = (x >= threshold) xor flip,
where flip is set for functions that fall. ``thresholds`` finds both, exactly, by bisection over all floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import loops
from bitkiln.schedules.kernel import Argument, Constant, Kernel
from bitkiln.schedules.microkernels.a53.binarize import BATCH, BLOCKS
from bitkiln.schedules.microkernels.a53.binarize import Binarize as MicroKernel
from bitkiln.schedules.steps import compute, straight
from bitkiln.schedules.workload import Binarize

#: The place of the largest finite float in the order of all floats, that of zero being 0.
_KEY_OF_LARGEST = 0x7F7FFFFF


def applies(workload: Binarize) -> bool:
    """Whether the micro-kernels can compute ``workload``: whole bytes, enough pixels, an epilogue that is a threshold."""
    enough = workload.height * workload.width * workload.channels >= BATCH
    if workload.epilogue:
        enough = workload.height * workload.width >= BATCH // BLOCKS[-1]
    return enough and workload.channels % 8 == 0 and all(map(straight, workload.epilogue))


def emit(workload: Binarize, threads: int, micro: type[MicroKernel]) -> Kernel:
    """The implementation; threads share the pixels."""
    return _by_channel(workload, threads, micro) if workload.epilogue else _flat(workload, threads, micro)


def thresholds(workload: Binarize, operands: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [C] and bool [C] such that bit = (x >= threshold) xor flip for every finite x."""
    low, high = (np.full(workload.channels, _KEY_OF_LARGEST * sign, "int64") for sign in (-1, 1))
    at_low, at_high = (_bit(workload, operands, _float(keys)) for keys in (low, high))
    changes = at_low != at_high
    # Invariant: low has the bit of the least float, high, where there is any change, the other one.
    while (high - low > 1).any():
        middle = (low + high) // 2
        changed = _bit(workload, operands, _float(middle)) != at_low
        low, high = np.where(changed, low, middle), np.where(changed, middle, high)
    always = np.where(at_low, -np.inf, np.nan).astype("float32")
    return np.where(changes, _float(high), always), at_low & changes


def _bit(workload: Binarize, operands: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """The bits of a pixel ``x`` float32 [C]; what is not a number clears them."""
    values = compute(workload.epilogue, x, operands)
    return values >= 0 if workload.sign_zero > 0 else values > 0


def _float(keys: np.ndarray) -> np.ndarray:
    """Floats by their place in the order of all of them; both zeros have place 0."""
    magnitude = np.abs(keys).astype("int32").view("float32")
    return np.where(keys < 0, -magnitude, magnitude)


def _told_from_zero(least: np.ndarray, micro: type[MicroKernel]) -> np.ndarray:
    """Thresholds, of which those between zero and the smallest number that ``micro`` tells from it become that number."""
    return np.where((least > 0) & (least < micro.smallest), np.float32(micro.smallest), least)


class FlatSigns:
    """Signs of all floats of a tensor: they meet one threshold, so the tensor is a single row of them.

    ``constants`` are two arguments the kernel must have; ``emit`` gets their buffers. Channels are whole bytes and there are
    at least ``BATCH`` floats.
    """

    def __init__(self, sign_zero: int, micro: type[MicroKernel]) -> None:
        self.micro = micro(BATCH, shared=True)
        least, _ = thresholds(Binarize(1, 1, 1, (), sign_zero), ())
        self.constants = (Constant(_told_from_zero(least, micro)), Constant(np.zeros(8, "uint8")))

    def emit(self, source: Any, target: Any, size: int, constants: Sequence[Any], threads: int) -> None:
        """``target`` uint8 [size/8] = the signs of ``source`` float32 [size], shared by ``threads``."""
        threads = min(threads, size // BATCH)
        with T.parallel(threads) as thread:
            begin, end = (bound * (size // 8) // threads * 8 for bound in (thread, thread + 1))
            self.emit_run(source, begin, target, begin // 8, end - begin, constants)

    def emit_run(self, source: Any, first: Any, target: Any, to: Any, size: Any, constants: Sequence[Any]) -> None:
        """Bytes of ``target`` from ``to`` on = signs of ``size`` floats from ``first`` on, whole bytes, ``BATCH`` or more."""

        def call(skipped: Any, count: Any) -> None:
            ends = T.address_of(source[first + skipped]), T.address_of(target[to + skipped // 8])
            tables = (T.address_of(constant[0]) for constant in constants)
            T.evaluate(T.call_extern("int32", self.micro.symbol, *ends, count, BATCH * 4, BATCH // 8, *tables))

        call(0, size // BATCH)
        # What is left of a batch is done with what stands before it once more.
        call(size - BATCH, 1)


def _flat(workload: Binarize, threads: int, micro: type[MicroKernel]) -> Kernel:
    signs = FlatSigns(workload.sign_zero, micro)
    size = workload.height * workload.width * workload.channels

    def body(data: Any, table: Any, flips: Any, out: Any) -> None:
        signs.emit(loops.flat(data, size), loops.flat(out, size // 8, "uint8"), size, (table, flips), threads)

    return _kernel(workload, (Argument((0,), *workload.shapes[0]), *signs.constants), signs.micro, body)


class ChannelSigns:
    """Signs after an epilogue that is a comparison with a threshold of each channel, for pixels side by side.

    ``sources`` are the arguments that the epilogue's operands are. A batch takes ``block`` channels of several pixels.
    """

    def __init__(self, workload: Binarize, sources: tuple[int, ...], block: int, micro: type[MicroKernel]) -> None:
        self.workload = workload
        self.micro = micro(block, shared=False)
        channels = workload.channels
        self.arguments = (
            Argument(
                sources, (channels,), "float32", lambda arrays: _told_from_zero(thresholds(workload, arrays)[0], micro)
            ),
            Argument(sources, (channels // block, 8), "uint8", lambda arrays: _flips(workload, arrays, self.micro)),
        )

    def emit_run(self, source: Any, to: Any, target: Any, first: Any, pixels: Any, tables: Sequence[Any]) -> None:
        """The bits of ``pixels`` pixels, of which ``target`` begins with pixel ``first`` and ``source`` at float ``to``.

        There are at least as many as a batch takes.
        """
        channels = self.workload.channels
        ends = T.address_of(source[to]), T.address_of(target[first * (channels // 8)])
        addresses = T.address_of(tables[0][0]), T.address_of(tables[1][0, 0])
        sizes = pixels, channels * 4, channels // 8
        T.evaluate(T.call_extern("int32", self.micro.symbol, *ends, *sizes, *addresses))


def _by_channel(workload: Binarize, threads: int, micro: type[MicroKernel]) -> Kernel:
    """Every channel has its threshold."""
    channels, pixels = workload.channels, workload.height * workload.width
    block = next(block for block in BLOCKS if channels % block == 0)
    signs = ChannelSigns(workload, tuple(range(1, len(workload.shapes) - 1)), block, micro)
    threads = min(threads, pixels // signs.micro.pixels)

    def body(data: Any, table: Any, flips: Any, out: Any) -> None:
        source, target = loops.flat(data, pixels * channels), loops.flat(out, pixels * channels // 8, "uint8")
        with T.parallel(threads) as thread:
            begin, end = (bound * pixels // threads for bound in (thread, thread + 1))
            signs.emit_run(source, begin * channels, target, begin, end - begin, (table, flips))

    return _kernel(workload, (Argument((0,), *workload.shapes[0]), *signs.arguments), signs.micro, body)


def _flips(workload: Binarize, operands: Sequence[np.ndarray], micro: MicroKernel) -> np.ndarray:
    """For each block the flips of a batch of comparisons, uint8 [blocks][8]."""
    _, flip = thresholds(workload, operands)
    blocks = np.packbits(flip.reshape(-1, micro.block), axis=1, bitorder="little")
    return np.tile(blocks, (1, micro.pixels))


def _kernel(
    workload: Binarize,
    arguments: tuple[Argument | Constant, ...],
    micro: MicroKernel,
    body: Callable[..., None],
) -> Kernel:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("binarize")
        T.func_attr({"tirx.noalias": True})
        buffers = loops.parameters(arguments)
        body(*buffers, T.arg("out", T.buffer(*workload.shapes[-1])))
    return Kernel(builder.get(), arguments, (micro,), "micro-kernel, a comparison for each float")
