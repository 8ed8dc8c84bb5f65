"""Packing signs into bits: float32 activations, after an optional epilogue, become one bit each."""

from __future__ import annotations

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from bitkiln.schedules import definition as stages
from bitkiln.schedules import loops
from bitkiln.schedules.binarize import a53 as binarize_a53
from bitkiln.schedules.binarize.beside import Beside
from bitkiln.schedules.kernel import Argument, Kernel, Knobs
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.workload import Binarize, packed, result_specs
from bitkiln.targets import Target


def reference(workload: Binarize) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the outputs last."""
    size = (workload.height, workload.width, workload.channels)
    data = te.placeholder((1, *size), "float32", name="data")
    operands = stages.operand_tensors(workload.epilogue, size)
    value = stages.apply_epilogue(data, workload.epilogue, operands)
    more, bits = stages.beside(data, workload.signs, size)
    return te.create_prim_func([data, *operands, *more, stages.signs(value, workload.sign_zero), *bits])


def space(workload: Binarize, target: Target) -> dict[str, list[int | str]]:
    """Nothing to choose."""
    return {}


def default(workload: Binarize, target: Target, threads: int = 1) -> dict[str, int | str]:
    """Nothing to choose."""
    return {}


def emit(workload: Binarize, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation."""
    if workload.signs:
        return _several(workload, target)
    micro = kernel_set(target).binarize
    if micro and binarize_a53.applies(workload):
        return binarize_a53.emit(workload, int(target.cpu["cores"]), micro)
    arguments = tuple(Argument((i,), *spec) for i, spec in enumerate(workload.shapes[:-1]))
    return Kernel(_rows(workload), arguments, notes="plain")


def _several(workload: Binarize, target: Target) -> Kernel:
    """Several signs of the same floats: all of a row while it is in the cache."""
    beside = Beside(workload, workload.width, kernel_set(target).binarize)
    arguments = (Argument((0,), *workload.shapes[0]), *beside.arguments)
    with IRBuilder() as builder, T.prim_func():
        T.func_name("binarize")
        T.func_attr({"tirx.noalias": True})
        data, *tables = loops.parameters(arguments)
        bits = [T.arg(f"bits{i}", T.buffer(*spec)) for i, spec in enumerate(result_specs(workload))]
        beside.emit(data, tables, bits)
    return Kernel(builder.get(), arguments, tuple(beside.microkernels), "row by row, several signs of each")


def _rows(workload: Binarize) -> tirx.PrimFunc:
    width, channels = workload.width, workload.channels
    with IRBuilder() as builder, T.prim_func():
        T.func_name("binarize")
        T.func_attr({"tirx.noalias": True})
        data, *operands, bits = (
            T.arg(f"a{i}", T.buffer(shape, dtype)) for i, (shape, dtype) in enumerate(workload.shapes)
        )
        source = loops.flat(data, workload.height * width * channels)
        target = loops.flat(bits, workload.height * width * packed(channels), "uint8")
        with T.parallel(workload.height) as y, T.serial(width) as x:
            pixel = y * width + x
            start = pixel * channels
            if workload.epilogue:
                value = T.alloc_buffer((channels,), "float32")
                loops.apply_epilogue(value, 0, source, start, channels, workload.epilogue, operands, (y, x), 0)
                source, start = value, 0
            loops.pack_signs(target, pixel * packed(channels), source, start, channels, workload.sign_zero)
    return builder.get()
