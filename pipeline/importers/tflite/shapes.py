"""TensorFlow Lite's operators that move data or speak of shapes, as Relax.

Shapes, begins, sizes and the like must be constant; those that a file computes from a tensor's shape are, since shapes are
static and what depends on constants alone is computed while importing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

import numpy as np
from tvm import relax

from bitkiln.pipeline.importers.tflite.file import MAX_ELEMENTS
from bitkiln.pipeline.importers.tflite.operands import Operands
from bitkiln.pipeline.ir.graph import shape_of

_Result: TypeAlias = relax.Expr | list[relax.Expr]


def _reshape(node: Operands) -> relax.Expr:
    """The new shape is an operand, or in old files an option."""
    shape = node.shape()
    target = node.numbers(1, "new shape") if node.has(1) else list(node.option("ReshapeOptions", "NewShape"))
    if target.count(-1) == 1:
        rest = prod(size for size in target if size != -1)
        target[target.index(-1)] = prod(shape) // rest if rest > 0 else 0
    if prod(target) != prod(shape) or (target and min(target) < 1):
        raise node.error(f"makes {target} of {list(shape)}")
    return node.value(0) if tuple(target) == shape else relax.op.reshape(node.value(0), target)


def _squeeze(node: Operands) -> relax.Expr:
    shape = node.shape()
    axes = [int(axis) for axis in node.option("SqueezeOptions", "SqueezeDims", default=())]
    axes = [_axis(node, axis, len(shape)) for axis in axes] or [at for at, size in enumerate(shape) if size == 1]
    if any(shape[axis] != 1 for axis in axes):
        raise node.error(f"removes the axes {axes} of {list(shape)}")
    return relax.op.reshape(node.value(0), [size for at, size in enumerate(shape) if at not in axes])


def _expand_dims(node: Operands) -> relax.Expr:
    shape, axes = list(node.shape()), node.numbers(1, "axis")
    if len(axes) != 1:
        raise node.error(f"adds the axes {axes}")
    shape.insert(_axis(node, axes[0], len(shape) + 1), 1)
    return relax.op.reshape(node.value(0), shape)


def _axis(node: Operands, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise node.error(f"speaks of axis {axis} of {rank}")
    return axis % rank


def _concatenation(node: Operands) -> relax.Expr:
    table, parts = "ConcatenationOptions", [node.value(position) for position in range(len(node))]
    if node.option(table, "FusedActivationFunction", default=0):
        raise node.unsupported("its fused activation is not supported")
    axis = _axis(node, int(node.option(table, "Axis")), len(node.shape()))
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis)


def _pad(node: Operands) -> relax.Expr:
    """PAD and PADV2; the latter states the value."""
    widths = _widths(node)
    value = node.array(2, "pad value") if node.has(2) else np.zeros((), np.float32)
    if value.size != 1 or np.isnan(value).any():
        raise node.error(f"pads with {value.size} values or with none that is a number")
    limits = np.finfo(np.float32)
    number = float(np.clip(value.item(), limits.min, limits.max))
    return relax.op.nn.pad(node.value(0), widths, "constant", number) if any(widths) else node.value(0)


def _widths(node: Operands) -> list[int]:
    """Padding before and behind each axis, one after the other."""
    shape, widths = node.shape(), node.numbers(1, "paddings")
    if len(widths) != 2 * len(shape) or min(widths, default=0) < 0 or max(widths, default=0) > MAX_ELEMENTS:
        raise node.error(f"pads {list(shape)} by {widths}")
    return widths


def _mirror_pad(node: Operands) -> relax.Expr:
    """REFLECT leaves the border itself out, SYMMETRIC repeats it: along each axis, rows picked by number."""
    reflect = int(node.option("MirrorPadOptions", "Mode")) == 0
    result, widths = node.value(0), _widths(node)
    for axis, size in enumerate(node.shape()):
        before, after = widths[2 * axis : 2 * axis + 2]
        if max(before, after) > size - reflect:
            raise node.error(f"mirrors {max(before, after)} of {size} elements")
        if before or after:
            rows = np.pad(np.arange(size, dtype=np.int32), (before, after), mode="reflect" if reflect else "symmetric")
            result = node.step(relax.op.take(result, relax.const(rows), axis=axis), f"axis{axis}")
    return result


def _transpose(node: Operands) -> relax.Expr:
    rank, axes = len(node.shape()), node.numbers(1, "permutation")
    if sorted(axis % rank if rank else 0 for axis in axes) != list(range(rank)):
        raise node.error(f"permutes {rank} axes by {axes}")
    axes = [axis % rank for axis in axes]
    return node.value(0) if axes == sorted(axes) else relax.op.permute_dims(node.value(0), axes)


def _slice(node: Operands) -> relax.Expr:
    shape, begin, size = node.shape(), node.numbers(1, "begin"), node.numbers(2, "size")
    if not len(begin) == len(size) == len(shape):
        raise node.error(f"takes {size} at {begin} of {list(shape)}")
    ends = [n if count == -1 else at + count for n, at, count in zip(shape, begin, size, strict=True)]
    if any(not 0 <= at < end <= n for n, at, end in zip(shape, begin, ends, strict=True)):
        raise node.error(f"takes {size} at {begin} of {list(shape)}")
    return _part(node, begin, ends, [1] * len(shape))


def _part(node: Operands, begin: list[int], ends: list[int], steps: list[int]) -> relax.Expr:
    """Elements from ``begin`` to before ``ends``, of those axes that are not whole."""
    shape = node.shape()
    partial = [axis for axis, n in enumerate(shape) if (begin[axis], ends[axis], steps[axis]) != (0, n, 1)]
    if not partial:
        return node.value(0)
    chosen = ([values[axis] for axis in partial] for values in (begin, ends, steps))
    return relax.op.strided_slice(node.value(0), partial, *chosen)


def _strided_slice(node: Operands) -> relax.Expr:
    table, shape = "StridedSliceOptions", node.shape()
    begin, end, steps = (node.numbers(at + 1, what) for at, what in enumerate(("begin", "end", "strides")))
    masks = {name: int(node.option(table, f"{name}Mask", default=0)) for name in ("Begin", "End", "ShrinkAxis")}
    if any(node.option(table, f"{name}Mask", default=0) for name in ("Ellipsis", "NewAxis")):
        raise node.unsupported("an ellipsis or a new axis is not supported")
    if not len(begin) == len(end) == len(steps) <= len(shape) or 0 in steps:
        raise node.error(f"takes {begin} to {end} by {steps} of {list(shape)}")
    picked = []
    for axis, n in enumerate(shape):
        if axis >= len(begin):
            picked.append(range(n))
            continue
        step, bit = steps[axis], 1 << axis
        if masks["ShrinkAxis"] & bit:
            at = _axis(node, begin[axis], n)
            picked.append(range(at, at + 1))
            continue
        first = None if masks["Begin"] & bit else begin[axis]
        last = None if masks["End"] & bit else end[axis]
        picked.append(range(n)[first:last:step])
    if any(not len(rows) for rows in picked):
        raise node.error(f"takes nothing of {list(shape)}")
    return _shrunk(node, _picked(node, picked), masks["ShrinkAxis"])


def _picked(node: Operands, picked: list[range]) -> relax.Expr:
    """The elements at these positions of each axis; those in reverse order by number."""
    forward = [rows if rows.step > 0 else range(n) for rows, n in zip(picked, node.shape(), strict=True)]
    begin, steps = [rows.start for rows in forward], [rows.step for rows in forward]
    result = _part(node, begin, [rows[-1] + 1 for rows in forward], steps)
    for axis, rows in enumerate(picked):
        if rows.step < 0:
            indices = relax.const(np.array(rows, np.int32))
            result = node.step(relax.op.take(node.step(result, "part"), indices, axis=axis), f"axis{axis}")
    return result


def _shrunk(node: Operands, result: relax.Expr, mask: int) -> relax.Expr:
    if not mask:
        return result
    part = node.step(result, "slice")
    return relax.op.reshape(part, [size for axis, size in enumerate(shape_of(part)) if not mask >> axis & 1])


def _split(node: Operands) -> list[relax.Expr]:
    """SPLIT: operands are the axis and the tensor, parts are equal."""
    axes, shape, count = node.numbers(0, "axis"), node.shape(1), len(node.operator.outputs)
    axis = _axis(node, axes[0] if len(axes) == 1 else len(shape), len(shape))
    if shape[axis] % count:
        raise node.error(f"splits {shape[axis]} into {count} equal parts")
    return _pieces(node, 1, axis, [shape[axis] // count] * count)


def _split_v(node: Operands) -> list[relax.Expr]:
    """SPLIT_V: operands are the tensor, the sizes of its parts, one of which may be left open, and the axis."""
    shape, sizes, axes = node.shape(), node.numbers(1, "sizes"), node.numbers(2, "axis")
    axis = _axis(node, axes[0] if len(axes) == 1 else len(shape), len(shape))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = shape[axis] - sum(size for size in sizes if size != -1)
    if len(sizes) != len(node.operator.outputs) or sum(sizes) != shape[axis] or min(sizes) < 1:
        raise node.error(f"splits {shape[axis]} into {sizes}")
    return _pieces(node, 0, axis, sizes)


def _pieces(node: Operands, position: int, axis: int, sizes: list[int]) -> list[relax.Expr]:
    """One slice for each part, so that every step makes one tensor."""
    if len(sizes) == 1:
        return [node.value(position)]
    ends = np.cumsum(sizes).tolist()
    source = node.value(position)
    return [relax.op.strided_slice(source, [axis], [end - size], [end]) for size, end in zip(sizes, ends, strict=True)]


def _pack(node: Operands) -> relax.Expr:
    shape = node.shape()
    axis = _axis(node, int(node.option("PackOptions", "Axis", default=0)), len(shape) + 1)
    wide = (*shape[:axis], 1, *shape[axis:])
    parts = [node.step(relax.op.reshape(node.value(at), wide), f"part{at}") for at in range(len(node))]
    return parts[0] if len(parts) == 1 else relax.op.concat(parts, axis)


def _unpack(node: Operands) -> list[relax.Expr]:
    shape = node.shape()
    axis = _axis(node, int(node.option("UnpackOptions", "Axis", default=0)), len(shape))
    if len(node.operator.outputs) != shape[axis]:
        raise node.error(f"unpacks {shape[axis]} parts into {len(node.operator.outputs)}")
    rest = [size for at, size in enumerate(shape) if at != axis]
    parts = _pieces(node, 0, axis, [1] * shape[axis])
    return [relax.op.reshape(node.step(part, f"part{at}"), rest) for at, part in enumerate(parts)]


def _space_to_depth(node: Operands) -> relax.Expr:
    block, (batch, height, width, channels) = _block(node, "SpaceToDepthOptions"), node.image()
    if height % block or width % block:
        raise node.error(f"blocks of {block} do not fit an image of {height}x{width}")
    tiles = relax.op.reshape(node.value(0), (batch, height // block, block, width // block, block, channels))
    moved = relax.op.permute_dims(node.step(tiles, "tiles"), [0, 1, 3, 2, 4, 5])
    return relax.op.reshape(node.step(moved, "moved"), (batch, height // block, width // block, block**2 * channels))


def _depth_to_space(node: Operands) -> relax.Expr:
    block, (batch, height, width, channels) = _block(node, "DepthToSpaceOptions"), node.image()
    if channels % block**2:
        raise node.error(f"blocks of {block} cannot be made of {channels} channels")
    tiles = relax.op.reshape(node.value(0), (batch, height, width, block, block, channels // block**2))
    moved = relax.op.permute_dims(node.step(tiles, "tiles"), [0, 1, 3, 2, 4, 5])
    return relax.op.reshape(node.step(moved, "moved"), (batch, height * block, width * block, channels // block**2))


def _space_to_batch(node: Operands) -> relax.Expr:
    """Blocks of rows and columns become images of a batch, after padding."""
    shape, blocks, pads = node.shape(), *_blocks_and_edges(node)
    spatial = len(blocks)
    padded = [size + sum(pads[at]) for at, size in enumerate(shape[1 : 1 + spatial])]
    if any(size % block for size, block in zip(padded, blocks, strict=True)):
        raise node.error(f"blocks of {blocks} do not fit {padded}")
    x = node.value(0)
    if any(map(any, pads)):
        widths = [0, 0, *(width for pair in pads for width in pair), *(0, 0) * (len(shape) - 1 - spatial)]
        x = node.step(relax.op.nn.pad(x, widths, "constant", 0.0), "padded")
    split = [shape[0], *(part for size, block in zip(padded, blocks, strict=True) for part in (size // block, block))]
    rest = list(shape[1 + spatial :])
    tiles = node.step(relax.op.reshape(x, (*split, *rest)), "tiles")
    block_axes, size_axes = [2 + 2 * at for at in range(spatial)], [1 + 2 * at for at in range(spatial)]
    tail = range(1 + 2 * spatial, 1 + 2 * spatial + len(rest))
    moved = node.step(relax.op.permute_dims(tiles, [*block_axes, 0, *size_axes, *tail]), "moved")
    sizes = [size // block for size, block in zip(padded, blocks, strict=True)]
    return relax.op.reshape(moved, (prod(blocks) * shape[0], *sizes, *rest))


def _batch_to_space(node: Operands) -> relax.Expr:
    """Images of a batch become blocks of rows and columns, whose edges are then cut off."""
    shape, blocks, crops = node.shape(), *_blocks_and_edges(node)
    spatial = len(blocks)
    if shape[0] % prod(blocks):
        raise node.error(f"blocks of {blocks} cannot be made of {shape[0]} images")
    batch, rest = shape[0] // prod(blocks), list(shape[1 + spatial :])
    sizes = list(shape[1 : 1 + spatial])
    tiles = node.step(relax.op.reshape(node.value(0), (*blocks, batch, *sizes, *rest)), "tiles")
    axes = [spatial, *(axis for at in range(spatial) for axis in (spatial + 1 + at, at))]
    tail = range(1 + 2 * spatial, 1 + 2 * spatial + len(rest))
    moved = node.step(relax.op.permute_dims(tiles, [*axes, *tail]), "moved")
    whole = [size * block for size, block in zip(sizes, blocks, strict=True)]
    image = node.step(relax.op.reshape(moved, (batch, *whole, *rest)), "image")
    if not any(map(any, crops)):
        return image
    ends = [size - after for size, (_, after) in zip(whole, crops, strict=True)]
    if any(first >= end for (first, _), end in zip(crops, ends, strict=True)):
        raise node.error(f"cuts {crops} off {whole}")
    return relax.op.strided_slice(image, list(range(1, 1 + spatial)), [first for first, _ in crops], ends)


def _blocks_and_edges(node: Operands) -> tuple[list[int], list[tuple[int, int]]]:
    """Sizes of blocks, and what is added or cut off before and behind each axis."""
    blocks, edges = node.numbers(1, "blocks"), node.numbers(2, "edges")
    rank = len(node.shape())
    if not 1 <= len(blocks) < rank or len(edges) != 2 * len(blocks) or min(blocks) < 1 or min(edges) < 0:
        raise node.error(f"has blocks of {blocks} and edges of {edges} for {rank} axes")
    if max(*blocks, *edges) > MAX_ELEMENTS:
        raise node.error(f"has the absurd blocks {blocks} or edges {edges}")
    return blocks, [(edges[2 * at], edges[2 * at + 1]) for at in range(len(blocks))]


def _reverse(node: Operands) -> relax.Expr:
    result = node.value(0)
    for axis in node.numbers(1, "axes"):
        at = _axis(node, axis, len(node.shape()))
        backwards = relax.const(np.arange(node.shape()[at])[::-1].astype(np.int32))
        result = node.step(relax.op.take(result, backwards, axis=at), f"axis{at}")
    return result


def _block(node: Operands, table: str) -> int:
    block = int(node.option(table, "BlockSize"))
    if not 1 <= block <= 1 << 10:
        raise node.error(f"its blocks are of {block}")
    return block


def _tile(node: Operands) -> relax.Expr:
    repeats = node.numbers(1, "multiples")
    if len(repeats) != len(node.shape()) or min(repeats, default=1) < 1 or prod(repeats) > MAX_ELEMENTS:
        raise node.error(f"repeats {list(node.shape())} by {repeats}")
    return relax.op.tile(node.value(0), repeats) if any(count != 1 for count in repeats) else node.value(0)


def _broadcast_to(node: Operands) -> relax.Expr:
    shape, target = node.shape(), node.numbers(1, "shape")
    if any(not 0 < size <= MAX_ELEMENTS for size in target) or np.broadcast_shapes(shape, tuple(target)) != tuple(
        target
    ):
        raise node.error(f"makes {target} of {list(shape)}")
    return node.value(0) if tuple(target) == shape else relax.op.broadcast_to(node.value(0), target)


def _fill(node: Operands) -> relax.Expr:
    shape, value = node.numbers(0, "shape"), node.array(1, "value")
    if value.size != 1 or any(not 0 < size <= MAX_ELEMENTS for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise node.error(f"fills {shape} with {value.size} values")
    return relax.op.broadcast_to(relax.const(value.reshape([1] * len(shape))), shape)


def _gather(node: Operands) -> relax.Expr:
    """Indices are constant and inside; several dimensions of them take the axis' place."""
    table, shape = "GatherOptions", node.shape()
    indices = node.array(1, "indices")
    axis = _axis(node, int(node.option(table, "Axis", default=0)), len(shape))
    if node.option(table, "BatchDims", default=0):
        raise node.unsupported("batch dimensions are not supported")
    if indices.dtype.kind not in "iu" or not indices.size or indices.min() < 0 or indices.max() >= shape[axis]:
        raise node.error(f"its indices lie outside of the {shape[axis]} elements of its axis")
    taken = relax.op.take(node.value(0), relax.const(indices.reshape(-1).astype(np.int32)), axis=axis)
    target = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
    return taken if indices.ndim == 1 else relax.op.reshape(node.step(taken, "taken"), target)


