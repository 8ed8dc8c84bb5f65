"""Tensors to run candidates on, and whether two candidates agree.

The numbers are few-bit fractions: sums of their products are exact in float32 in any order, so that schedules which add up
in different orders give equal bits, and a sign is never a matter of rounding.
"""

from __future__ import annotations

import numpy as np

from bitkiln.schedules.workload import (
    Attention,
    Binarize,
    Concat,
    Conv2d,
    ConvTranspose2d,
    DepthFirst,
    Generic,
    Lookup,
    Normalize,
    Pool2d,
    Product,
    QConv2d,
    Resize,
    Softmax,
    Tunable,
    Workload,
    argument_specs,
    packed,
    result_spec,
    result_specs,
    signs_of,
)

#: Largest difference of float results, relative to the largest of them.
FLOAT_TOLERANCE = 1e-3
#: Bits that may differ where they are signs of floats: kernels that transform (Winograd) do round.
SIGN_TOLERANCE = 2e-3


def arguments(workload: Tunable, seed: int) -> list[np.ndarray]:
    """An array for each argument of ``workload``, in order, fixed by ``seed``."""
    source = np.random.default_rng(seed)
    if isinstance(workload, QConv2d):
        return _whole_numbers(workload, source)
    if isinstance(workload, Lookup):
        return [source.integers(-128, 127, shape, np.int8, endpoint=True) for shape, _ in workload.shapes[:-1]]
    if isinstance(workload, DepthFirst):
        first, *others = (arguments(layer, seed + number) for number, layer in enumerate(workload.layers))
        return [*first, *(array for own in others for array in own[1:])]
    if isinstance(workload, Normalize):
        return [_fractions(source, shape, 8, 4) for shape, _ in workload.shapes[:-1]]
    if isinstance(workload, Generic):
        return [_values(source, *spec) for spec in workload.shapes[:-1]]
    shapes = list(argument_specs(workload))
    arrays = [_activation(source, shapes.pop(0), channels) for channels in _activations(workload)]
    if isinstance(workload, Conv2d | ConvTranspose2d):
        arrays.append(_weight(source, shapes.pop(0), workload.channels // workload.groups))
    if isinstance(workload, Pool2d) and workload.invert:
        arrays.append(_bits(source, shapes.pop(0)[0], workload.channels))
    beside = (step for signs in signs_of(workload) for step in signs.epilogue)
    for step in (*workload.epilogue, *beside):
        if step.operand:
            arrays.append(_operand(source, shapes.pop(0)[0], step.op, step.operand))
    if shapes:
        assert isinstance(workload, Conv2d), "only convolutions have thresholds"
        reach = max(1, workload.kernel[0] * workload.kernel[1] * workload.channels // workload.groups // 8)
        arrays.append(source.integers(-reach, reach, shapes.pop(0)[0], np.int32, endpoint=True))
    return arrays


def _activations(workload: Workload) -> tuple[int, ...]:
    """Of each activation that a workload reads the channels that are bits."""
    if isinstance(workload, Concat):
        return workload.widths or workload.parts
    if isinstance(workload, Product | Attention):
        return (0,) * (3 if isinstance(workload, Attention) else 2)
    return (0 if isinstance(workload, Softmax | Normalize | Lookup) else workload.channels,)


def _whole_numbers(workload: QConv2d, source: np.random.Generator) -> list[np.ndarray]:
    """Any data; weights so small that no segment of them spills, whatever was planned."""
    (data, _), (weight, _), (channels, _), *_ = workload.shapes
    most = 255 // max(1, workload.segment)
    return [
        source.integers(-128, 127, data, np.int8, endpoint=True),
        source.integers(-most, most, weight, np.int16, endpoint=True),
        source.integers(-1000, 1000, channels, np.int32, endpoint=True),
        source.uniform(0.001, 0.01, channels).astype(np.float32),
    ]


def reference_result(workload: Tunable, seed: int) -> bytes:
    """What the plain definition gives on this machine for ``arguments`` of that seed, of a workload with one result."""
    import tvm  # Takes a second, which those that only compare do without.

    from bitkiln.schedules.registry import operator_for

    run = tvm.compile(operator_for(workload).reference(workload), target="llvm")
    shape, dtype = result_spec(workload)
    result = tvm.runtime.tensor(np.zeros(shape, dtype))
    run(*map(tvm.runtime.tensor, arguments(workload, seed)), result)
    found: bytes = result.numpy().tobytes()
    return found


def disagreement(workload: Tunable, expected: bytes, found: bytes, result: int = 0) -> str:
    """How what was ``found`` differs from what is ``expected`` of a result, by its number; empty where they agree."""
    dtype = result_specs(workload)[result][1]
    if len(expected) != len(found):
        return f"the result has {len(found)} bytes, not {len(expected)}"
    if isinstance(workload, Generic) and dtype != "float32":
        return "" if expected == found else "results differ from the default's"
    if dtype == "uint8":
        differing = np.bitwise_count(np.frombuffer(expected, np.uint8) ^ np.frombuffer(found, np.uint8)).sum()
        allowed = 0.0 if _exact(workload) else SIGN_TOLERANCE * 8 * len(expected)
        return (
            f"{differing} of {8 * len(expected)} result bits differ from the default's" if differing > allowed else ""
        )
    if dtype == "int8":
        differing = int((np.frombuffer(expected, np.int8) != np.frombuffer(found, np.int8)).sum())
        return f"{differing} of {len(expected)} results differ from the default's" if differing else ""
    reference, floats = np.frombuffer(expected, np.float32), np.frombuffer(found, np.float32)
    with np.errstate(invalid="ignore"):
        error = np.abs(reference - floats).max(initial=0.0) / max(1.0, float(np.abs(reference).max(initial=0.0)))
    return "" if error <= FLOAT_TOLERANCE else f"results differ from the default's by {error:.2g} (relative)"


def _exact(workload: Tunable) -> bool:
    """Whether result bits come of integers or of comparisons alone."""
    if isinstance(workload, Conv2d):
        return workload.binary
    return isinstance(workload, Pool2d | Binarize | Concat | Resize)


def _activation(source: np.random.Generator, spec: tuple[tuple[int, ...], str], channels: int) -> np.ndarray:
    shape, dtype = spec
    if dtype == "int8":
        return source.integers(-128, 127, shape, np.int8, endpoint=True)
    return _bits(source, shape, channels) if dtype == "uint8" else _fractions(source, shape, 8, 4)


def _weight(source: np.random.Generator, spec: tuple[tuple[int, ...], str], per_group: int) -> np.ndarray:
    shape, dtype = spec
    return _bits(source, shape, per_group) if dtype == "uint8" else _fractions(source, shape, 8, 8)


def _operand(source: np.random.Generator, shape: tuple[int, ...], op: str, kind: str) -> np.ndarray:
    if op == "add" and kind not in ("tensor", "half"):
        # An odd numerator, finer than any sum: no sum becomes exactly 0, whose sign two kernels might round differently.
        return ((2 * source.integers(-64, 64, shape) + 1) / 64).astype(np.float32)
    return _fractions(source, shape, 8, 4)


def _values(source: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """For functions of any kind: positive floats, which have roots and logarithms; zeros, which are places in any list."""
    if dtype == "float32":
        return (source.integers(1, 16, shape, np.int8, endpoint=True) / np.float32(8)).astype(np.float32)
    return np.zeros(shape, dtype)


def _fractions(source: np.random.Generator, shape: tuple[int, ...], most: int, denominator: int) -> np.ndarray:
    """Whole numbers of magnitude up to ``most``, over ``denominator``."""
    return (source.integers(-most, most, shape, np.int8, endpoint=True) / np.float32(denominator)).astype(np.float32)


def _bits(source: np.random.Generator, shape: tuple[int, ...], channels: int) -> np.ndarray:
    """Random bits of ``channels`` channels along the last axis; the tail of the last byte is clear."""
    array = source.integers(0, 255, shape, np.uint8, endpoint=True)
    assert shape[-1] == packed(channels), "bits are packed along the last axis"
    if channels % 8:
        array[..., -1] &= (1 << channels % 8) - 1
    return array
