"""The functions an ONNX model defines for itself, written out in its graph.

Functions may call each other, so that a small file can stand for any number of nodes: calls in circles and what would grow
beyond ``MAX_STEPS`` are refused before anything is written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.inliner

from bitkiln.pipeline.errors import ModelError
from bitkiln.pipeline.importers.common.limits import check_steps
from bitkiln.pipeline.support.tvm_messages import reason_of

#: How deep functions may call each other; exporters nest as deep as people nest modules.
_MAX_DEPTH = 50

_Key = tuple[str, str, str]


def inline(path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` without functions. Raises ModelError."""
    if not proto.functions:
        return proto
    functions = {(function.domain, function.name, function.overload): function for function in proto.functions}
    sizes: dict[_Key, int] = {}
    check_steps(path, _size(path, proto.graph.node, functions, sizes, ()))
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:  # ONNX raises what its assertions raise
        raise ModelError(f"{path}: its functions cannot be written out: {reason_of(error)}") from None


def _size(
    path: Path,
    nodes: Iterable[onnx.NodeProto],
    functions: dict[_Key, onnx.FunctionProto],
    sizes: dict[_Key, int],
    callers: tuple[_Key, ...],
) -> int:
    """How many nodes ``nodes`` are when all calls are written out; ``callers`` are the functions they are in."""
    total = 0
    for node in _with_nested(nodes):
        key = (node.domain, node.op_type, node.overload)
        total += 1
        if key not in functions:
            continue
        if key in callers or len(callers) >= _MAX_DEPTH:
            raise ModelError(f"{path}: function {node.op_type!r} calls itself, or others more than {_MAX_DEPTH} deep")
        if key not in sizes:
            sizes[key] = _size(path, functions[key].node, functions, sizes, (*callers, key))
        total += sizes[key]
    return total


def _with_nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs; protobuf limits how deep these are nested."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _with_nested(attribute.g.node)
            for graph in attribute.graphs:
                yield from _with_nested(graph.node)
