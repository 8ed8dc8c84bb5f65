"""What tests of kernels share: random arguments, the definition's answer, the arguments a kernel takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm

from bitkiln import targets
from bitkiln.schedules import steps
from bitkiln.schedules.kernel import Argument, Kernel
from bitkiln.schedules.registry import operator_for
from bitkiln.schedules.workload import Conv2d, Workload, argument_specs, result_specs
from bitkiln.targets import Target


def without_set() -> Target:
    """A target of a CPU that nobody has written micro-kernels for."""
    return replace(targets.load("rasp3b32"), kernels="")


def example(workload: Workload, seed: int = 0) -> list[np.ndarray]:
    """Arguments of ``workload``: normal floats, random bits with clear spare bits, thresholds a few deviations wide."""
    rng = np.random.default_rng(seed)
    args = []
    for index, (shape, dtype) in enumerate(argument_specs(workload)):
        if dtype == "uint8":
            groups = workload.groups if isinstance(workload, Conv2d) and index == 1 else 1
            args.append(_bits(rng, shape, workload.channels // groups))
        elif dtype == "int32":
            reach = round(2 * _bits_of(workload) ** 0.5)
            args.append(rng.integers(-reach, reach + 1, shape).astype("int32"))
        else:
            args.append(rng.normal(0, 1, shape).astype("float32"))
    return args


def bound(kernel: Kernel, args: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arguments of the emitted function for arguments of the workload, tables included."""
    result = []
    for argument in kernel.arguments:
        if not isinstance(argument, Argument):
            result.append(argument.array)
            continue
        sources = [args[i] for i in argument.sources]
        array = np.ascontiguousarray(argument.pack(sources) if argument.pack else sources[0])
        assert (array.shape, str(array.dtype)) == (tuple(argument.shape), argument.dtype)
        result.append(array)
    return result


#: A kernel's result, or all of them where there are signs beside it.
Results = np.ndarray | tuple[np.ndarray, ...]


def on_host(function: tvm.tirx.PrimFunc, args: Sequence[np.ndarray], workload: Workload) -> Results:
    """What ``function`` computes on this machine."""
    outs = [tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in result_specs(workload)]
    tvm.compile(function, target="llvm")(*map(tvm.runtime.tensor, args), *outs)
    return outs[0].numpy() if len(outs) == 1 else tuple(out.numpy() for out in outs)


def read_results(workload: Workload, data: bytes) -> Results:
    """The results of ``workload`` that stand one after the other in ``data``."""
    found, at = [], 0
    for shape, dtype in result_specs(workload):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found.append(np.frombuffer(data[at : at + size], dtype).reshape(shape))
        at += size
    assert at == len(data)
    return found[0] if len(found) == 1 else tuple(found)


def defined(workload: Workload, args: Sequence[np.ndarray]) -> Results:
    """What the plain definition of ``workload`` gives."""
    return on_host(operator_for(workload).reference(workload), args, workload)


def same(result: Results, expected: Results) -> bool:
    """Bits exactly; floats but for rounding, as compilers may join a product and a sum."""
    if isinstance(result, tuple):
        return all(map(same, result, expected))
    if result.dtype == np.uint8:
        return bool((result == expected).all())
    return bool(np.allclose(result, expected, rtol=1e-5, atol=1e-5))


def identical(result: Results, expected: Results) -> bool:
    """Equal, every element and every result."""
    if isinstance(result, tuple):
        return all(map(identical, result, expected))
    return bool(np.array_equal(result, expected))


def signs_of(workload: Conv2d, args: Sequence[np.ndarray], floats: np.ndarray) -> list[np.ndarray]:
    """The bits that ``workload`` has to give beside ``floats``, which a kernel gave."""
    end = len(args) - workload.shift
    operands = list(args[end - sum(step.operand != "" for each in workload.signs for step in each.epilogue) : end])
    found = []
    for each in workload.signs:
        own = [operands.pop(0) for step in each.epilogue if step.operand]
        value = steps.compute(each.epilogue, floats, own)
        found.append(np.packbits(value >= 0 if each.sign_zero > 0 else value > 0, axis=3, bitorder="little"))
    return found


def _bits(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> np.ndarray:
    array = rng.integers(0, 256, shape, dtype="uint8")
    if channels % 8:
        array[..., -1] &= (1 << channels % 8) - 1
    return array


def _bits_of(workload: Workload) -> int:
    assert isinstance(workload, Conv2d)
    return workload.kernel[0] * workload.kernel[1] * workload.channels // workload.groups


class Floats:
    """As much of a workload as running a kernel asks for."""

    def __init__(self, count):
        self.shapes = (((count,), "float32"), ((count,), "float32"))
