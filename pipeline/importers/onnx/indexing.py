"""ONNX operators that pick or place elements by numbers, and tensors that are made of numbers."""

from __future__ import annotations

import math

import numpy as np
from onnx import helper
from tvm import relax

from bitkiln.pipeline.importers.onnx.operands import Operands


def gather_elements(node: Operands) -> relax.Expr:
    """For each index the element that has it along the axis, and the index' own place along the others."""
    shape, axis = node.shape(), _axis(node)
    if not node.is_constant(1):
        return relax.op.gather_elements(node.value(0), not_negative(node, 1, shape[axis]), axis)
    return _picked(node, _places(node, shape, axis))


def scatter_elements(node: Operands) -> relax.Expr:
    """As ``gather_elements`` picks; also Scatter, its old name."""
    shape, axis = node.shape(), _axis(node)
    return _placed(node, _places(node, shape, axis), node.text("reduction", "none"))


def scatter_nd(node: Operands) -> relax.Expr:
    """Each index places a slice of the last operand."""
    shape, indices = node.shape(), node.array(1, "indices").astype(np.int64)
    return _placed(node, _slices(node, shape, indices), node.text("reduction", "none"))


def gather_nd(node: Operands) -> relax.Expr:
    """Slices by their indices; the first ``batch_dims`` axes are those of data and indices alike."""
    shape, batches = node.shape(), node.attributes.get("batch_dims", 0)
    if not node.is_constant(1):
        raise node.unsupported("its indices are not constant")
    indices = node.array(1, "indices").astype(np.int64)
    if not 0 <= batches < min(len(shape), indices.ndim) or indices.shape[:batches] != shape[:batches]:
        raise node.unsupported(f"its attribute batch_dims={batches} does not fit {list(shape)}")
    if batches:
        leading = np.stack(np.meshgrid(*map(np.arange, indices.shape[:batches]), indexing="ij"), -1)
        leading = leading.reshape(*leading.shape[:-1], *[1] * (indices.ndim - 1 - batches), batches)
        leading = np.broadcast_to(leading, (*indices.shape[:-1], batches))
        indices = np.concatenate([leading, indices], axis=-1)
    return _picked(node, _slices(node, shape, indices))


def one_hot(node: Operands) -> relax.Expr:
    """The second value where the new axis' place is the index, the first elsewhere; indices outside choose none."""
    depth, rank = int(node.array(1, "depth").reshape(-1)[0]), len(node.shape())
    off, on = node.array(2, "values").reshape(-1)
    axis = node.attributes.get("axis", -1) % (rank + 1)
    kind = node.dtype(0)
    indices = node.step(relax.op.expand_dims(node.value(0), axis), "spread")
    wrapped = node.step(relax.op.add(indices, relax.const(np.array(depth, kind), kind)), "wrapped")
    below = node.step(relax.op.less(indices, relax.const(np.array(0, kind), kind)), "below")
    indices = node.step(relax.op.where(below, wrapped, indices), "indices")
    places = np.arange(depth).reshape([-1 if at == axis else 1 for at in range(rank + 1)]).astype(kind)
    found = node.step(relax.op.equal(indices, relax.const(places, kind)), "found")
    values = (relax.const(value, str(off.dtype)) for value in (on, off))
    return relax.op.where(found, *values)


def triangle(node: Operands) -> relax.Expr:
    """Trilu: the upper or lower part of the matrices in the last two axes, zero elsewhere."""
    shape = node.shape()
    offset = int(node.array(1, "diagonal").reshape(-1)[0]) if node.has(1) else 0
    part = np.triu if node.attributes.get("upper", 1) else np.tril
    mask = part(np.ones(shape[-2:], bool), offset)
    zero = relax.const(np.zeros((), node.dtype(0)), node.dtype(0))
    return relax.op.where(relax.const(mask), node.value(0), zero)


def eye_like(node: Operands) -> relax.Expr:
    """Ones on a diagonal."""
    kind = node.dtype(0)
    if "dtype" in node.attributes:
        kind = str(helper.tensor_dtype_to_np_dtype(node.attributes["dtype"]))
    return relax.const(np.eye(node.shape()[0], node.shape()[1], k=node.attributes.get("k", 0)).astype(kind), kind)


def space_to_depth(node: Operands) -> relax.Expr:
    """Blocks of the image become channels: the place in the block first, or with mode CRD the channel."""
    return _blocks(node, deeper=True)


def depth_to_space(node: Operands) -> relax.Expr:
    """Channels become blocks of the image."""
    return _blocks(node, deeper=False)


