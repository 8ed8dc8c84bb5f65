"""``relax.bitkiln.resize2d``: images brought to another size."""

from __future__ import annotations

from typing import Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import image_size, register
from bitkiln.schedules.steps import Step
from bitkiln.schedules.workload import Resize


class ResizeAttributes(TypedDict, total=False):
    """As in ``bitkiln.schedules.workload.Resize``."""

    size: Required[tuple[int, int]]
    method: Required[str]
    coordinates: Required[str]
    rounding: str
    epilogue: tuple[Step, ...]


def resize2d(x: relax.Expr, *operands: relax.Expr, **attributes: Unpack[ResizeAttributes]) -> Call:
    """x float32 [1, H, W, C] -> float32 [1, *size, C]."""
    return _RESIZE2D.call([x, *operands], attributes)


_RESIZE2D = register("resize2d", "Images brought to another size.", ("data",), Resize, ResizeAttributes, image_size)
