"""Let convolutions and poolings pad for themselves what a file pads in a step of its own.

- Signs of an image padded with a constant, read by a binary convolution: a convolution of the image's own signs whose padding
  is the sign of that constant. Convolutions that read the same signs, padded and not, then share them.
- A maximum pooling of a padded image: padded elements that never win a maximum are its own kind of padding. They do not
  where they are no greater than anything in the image and no window lies outside of it.
- An average pooling of an image padded with zeros, which counts them.

Zero padding before a float convolution is merged with its weights (``fold_affine``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline import ops
from bitkiln.pipeline.ir.graph import Graph, op_name, rewrite, shape_of
from bitkiln.pipeline.ir.operands import clip_bounds
from bitkiln.pipeline.ops.register import call_of, ints, sides, workload_of
from bitkiln.schedules.workload import Conv2d

#: What padding a maximum never takes: infinity, or the lowest number for those who cannot write it.
_LOWEST = float(np.finfo(np.float32).min)

_Padding = tuple[int, int, int, int]


def merge_padding(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with fewer steps that only pad."""
    signs: dict[tuple[str, int], relax.Expr] = {}
    return rewrite(module, lambda graph, name, value: _visit(graph, name, value, signs))


def _visit(graph: Graph, name: str, value: relax.Expr, signs: dict[tuple[str, int], relax.Expr]) -> relax.Expr | None:
    match op_name(value):
        case "bitkiln.binarize" if len(value.args) == 1 and isinstance(value.args[0], relax.Var):
            key = (value.args[0].name, int(value.attrs["sign_zero"]))
            if key not in signs:
                signs[key] = graph.bind(name, value)
            return signs[key]
        case "bitkiln.bconv2d":
            return _convolution(graph, value, signs)
        case "nn.max_pool2d" | "nn.avg_pool2d":
            return _pooling(graph, value)
    return None


def _convolution(graph: Graph, conv: Call, signs: dict[tuple[str, int], relax.Expr]) -> relax.Expr | None:
    binarize = graph.call_of(conv.args[0], "bitkiln.binarize")
    padded = _padded(graph, binarize.args[0]) if binarize is not None and len(binarize.args) == 1 else None
    if binarize is None or padded is None:
        return None
    x, padding, value = padded
    workload, sign_zero = workload_of(conv, Conv2d), int(binarize.attrs["sign_zero"])
    pad_value = int(np.sign(value)) or sign_zero
    own = workload.padding
    reach = [(size - 1) * step + 1 for size, step in zip(workload.kernel, workload.dilation, strict=True)]
    merged = sides(a + b for a, b in zip(own, padding, strict=True))
    if (any(own) and workload.pad_value != pad_value) or any(
        pad >= size for pad, size in zip(merged, (*reach, *reach), strict=True)
    ):
        return None
    key = (x.name, sign_zero)
    if key not in signs:
        signs[key] = graph.emit(ops.binarize(x, sign_zero=sign_zero), f"{x.name}.bits")
    return call_of(replace(workload, padding=merged, pad_value=pad_value), [signs[key], *conv.args[1:]])


def _pooling(graph: Graph, pool: Call) -> relax.Expr | None:
    padded = _padded(graph, pool.args[0])
    attrs = pool.attrs
    if padded is None or str(attrs["layout"]) != "NHWC" or any(ints(attrs["padding"])) or attrs["ceil_mode"]:
        return None
    x, padding, value = padded
    kernel, strides, dilation = ints(attrs["pool_size"]), ints(attrs["strides"]), ints(attrs["dilation"])
    if dilation != (1, 1) or any(pad >= size for pad, size in zip(padding, (*kernel, *kernel), strict=True)):
        return None
    if op_name(pool) == "nn.avg_pool2d":
        if value:
            return None
        return relax.op.nn.avg_pool2d(x, kernel, strides, padding, layout="NHWC", count_include_pad=True)
    if value > _lowest_of(graph, x):
        return None
    return relax.op.nn.max_pool2d(x, kernel, strides, padding, layout="NHWC")


def _padded(graph: Graph, x: relax.Expr) -> tuple[relax.Var, _Padding, float] | None:
    """The image that ``x`` is with rows and columns of a constant around it: image, top left bottom right, constant."""
    pad = graph.call_of(x, "nn.pad")
    if pad is None or str(pad.attrs["pad_mode"]) != "constant" or len(pad.args) > 1 or len(shape_of(x)) != 4:
        return None
    widths = ints(pad.attrs["pad_width"])
    value = float(pad.attrs["pad_value"])
    source = pad.args[0]
    if any(widths[:2]) or any(widths[6:]) or min(widths) < 0 or np.isnan(value) or not isinstance(source, relax.Var):
        return None
    top, bottom, left, right = widths[2:6]
    return source, (top, left, bottom, right), value


def _lowest_of(graph: Graph, x: relax.Expr) -> float:
    """A number that no element of ``x`` is below."""
    bounded = graph.call_of(x, "nn.relu", "nn.relu6", "clip")
    return max(clip_bounds(bounded)[0], _LOWEST) if bounded is not None else _LOWEST
