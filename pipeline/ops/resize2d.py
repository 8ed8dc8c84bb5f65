"""``relax.bitkiln.resize2d``: images brought to another size."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import attributes, epilogue_of, pair, register, shape_of
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Resize


def resize2d(
    x: relax.Expr,
    *operands: relax.Expr,
    size: tuple[int, int],
    method: str,
    coordinates: str,
    rounding: str = "",
    epilogue: tuple[Step, ...] = (),
) -> Call:
    """x float32 [1, H, W, C] -> float32 [1, *size, C]; words as in ``bitkiln.schedules.workload.Resize``."""
    attrs = attributes(size=size, method=method, coordinates=coordinates, rounding=rounding, epilogue=epilogue)
    return Call(_OP, [x, *operands], attrs)


def _describe(call: Call) -> Resize:
    attrs = call.attrs
    _, height, width, channels = shape_of(call.args[0])
    method, coordinates, rounding = (str(attrs[name]) for name in ("method", "coordinates", "rounding"))
    return Resize(height, width, channels, pair(attrs["size"]), method, coordinates, rounding, epilogue_of(call))


_OP = register("resize2d", "Images brought to another size.", ("data",), _describe)