def _blocks(node: Operands, *, deeper: bool) -> relax.Expr:
    shape, block, mode = node.shape(), node.attributes["blocksize"], node.text("mode", "DCR")
    if len(shape) != 4 or block < 1 or mode not in ("DCR", "CRD"):
        raise node.unsupported(f"moves blocks of {block} in {list(shape)} by mode={mode}")
    batch, channels, height, width = shape
    if (height % block or width % block) if deeper else channels % block**2:
        raise node.unsupported(f"blocks of {block} do not fit {list(shape)}")
    if deeper:
        split = (batch, channels, height // block, block, width // block, block)
        axes = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
        whole = (batch, channels * block**2, height // block, width // block)
    else:
        rest = channels // block**2
        inner = (block, block, rest) if mode == "DCR" else (rest, block, block)
        split = (batch, *inner, height, width)
        axes = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
        whole = (batch, rest, height * block, width * block)
    tiles = node.step(relax.op.reshape(node.value(0), split), "tiles")
    return relax.op.reshape(node.step(relax.op.permute_dims(tiles, axes), "moved"), whole)


def grid_sample(node: Operands) -> relax.Expr:
    """By TVM's frontend, whose reflection rounds otherwise than ONNX's at nearest neighbours."""
    mode, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    known = {"bilinear", "linear", "nearest"} | ({"bicubic", "cubic"} if len(node.shape()) == 4 else set())
    if mode not in known or padding not in ("zeros", "border", "reflection"):
        raise node.unsupported(f"its attributes mode={mode} and padding_mode={padding} are not supported")
    if padding == "reflection" and mode == "nearest":
        raise node.unsupported("its attribute padding_mode=reflection is not supported with mode=nearest")
    return node.by_frontend()


def roi_align(node: Operands) -> relax.Expr:
    """By TVM's frontend, which shifts regions by half a pixel before it scales them; ONNX scales first."""
    mode = node.text("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "output_half_pixel")
    scale = node.attributes.get("spatial_scale", 1.0)
    if mode == "half_pixel" and scale != 1:
        raise node.unsupported(f"its attribute spatial_scale={scale:g} is not supported with {mode}")
    return node.by_frontend()


def _axis(node: Operands) -> int:
    rank, axis = len(node.shape()), node.attributes.get("axis", 0)
    if not -rank <= axis < rank:
        raise node.unsupported(f"its attribute axis={axis} is none of {rank} axes")
    return axis % rank


def not_negative(node: Operands, index: int, size: int) -> relax.Expr:
    """Indices computed by the network, counted from the start."""
    indices, kind = node.value(index), node.dtype(index)
    below = node.step(relax.op.less(indices, relax.const(np.array(0, kind), kind)), "below")
    wrapped = node.step(relax.op.add(indices, relax.const(np.array(size, kind), kind)), "wrapped")
    return node.step(relax.op.where(below, wrapped, indices), "indices")


def check_indices(node: Operands, size: int, indices: np.ndarray) -> None:
    """Refuse indices that lie outside of an axis of ``size``."""
    if np.any(indices < -size) or np.any(indices >= size):
        raise node.unsupported(f"gathers indices {indices.min()} to {indices.max()} of {size}")


def _places(node: Operands, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The number, in the flat tensor, of each element that the indices name along one axis."""
    indices = node.array(1, "indices").astype(np.int64)
    if indices.ndim != len(shape):
        raise node.unsupported(f"has indices of {indices.ndim} axes for {len(shape)}")
    check_indices(node, shape[axis], indices)
    where: list[np.ndarray] = list(np.indices(indices.shape))
    where[axis] = indices % shape[axis]
    return np.asarray(np.ravel_multi_index(tuple(where), shape))


def _slices(node: Operands, shape: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """The numbers, in the flat tensor, of the elements of each slice that an index of the leading axes names."""
    depth = indices.shape[-1] if indices.ndim else 0
    if not 0 < depth <= len(shape) or not indices.size:
        raise node.unsupported(f"has indices of shape {list(indices.shape)} for {list(shape)}")
    columns = np.moveaxis(indices, -1, 0)
    for size, column in zip(shape[:depth], columns, strict=True):
        check_indices(node, size, column)
    leading = [column % size for size, column in zip(shape[:depth], columns, strict=True)]
    first = np.ravel_multi_index(leading, shape[:depth])
    rest = math.prod(shape[depth:])
    return (first.reshape(*first.shape, 1) * rest + np.arange(rest)).reshape(*first.shape, *shape[depth:])


def _picked(node: Operands, places: np.ndarray) -> relax.Expr:
    flat = node.step(relax.op.reshape(node.value(0), (-1,)), "flat")
    taken = relax.op.take(flat, relax.const(places.reshape(-1)), 0, "clip")
    return taken if places.ndim == 1 else relax.op.reshape(node.step(taken, "taken"), places.shape)


def _placed(node: Operands, places: np.ndarray, reduction: str) -> relax.Expr:
    """The first operand with the third's elements at ``places``: what stands where is known, so it is all one choice."""
    shape, count = node.shape(), math.prod(node.shape())
    if places.shape != node.shape(2):
        raise node.unsupported(f"places {list(node.shape(2))} where its indices say {list(places.shape)}")
    if reduction != "none" and len(np.unique(places)) != places.size:
        raise node.unsupported(f"its attribute reduction={reduction} meets indices that are there twice")
    data = node.value(0) if reduction == "none" else _neutral(node, reduction, count)
    chosen = np.arange(count)
    chosen[places.reshape(-1)] = count + np.arange(places.size)  # Of equal indices the last one stands.
    parts = [relax.op.reshape(data, (count,)), relax.op.reshape(node.value(2), (places.size,))]
    both = relax.op.concat([node.step(part, name) for part, name in zip(parts, ("data", "new"), strict=True)], 0)
    taken = node.step(relax.op.take(node.step(both, "both"), relax.const(chosen), 0, "clip"), "chosen")
    placed = relax.op.reshape(taken, shape)
    if reduction == "none":
        return placed
    return _OPERATORS[reduction][0](node.value(0), node.step(placed, "placed"))


def _neutral(node: Operands, reduction: str, count: int) -> relax.Expr:
    if reduction not in _OPERATORS or node.dtype(0) != "float32":
        raise node.unsupported(f"its attribute reduction={reduction} is not supported for {node.dtype(0)}")
    return relax.const(np.full(count, _OPERATORS[reduction][1], np.float32))


_OPERATORS = {
    "add": (relax.op.add, 0.0),
    "mul": (relax.op.multiply, 1.0),
    "max": (relax.op.maximum, float(np.finfo(np.float32).min)),
    "min": (relax.op.minimum, float(np.finfo(np.float32).max)),
}
