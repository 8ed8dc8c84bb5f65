"""Two products with a softmax between them become one operator, and products write their results where transposes would."""

from __future__ import annotations

import tvm
from tvm import relax

from bitkiln.pipeline.ir.graph import Graph, op_name, rewrite
from bitkiln.pipeline.passes import matrices


def join_products(module: tvm.IRModule) -> tvm.IRModule:
    """The same network with fewer tensors between matrix products."""
    return rewrite(module, _visit)


def _visit(graph: Graph, _name: str, value: relax.Expr) -> relax.Expr | None:
    match op_name(value):
        case "bitkiln.product":
            return matrices.joined(graph, value)
        case "permute_dims":
            return matrices.moved_result(graph, value)
    return None
