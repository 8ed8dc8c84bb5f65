"""What each Relax operator computes; each family of operators has a module, whose table names those it holds."""

from __future__ import annotations

from bitkiln.pipeline.reference import elementwise, rearranging, reductions, resize, windowed, workloads
from bitkiln.pipeline.reference.values import Operator

OPERATORS: dict[str, Operator] = (
    elementwise.OPERATORS
    | windowed.OPERATORS
    | reductions.OPERATORS
    | rearranging.OPERATORS
    | resize.OPERATORS
    | workloads.OPERATORS
)
