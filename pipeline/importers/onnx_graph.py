"""An ONNX graph made plain before conversion: what exporters leave behind and training needed goes.

Each function below removes one kind of residue; ``clean`` lists them in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bitkiln.pipeline.errors import UnsupportedLayer

DEFAULT_DOMAINS = ("", "ai.onnx")

#: The sign that takes 0 to +1, times a scale: ``scale * (x >= 0 ? 1 : -1)``. Its second operand is the scale.
BIPOLAR = "BipolarQuant"
_BIPOLAR_DOMAINS = ("onnx.brevitas", "qonnx.custom_op.general")


@dataclass
class Graph:
    """A model's graph: nodes in execution order, constants by name, and the tensor behind each output's name.

    ``clean`` changes it in place.
    """

    path: Path
    opset: int
    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    outputs: dict[str, str]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    def rename(self, names: dict[str, str]) -> None:
        """Let every consumer (and output) of a key use its value instead; chains are followed."""

        def final(name: str) -> str:
            while name in names:
                name = names[name]
            return name

        for node in self.nodes:
            node.input[:] = [final(name) for name in node.input]
        self.outputs = {output: final(name) for output, name in self.outputs.items()}


def clean(graph: Graph) -> Graph:
    """Refuse foreign operators and remove what a compiled network does not need."""
    for node in graph.nodes:
        _check_domain(graph, node)
    skip_identities(graph)
    skip_straight_through_estimators(graph)
    join_double_signs(graph)
    drop_dead_nodes(graph)
    return graph


def node_label(node: onnx.NodeProto) -> str:
    """How messages name a node."""
    return f"node {node.name or '/'.join(node.output)!r} ({node.op_type})"


def _check_domain(graph: Graph, node: onnx.NodeProto) -> None:
    bipolar = node.op_type == BIPOLAR and node.domain in _BIPOLAR_DOMAINS
    if node.domain not in DEFAULT_DOMAINS and not bipolar:
        raise UnsupportedLayer(
            f"{graph.path}: {node_label(node)} is of the domain {node.domain!r}, which is not supported"
        )


def skip_identities(graph: Graph) -> None:
    """Identity, and Dropout, which does nothing at inference."""
    idle = [node for node in graph.nodes if node.op_type in ("Identity", "Dropout")]
    graph.rename({node.output[0]: node.input[0] for node in idle})


def skip_straight_through_estimators(graph: Graph) -> None:
    """``(q - p) + p`` is ``q`` where q is a sign or a scaled sign: p only gave training a gradient."""
    producers = graph.producers()
    names = {}
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        for difference, rest in (node.input, reversed(node.input)):
            made_by = producers.get(difference)
            if (
                made_by
                and made_by.op_type == "Sub"
                and made_by.input[1] == rest
                and _quantised(made_by.input[0], producers)
            ):
                names[node.output[0]] = made_by.input[0]
    graph.rename(names)


def _quantised(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    if node is None:
        return False
    if node.op_type == "Mul":
        return any(_quantised(operand, producers) for operand in node.input)
    return node.op_type in ("Sign", "Where", BIPOLAR)


def join_double_signs(graph: Graph) -> None:
    """``sign(sign(x) + c)`` with 0 < c < 1, as Larq writes the sign that takes 0 to +1, becomes one node."""
    producers = graph.producers()
    values = dict(_constant_values(graph))
    for node in graph.nodes:
        inner = _double_sign(node, producers, values)
        if inner is not None:
            scale = f"{node.output[0]}_unit_scale"
            graph.constants[scale] = np.ones((), np.float32)
            node.op_type, node.domain = BIPOLAR, _BIPOLAR_DOMAINS[0]
            node.input[:] = [inner, scale]


def _double_sign(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], values: dict[str, np.ndarray]
) -> str | None:
    """The x of ``sign(sign(x) + c)``."""
    add = producers.get(node.input[0]) if node.op_type == "Sign" else None
    if add is None or add.op_type != "Add":
        return None
    for name, other in (add.input, reversed(add.input)):
        inner, offset = producers.get(name), values.get(other)
        if inner is not None and inner.op_type == "Sign" and offset is not None and offset.size == 1:
            return inner.input[0] if 0 < offset.item() < 1 else None
    return None


def _constant_values(graph: Graph) -> Iterator[tuple[str, np.ndarray]]:
    yield from graph.constants.items()
    for node in graph.nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], onnx.numpy_helper.to_array(node.attribute[0].t)


def drop_dead_nodes(graph: Graph) -> None:
    """Nodes and constants that no output depends on."""
    wanted = set(graph.outputs.values())
    kept = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(_captured(node))
    graph.nodes = kept[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in wanted}


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Outer tensors that a node's subgraphs use."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.input
                yield from _captured(inner)
