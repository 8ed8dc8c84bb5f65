"""Binary convolution: its definition, and which schedule implements a workload."""

from __future__ import annotations

import operator
from functools import reduce

from tvm import te, tirx

from bitkiln.schedules import definition as stages
from bitkiln.schedules.bconv2d import a53, grouped, plain
from bitkiln.schedules.bconv2d.geometry import MAX_BITS
from bitkiln.schedules.kernel import Kernel, Knobs
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.workload import Conv2d
from bitkiln.targets import Target


def reference(workload: Conv2d) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the outputs last."""
    (data_shape, _), (weight_shape, _), *_ = workload.shapes
    size = (*workload.conv_size, workload.out_channels)
    data = te.placeholder(data_shape, "uint8", name="data")
    weight = te.placeholder(weight_shape, "uint8", name="weight")
    dots = _convolve(workload, data, weight)
    if workload.threshold:
        thresholds = te.placeholder(workload.shapes[2][0], "int32", name="thresholds")
        bits = te.compute(dots.shape, lambda *at: _odd(workload, dots[at], thresholds, at))
        return te.create_prim_func([data, weight, thresholds, stages.pack_bits(bits)])
    operands = stages.operand_tensors(workload.epilogue, size)
    result = te.compute(dots.shape, lambda *at: dots[at].astype("float32"), name="dots_float")
    result = stages.apply_epilogue(result, workload.epilogue, operands)
    if workload.pool:
        result = stages.pool(result, workload.pool)
    if workload.out == "bits":
        result = stages.signs(result, workload.sign_zero)
    more, bits = stages.beside(result, workload.signs, (*workload.out_size, workload.out_channels))
    return te.create_prim_func([data, weight, *operands, *more, result, *bits])


def space(workload: Conv2d, target: Target) -> dict[str, list[int | str]]:
    """The tuning space."""
    return a53.space(workload, target) if _microkernels(workload, target) else {}


def default(workload: Conv2d, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The untuned default."""
    return a53.default(workload, target) if _microkernels(workload, target) else {}


def emit(workload: Conv2d, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space."""
    if _microkernels(workload, target):
        return a53.emit(workload, knobs, target)
    return (plain if _vectors(workload) else grouped).emit(workload)


def _vectors(workload: Conv2d) -> bool:
    """Whether output channels are lanes: all see the same input, and counts fit into 16 bits."""
    return workload.groups == 1 and workload.kernel[0] * workload.kernel[1] * workload.channels <= MAX_BITS


def _microkernels(workload: Conv2d, target: Target) -> bool:
    return _vectors(workload) and bool(kernel_set(target).bgemm)


def _odd(
    workload: Conv2d, dot: tirx.PrimExpr, thresholds: te.Tensor, at: tuple[tirx.Var, tirx.Var, tirx.Var, tirx.Var]
) -> tirx.PrimExpr:
    """Whether ``dot`` reaches an odd number of the thresholds at (n, y, x, o) = ``at``."""
    own = at[1:] if workload.threshold == "element" else at[3:]
    if workload.thresholds == 1:
        return dot >= thresholds[own]
    reached = [(dot >= thresholds[(i, *own)]).astype("int32") for i in range(workload.thresholds)]
    return reduce(operator.xor, reached) == 1


def _convolve(workload: Conv2d, data: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """The dot products of +-1 values, int32 [1, OH, OW, O]; a padded tap is ``pad_value``."""
    size = (1, workload.height, workload.width, workload.channels)
    values = te.compute(size, lambda n, y, x, c: _plus_minus_one(data[n, y, x, c // 8], c), name="values")
    padded = stages.pad(values, workload.padding, tirx.const(workload.pad_value, "int32"))
    return stages.convolve(
        workload, padded, lambda o, ry, rx, rc: _plus_minus_one(weight[o, ry, rx, rc // 8], rc), "dots"
    )


def _plus_minus_one(byte: tirx.PrimExpr, channel: tirx.PrimExpr) -> tirx.PrimExpr:
    return ((byte.astype("int32") >> (channel % 8)) & 1) * 2 - 1
