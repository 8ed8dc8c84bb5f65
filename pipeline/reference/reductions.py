"""Operators of Relax that sum over axes: products of matrices, reductions, normalisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm.ir import Call

from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.reference.matrices import log_softmax, normalize, softmax
from bitkiln.pipeline.reference.values import Operator


def _reduction(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def apply(call: Call, x: np.ndarray) -> np.ndarray:
        return np.asarray(function(x, axis=_axes(call, x), keepdims=bool(call.attrs["keepdims"])), dtype=x.dtype)

    return apply


def _axes(call: Call, value: np.ndarray) -> tuple[int, ...]:
    axis = call.attrs["axis"]
    if axis is None:
        return tuple(range(value.ndim))
    return ints(axis) if not isinstance(axis, int) else (axis,)


def _batch_norm(call: Call, x: np.ndarray, *params: np.ndarray) -> tuple[np.ndarray, ...]:
    axis = int(call.attrs["axis"])
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    gamma, beta, mean, variance = (param.reshape(shape) for param in params)
    scale = 1 / np.sqrt(variance + np.float32(call.attrs["epsilon"]))
    y = (x - mean) * scale
    y = y * gamma if call.attrs["scale"] else y
    y = y + beta if call.attrs["center"] else y
    return y.astype(np.float32), params[2], params[3]


def _layer_norm(call: Call, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return normalize(x, gamma, beta, ints(call.attrs["axes"]), call.attrs["epsilon"])


OPERATORS: dict[str, Operator] = {
    "matmul": lambda _, x, y: np.matmul(x, y),
    "mean": _reduction(np.mean),
    "sum": _reduction(np.sum),
    "max": _reduction(np.max),
    "min": _reduction(np.min),
    "prod": _reduction(np.prod),
    "variance": _reduction(np.var),
    "std": _reduction(np.std),
    "nn.batch_norm": _batch_norm,
    "nn.layer_norm": _layer_norm,
    "nn.softmax": lambda call, x: softmax(x, int(call.attrs["axis"])),
    "nn.log_softmax": lambda call, x: log_softmax(x, int(call.attrs["axis"])),
}
