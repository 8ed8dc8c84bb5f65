"""Transposed convolution: its definition, tuning space, untuned default and which implementation computes a workload."""

from __future__ import annotations

from tvm import te, tirx

from bitkiln.schedules import definition as stages
from bitkiln.schedules.conv2d import tiles
from bitkiln.schedules.conv2d_transpose import depthwise, tiled
from bitkiln.schedules.kernel import Kernel, Knobs, size_of
from bitkiln.schedules.workload import ConvTranspose2d
from bitkiln.targets import Target


def reference(workload: ConvTranspose2d) -> tirx.PrimFunc:
    """The plain definition: arguments as ``workload.shapes`` lists them, the output last."""
    (data_shape, _), (weight_shape, _), *_, (out_shape, _) = workload.shapes
    data = te.placeholder(data_shape, "float32", name="data")
    weight = te.placeholder(weight_shape, "float32", name="weight")
    operands = stages.operand_tensors(workload.epilogue, (*workload.out_size, workload.out_channels))
    per_group = workload.channels // workload.groups
    out_per_group = workload.out_channels // workload.groups
    ry, rx, rc = stages.taps(workload)

    def element(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.PrimExpr:
        spread_y = y + workload.padding[0] - ry * workload.dilation[0]
        spread_x = x + workload.padding[1] - rx * workload.dilation[1]
        # A pixel's neighbours on the spread image are zeros.
        hit = tirx.all(*(_hits(workload, axis, at) for axis, at in enumerate((spread_y, spread_x))))
        pixel = (tirx.floordiv(spread_y, workload.strides[0]), tirx.floordiv(spread_x, workload.strides[1]))
        tap = data[n, pixel[0], pixel[1], o // out_per_group * per_group + rc] * weight[o, ry, rx, rc]
        return te.sum(tirx.if_then_else(hit, tap, tirx.const(0, "float32")), axis=[ry, rx, rc])

    result = te.compute(out_shape, element, name="spread")
    return te.create_prim_func([data, weight, *operands, stages.apply_epilogue(result, workload.epilogue, operands)])


def space(workload: ConvTranspose2d, target: Target) -> dict[str, list[int | str]]:
    """The register tile, and whether rows of the image or panels of weights come first."""
    if depthwise.applies(workload):
        return {}
    return {"tile": tiles.sizes(target), "order": list(tiled.ORDERS)}


def default(workload: ConvTranspose2d, target: Target, threads: int = 1) -> dict[str, int | str]:
    """The tile that a row of the image wastes least of; panels first where weights stream from memory."""
    return {} if depthwise.applies(workload) else tiled.default(workload, target)


def emit(workload: ConvTranspose2d, knobs: Knobs, target: Target, threads: int = 1) -> Kernel:
    """The implementation at one point of the space."""
    if depthwise.applies(workload):
        return depthwise.emit(workload)
    return tiled.emit(workload, size_of(knobs["tile"]), str(knobs["order"]), target)


def _hits(workload: ConvTranspose2d, axis: int, at: tirx.PrimExpr) -> tirx.PrimExpr:
    """Whether ``at`` on the image with stride - 1 zeros between its pixels is a pixel of it."""
    stride, extent = workload.strides[axis], (workload.height, workload.width)[axis]
    return tirx.all(at >= 0, tirx.floormod(at, stride) == 0, tirx.floordiv(at, stride) < extent)
