"""Products of matrices that lie anywhere in a tensor, and functions of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from bitkiln.schedules import steps
from bitkiln.schedules.workload import Attention, Matrices, Product


def compute(workload: Product | Attention, args: Sequence[np.ndarray]) -> np.ndarray:
    """The result of ``workload``, where it has it."""
    work = workload
    first = _matrices(args[0], work.first, work.stack, (work.rows, work.inner))
    second = _matrices(args[1], work.second, work.stack, (work.inner, work.columns))
    product = np.matmul(first, second) * np.float32(work.factor)
    tensors = 3 if isinstance(work, Attention) else 2
    image = product.reshape(1, work.matrices, work.rows, work.columns)
    value = steps.compute(work.epilogue, image, args[tensors:]).reshape(product.shape)
    if isinstance(work, Attention):
        third = _matrices(args[2], work.third, work.stack, (work.columns, work.width))
        value = np.matmul(softmax(value, -1), third)
    result = np.empty(work.result.shape, value.dtype)
    _matrices(result, work.result, work.stack, value.shape[-2:])[...] = value
    return result


def _matrices(array: np.ndarray, matrices: Matrices, stack: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """A view of the matrices in ``array``, [*stack, *size]."""
    flat = np.ascontiguousarray(array).reshape(-1)
    pitches = (*matrices.stack, matrices.row, matrices.column)
    return as_strided(flat[matrices.begin :], (*stack, *size), [flat.itemsize * pitch for pitch in pitches])


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """e^x over its sum along ``axis``."""
    with np.errstate(invalid="ignore"):  # a row that is infinite throughout is NaN
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """The logarithm of ``softmax``."""
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def normalize(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    """``x`` with mean 0 and variance 1 along ``axes``, scaled and moved."""
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + np.float32(epsilon)) * scale + shift
