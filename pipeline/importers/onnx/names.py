"""What the file calls each operation: the name of the node it was made of, where that has one, else of its tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import onnx
import tvm

from bitkiln.pipeline.ir.graph import bindings, op_name

#: Operators of ours that a node is known by, where it became several.
_MAIN = ("conv", "matmul")


def names_in_file(module: tvm.IRModule, tensors: Mapping[str, str], nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """For each operation of ``module`` its name in the file; ``tensors`` says of which tensor (and step) each was made.

    A node that became several operations is the name of its convolution or product, else of its result; the others have what
    they do behind it in parentheses. No two are called the same.
    """
    makers = {tensor: node for node in nodes for tensor in node.output if tensor}
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, value in bindings(module["main"]):
        if name in tensors:
            groups[_maker(tensors[name], makers)].append((name, op_name(value).removeprefix("nn.")))
    found: dict[str, str] = {}
    taken: set[str] = set()
    for label, parts in groups.items():
        main = next((name for name, kind in parts if kind.startswith(_MAIN)), parts[-1][0])
        for name, kind in parts:
            found[name] = _unique(label if name == main else f"{label} ({kind})", taken)
    return found


def _maker(raw: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The name of the node that a tensor, or ``<tensor>_<step>``, comes from; the tensor's where it has none."""
    tensor = raw
    while tensor not in makers and "_" in tensor:
        tensor = tensor.rpartition("_")[0]
    if tensor not in makers:
        return raw
    node = makers[tensor]
    return node.name or tensor if len(node.output) == 1 else tensor


def _unique(label: str, taken: set[str]) -> str:
    unique, count = label, 1
    while unique in taken:
        count += 1
        unique = f"{label} #{count}"
    taken.add(unique)
    return unique
