"""Convolution of whole numbers of 8 bits: its definition, and which schedule implements a workload."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import te, tirx

from bitkiln.schedules import definition as stages
from bitkiln.schedules.kernel import Kernel, Knobs
from bitkiln.schedules.microkernels import kernel_set
from bitkiln.schedules.microkernels.a53.igemm import CHANNELS
from bitkiln.schedules.qconv2d import dense, depthwise, depthwise_rows, plain, product, segments
from bitkiln.schedules.workload import QConv2d
from bitkiln.targets import Target


def reference(workload: QConv2d) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    names = ("data", "weight", "bias", "factor")
    args = [te.placeholder(*spec, name=name) for spec, name in zip(workload.shapes, names, strict=False)]
    data, weight, bias, factor = args
    padded = stages.pad(data, workload.padding, tirx.const(workload.zero, "int8"))
    wide = te.compute(padded.shape, lambda *at: padded(*at).astype("int32") - workload.zero, name="wide")
    sums = stages.convolve(workload, wide, lambda *at: weight(*at).astype("int32"), "conv")
    result = te.compute(
        sums.shape, lambda n, y, x, o: rescaled(workload, sums[n, y, x, o] + bias[o], factor[o]), name="rescaled"
    )
    return te.create_prim_func([*args, result])


def rescaled(workload: QConv2d, total: tirx.PrimExpr, factor: tirx.PrimExpr) -> tirx.PrimExpr:
    """The result of a sum with its bias, int32 -> int8."""
    return plain.rescaled(workload, total, factor)


def planned(workload: QConv2d, weight: np.ndarray) -> QConv2d:
    """``workload`` with segments planned from its weights, int OHWI, where its kernel has them."""
    if dense.fits(workload, weight):
        return replace(workload, segment=dense.PRODUCTS, segments=0)
    if workload.groups > 1 or workload.out_channels < CHANNELS:
        return workload
    plan = segments.plan(product.steps_of(workload, weight), CHANNELS)
    return replace(workload, segment=plan.length, segments=plan.segments)


def space(workload: QConv2d, target: Target) -> dict[str, list[int | str]]:
    """The tuning space: one schedule for each kind of workload."""
    return {}


def default(workload: QConv2d, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The one point of the space."""
    return {}


def emit(workload: QConv2d, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation; any number of threads may run it."""
    if kernel_set(target).whole:
        if dense.applies(workload):
            return dense.emit(workload)
        if product.applies(workload):
            return product.emit(workload, target)
        if depthwise.applies(workload):
            return depthwise.emit(workload)
        if depthwise_rows.applies(workload):
            return depthwise_rows.emit(workload)
    return plain.emit(workload)
