"""``relax.bitkiln.lookup``: tables of numbers of 8 bits."""

from __future__ import annotations

from typing import TypedDict

from tvm import relax
from tvm.ir import Call

from bitkiln.pipeline.ir.graph import shape_of
from bitkiln.pipeline.ops.register import register
from bitkiln.schedules.workload import Lookup


class LookupAttributes(TypedDict):
    """None: all follows from the arguments."""


def lookup(x: relax.Expr, table: relax.Expr) -> Call:
    """x int8 of any shape, table int8 [256], whose first entry is that of -128 -> int8 of x's shape."""
    return _LOOKUP.call([x, table], {})


_LOOKUP = register(
    "lookup",
    "Numbers of 8 bits replaced by what a table has for them.",
    ("data", "table"),
    Lookup,
    LookupAttributes,
    lambda call: {"shape": shape_of(call.args[0])},
)
