"""A network evaluated with other rounding: what sums and functions give is moved by as much as right engines differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tvm
from tvm import relax

from bitkiln.pipeline import reference
from bitkiln.pipeline.ir.graph import op_name

#: Operators whose results depend on the order of a sum, or on how often they round.
_SUMS = frozenset(
    {
        *("matmul", "mean", "sum", "nn.avg_pool2d", "nn.conv1d", "nn.conv2d", "nn.conv2d_transpose", "nn.conv3d"),
        *("nn.batch_norm", "nn.group_norm", "nn.layer_norm", "nn.instance_norm", "exp", "log", "sqrt", "rsqrt"),
        *("divide", "multiply", "add", "subtract"),
    }
)

#: Functions with results of about 0 to 1, which engines approximate.
_BOUNDED = frozenset({"sigmoid", "tanh", "erf", "nn.softmax", "nn.gelu", "nn.gelu_tanh", "nn.silu"})

#: A value, and whether it is that of a bounded function -> what to add to it.
Error = Callable[[np.ndarray, bool], np.ndarray | float]


def evaluate(
    graph: tvm.IRModule, known: Mapping[str, np.ndarray], names: Iterable[str], error: Error
) -> dict[str, np.ndarray]:
    """The tensors called ``names``, given ``known`` ones, with ``error`` added to every float32 that rounding touches."""

    def instead(_name: str, expr: relax.Expr, values: Mapping[str, reference.Value]) -> reference.Value | None:
        kind = op_name(expr)
        if kind not in _SUMS and kind not in _BOUNDED:
            return None
        value = reference.evaluate_call(graph, expr, values)
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            return value
        return (value + error(value, kind in _BOUNDED)).astype(np.float32)

    return reference.evaluate(graph, known, names, instead=instead)
