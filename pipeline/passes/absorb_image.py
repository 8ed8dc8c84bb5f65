"""Draw what is done to the image into the first layer: its layout, its mean and its scale, so that it is read once.

The scale joins the weights; the mean becomes a shift that the kernel adds while it copies the image; an NCHW image is read as
it is. Only where the schedules have a kernel for such a layer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, array_of, constant, op_name, rewrite, shape_of, value_of
from bitkiln.pipeline.ir.operands import channel_operand, fits_float32
from bitkiln.pipeline.ops.register import call_of, ints, workload_of
from bitkiln.schedules.conv2d import is_stem
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target

_TO_NHWC = (0, 2, 3, 1)


def absorb_image(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """First layers that read the image as it comes."""
    return rewrite(module, partial(_visit, target=target))


def _visit(graph: Graph, _name: str, value: relax.Expr, target: Target) -> relax.Expr | None:
    if op_name(value) != "bitkiln.conv2d" or array_of(value.args[1]) is None:
        return None
    workload = workload_of(value, Conv2d)
    if workload.groups > 1:
        return None
    x, scale, shift = _affine(graph, value.args[0], workload.channels)
    planes = _planes(graph, x)
    if planes is None and x is value.args[0]:
        return None
    shifted = bool(np.any(shift))
    layout = "NHWC" if planes is None else "NCHW"
    absorbed = replace(workload, shift=shifted, layout=layout)
    if not is_stem(absorbed, target):
        return None
    operands = [*value.args[2:], *([constant(shift)] if shifted else [])]
    arguments = [x if planes is None else planes, constant(value_of(value.args[1]) * scale), *operands]
    return call_of(absorbed, arguments)


def _affine(graph: Graph, x: relax.Expr, channels: int) -> tuple[relax.Expr, np.ndarray, np.ndarray]:
    """(y, a, b) with x = a * (y + b), a and b one value a channel and no a zero, y as far up as it goes."""
    scale, shift = np.ones(channels), np.zeros(channels)
    while graph.used_once(x):
        call = graph.call_of(x, "add", "multiply")
        array = array_of(call.args[1]) if call is not None else None
        values = channel_operand(array, channels) if array is not None else None
        if call is None or values is None or shape_of(call.args[0]) != shape_of(x):
            break
        if op_name(call) == "multiply" and not np.all(values):
            break
        factor, term = (1, values) if op_name(call) == "add" else (values, 0)
        if not fits_float32(scale * factor) or not fits_float32(shift / factor + term):
            break
        scale, shift, x = scale * factor, shift / factor + term, call.args[0]
    return x, scale, shift


def _planes(graph: Graph, x: relax.Expr) -> relax.Expr | None:
    """The NCHW tensor that ``x`` is the NHWC form of."""
    call = graph.call_of(x, "permute_dims") if graph.used_once(x) else None
    axes = tuple(axis % 4 for axis in ints(call.attrs["axes"])) if call is not None else ()
    return call.args[0] if call is not None and axes == _TO_NHWC else None
