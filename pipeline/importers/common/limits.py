"""The largest tensors that a network may have: a damaged or hostile file asks for any size in a few bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer

#: Bytes of the largest tensor that is computed. Boards have 1 GB, and every step reads one tensor and writes another.
MAX_TENSOR_BYTES = 512 << 20

#: Axes of the largest rank that numpy has had in all its versions.
MAX_RANK = 32

#: Steps of the longest network. The deepest in use have a thousand or two.
MAX_STEPS = 4000


def check_result(where: str, shape: Sequence[int], dtype: str) -> None:
    """Raise UnsupportedLayer where a tensor is empty or larger than any board takes; ``where`` names what makes it."""
    extents = list(shape)
    if any(extent < 1 for extent in extents):
        raise UnsupportedLayer(f"{where}: gives an empty tensor of shape {extents}")
    if len(extents) > MAX_RANK:
        raise UnsupportedLayer(f"{where}: gives a tensor of {len(extents)} axes; at most {MAX_RANK} are supported")
    size = math.prod(extents) * _itemsize(dtype)
    if size > MAX_TENSOR_BYTES:
        raise UnsupportedLayer(
            f"{where}: gives a tensor of shape {extents}, {size / 1e6:.0f} MB; "
            f"boards take tensors of up to {MAX_TENSOR_BYTES / 1e6:.0f} MB"
        )


def check_steps(path: object, count: int) -> None:
    """Raise ModelError where a network has more nodes than can be meant."""
    if count > MAX_STEPS:
        raise ModelError(f"{path}: has {count} nodes; networks of up to {MAX_STEPS} are supported")


def check_module(path: object, module: tvm.IRModule) -> None:
    """``check_result`` for the inputs and every tensor that ``main`` computes, with their names."""
    main = module["main"]
    for param in main.params:
        _check_type(f"{path}: input {param.name}", param.ty)
    for block in main.body.blocks:
        check_steps(path, len(block.bindings))
        for binding in block.bindings:
            _check_type(f"{path}: {binding.var.name}", binding.var.ty)


def _check_type(where: str, ty: tvm.ir.Type) -> None:
    for each in getattr(ty, "fields", [ty]):
        if isinstance(each, relax.TensorType) and isinstance(each.shape, relax.ShapeExpr):
            sizes = [int(extent.value) for extent in each.shape.values if hasattr(extent, "value")]
            if len(sizes) == len(each.shape.values):
                check_result(where, sizes, str(each.dtype))


def _itemsize(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:  # types numpy lacks: none is wider
        return 8