def _shape(node: Operands) -> relax.Expr:
    dtype = "int64" if node.result().dtype == "int64" else "int32"
    return relax.const(np.array(node.shape(), dtype))


def _rank(node: Operands) -> relax.Expr:
    return relax.const(np.array(len(node.shape()), np.int32))


def _zeros_like(node: Operands) -> relax.Expr:
    return relax.const(np.zeros(node.shape(), str(node.value(0).ty.dtype)))


#: Builtin operator -> its converter.
CONVERTERS: dict[str, Callable[[Operands], _Result]] = {
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "BROADCAST_TO": _broadcast_to,
    "CONCATENATION": _concatenation,
    "DEPTH_TO_SPACE": _depth_to_space,
    "EXPAND_DIMS": _expand_dims,
    "FILL": _fill,
    "GATHER": _gather,
    "MIRROR_PAD": _mirror_pad,
    "PACK": _pack,
    "PAD": _pad,
    "PADV2": _pad,
    "RANK": _rank,
    "RESHAPE": _reshape,
    "SHAPE": _shape,
    "REVERSE_V2": _reverse,
    "SLICE": _slice,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "TILE": _tile,
    "TRANSPOSE": _transpose,
    "UNPACK": _unpack,
    "ZEROS_LIKE": _zeros_like,
}
