"""Operators of Relax that move elements, or make tensors of one value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import ints
from bitkiln.pipeline.reference.values import Operator


def _pad_tensor(call: Call, x: np.ndarray, *value: np.ndarray) -> np.ndarray:
    widths = np.reshape(ints(call.attrs["pad_width"]), (-1, 2))
    mode = str(call.attrs["pad_mode"])
    if mode != "constant":
        raise NotImplementedError(f"pad with mode {mode}")
    fill = value[0].item() if value else float(call.attrs["pad_value"])
    return np.pad(x, widths, constant_values=fill)


def _permute(call: Call, x: np.ndarray) -> np.ndarray:
    return x.transpose(ints(call.attrs["axes"])) if call.attrs["axes"] is not None else x.transpose()


def _strided_slice(call: Call, x: np.ndarray, axes: Any, begin: Any, end: Any, *strides: Any) -> np.ndarray:
    index = [slice(None)] * x.ndim
    steps = _plain(strides[0]) if strides else [1] * len(_plain(axes))
    for axis, first, last, step in zip(_plain(axes), _plain(begin), _plain(end), steps, strict=True):
        size = x.shape[axis]
        first, last = (max(i + size, 0) if i < 0 else min(i, size) for i in (first, last))
        index[axis] = slice(first, last, step)
    return x[tuple(index)]


def _plain(value: Iterable[Any]) -> list[int]:
    """A Relax tuple of integers, already evaluated, as a list."""
    return [_whole(item) for item in value]


def _whole(value: Any) -> int:
    """An integer of Relax, or a plain one."""
    return int(value.value if hasattr(value, "value") else value)


def _split(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    where = call.attrs["indices_or_sections"]
    parts = int(where) if isinstance(where, int) or hasattr(where, "value") else list(ints(where))
    return tuple(np.split(x, parts, axis=int(call.attrs["axis"])))


def _squeeze(call: Call, x: np.ndarray) -> np.ndarray:
    return np.squeeze(x, axis=ints(call.attrs["axis"]) if call.attrs["axis"] is not None else None)


def _shape(shape: relax.ShapeExpr) -> tuple[int, ...]:
    return tuple(int(size) for size in shape.values)


def _take(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis, mode = int(call.attrs["axis"]), str(call.attrs["mode"])
    if mode == "clip":
        return np.take(x, indices, axis=axis, mode="clip")
    return np.take(x, indices, axis=axis)


OPERATORS: dict[str, Operator] = {
    "reshape": lambda _, x, shape: x.reshape(_shape(shape)),
    "flatten": lambda _, x: x.reshape(-1),
    "nn.batch_flatten": lambda _, x: x.reshape(x.shape[0], -1),
    "broadcast_to": lambda _, x, shape: np.broadcast_to(x, _shape(shape)),
    "permute_dims": _permute,
    "expand_dims": lambda call, x: np.expand_dims(x, ints(call.attrs["axis"])),
    "squeeze": _squeeze,
    "concat": lambda call, parts: np.concatenate(parts, axis=int(call.attrs["axis"])),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": _take,
    "tile": lambda call, x: np.tile(x, ints(call.attrs["repeats"])),
    "nn.pad": _pad_tensor,
    "full": lambda call, shape, value: np.full(_shape(shape), value, dtype=str(call.attrs["dtype"])),
    "stack": lambda call, parts: np.stack(parts, axis=int(call.attrs["axis"])),
    "triu": lambda _, x, k: np.triu(x, _whole(k)),
    "tril": lambda _, x, k: np.tril(x, _whole(k)),
    "zeros": lambda call, shape: np.zeros(_shape(shape), str(call.attrs["dtype"])),
    "ones": lambda call, shape: np.ones(_shape(shape), str(call.attrs["dtype"])),
}
