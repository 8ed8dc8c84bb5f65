"""``relax.bitkiln.depth_first``: convolutions one after the other, a few rows of the image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ops.register import register
from bitkiln.schedules.workload import Conv2d, DepthFirst


class DepthFirstAttributes(TypedDict):
    """As in ``bitkiln.schedules.workload.DepthFirst``."""

    layers: tuple[Conv2d, ...]


def depth_first(layers: Sequence[Conv2d], *args: relax.Expr) -> Call:
    """``layers``, each on what the one before gives; ``args`` have the types that ``DepthFirst.shapes`` lists."""
    return _DEPTH_FIRST.call(args, {"layers": tuple(layers)})


_DEPTH_FIRST = register(
    "depth_first",
    "Convolutions, each on what the one before gives.",
    ("data",),
    DepthFirst,
    DepthFirstAttributes,
    lambda _call: {},
)
