"""``relax.bitkiln.softmax`` and ``relax.bitkiln.normalize``: rows along the last axis."""

from __future__ import annotations

from typing import Any, Required, TypedDict, Unpack

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.register import register
from bitkiln.schedules.workload import Normalize, Softmax


class SoftmaxAttributes(TypedDict, total=False):
    """As in ``bitkiln.schedules.workload.Softmax``."""

    log: bool


class NormalizeAttributes(TypedDict):
    """As in ``bitkiln.schedules.workload.Normalize``."""

    epsilon: Required[float]


def softmax(x: relax.Expr, **attributes: Unpack[SoftmaxAttributes]) -> Call:
    """x float32 [..., C] -> float32 [..., C]."""
    return _SOFTMAX.call([x], attributes)


def normalize(x: relax.Expr, scale: relax.Expr, shift: relax.Expr, **attributes: Unpack[NormalizeAttributes]) -> Call:
    """x float32 [..., C], scale and shift float32 [C] -> float32 [..., C]."""
    return _NORMALIZE.call([x, scale, shift], attributes)


def _shape(call: Call) -> dict[str, Any]:
    return {"shape": shape_of(call.args[0])}


_SOFTMAX = register("softmax", "Shares of exponentials along rows.", ("data",), Softmax, SoftmaxAttributes, _shape)
_NORMALIZE = register(
    "normalize",
    "Rows with mean 0 and variance 1.",
    ("data", "scale", "shift"),
    Normalize,
    NormalizeAttributes,
    _shape,
)
