"""An ONNX graph made plain before conversion: foreign operators are refused, what does nothing goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer

DEFAULT_DOMAINS = ("", "ai.onnx")

#: Where QONNX, Brevitas and FINN keep their quantisers.
QUANTIZER_DOMAINS = ("onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general", "finn")

#: FINN's quantiser: how many thresholds its input reaches.
MULTI_THRESHOLD = "MultiThreshold"

#: Where onnxruntime has its own operators, and those that its quantiser writes and that are imported.
CONTRIB_DOMAIN = "com.microsoft"
CONTRIB = frozenset(
    {
        *("DequantizeLinear", "QGemm", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu"),
        *("QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear"),
    }
)

#: Our own operator, in which ``masks`` writes assignments through masks: (data, mask, value) -> data.
ASSIGNMENT = "bitkiln.Assignment"

#: Before the names of ONNX's layers of whole numbers where ``qdq`` limits their results: attributes "lowest", "highest".
LIMITED = "bitkiln."


@dataclass
class OnnxGraph:
    """A model's graph: nodes in execution order, constants by name, and the tensor behind each output's name.

    ``clean`` changes it in place.
    """

    path: Path
    opset: int
    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    outputs: dict[str, str]

    def rename(self, names: dict[str, str]) -> None:
        """Let every consumer (and output) of a key use its value instead; chains are followed."""

        def final(name: str) -> str:
            while name in names:
                name = names[name]
            return name

        for node in self.nodes:
            node.input[:] = [final(name) for name in node.input]
        self.outputs = {output: final(name) for output, name in self.outputs.items()}


def clean(graph: OnnxGraph) -> OnnxGraph:
    """Refuse foreign operators and remove what a compiled network does not need."""
    for node in graph.nodes:
        _check_domain(graph, node)
        _check_operands(graph, node)
        _check_training(graph, node)
    skip_identities(graph)
    drop_dead_nodes(graph)
    return graph


def node_label(node: onnx.NodeProto) -> str:
    """How messages name a node, on one line whatever its name."""
    kind = node.op_type if node.op_type.isidentifier() else repr(node.op_type)
    return f"node {node.name or '/'.join(node.output)!r} ({kind})"


def _check_domain(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """Quantisers have been written out by now."""
    if node.domain in DEFAULT_DOMAINS or (node.op_type == MULTI_THRESHOLD and node.domain in QUANTIZER_DOMAINS):
        return
    if node.domain == CONTRIB_DOMAIN and node.op_type in CONTRIB:
        return
    known = ""
    if node.domain in QUANTIZER_DOMAINS or node.domain.startswith(("qonnx.", "finn.")):
        known = ": of QONNX, BipolarQuant, Quant, IntQuant and Trunc are; export the network before FINN changes it"
    raise UnsupportedLayer(
        f"{graph.path}: {node_label(node)} is of the domain {node.domain!r}, which is not supported{known}"
    )


def _check_operands(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """As many operands and results as ONNX gives the operator; converters take it for granted."""
    if node.domain == CONTRIB_DOMAIN:
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset, "")
    except onnx.defs.SchemaError:
        return  # one we know by another domain, or do not know at all
    for what, names, low, high in (
        ("operands", node.input, schema.min_input, schema.max_input),
        ("results", node.output, max(schema.min_output, 1), schema.max_output),
    ):
        if not low <= len(names) <= high:
            raise ModelError(
                f"{graph.path}: {node_label(node)}: has {len(names)} {what}, which its operator does not take"
            )

    last = len(schema.inputs) - 1
    for index, name in enumerate(node.input):
        if not name and schema.inputs[min(index, last)].option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            raise ModelError(f"{graph.path}: {node_label(node)}: lacks operand {index}, which its operator needs")


def _check_training(graph: OnnxGraph, node: onnx.NodeProto) -> None:
    """Refuse Dropout and BatchNormalization of training: they drop at random, and take statistics of their input."""
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] != ""
    if training and node.input[2] in graph.constants:
        ratio = graph.constants.get(node.input[1], np.float32(0.5))
        training = bool(np.any(graph.constants[node.input[2]])) and bool(np.any(ratio))
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "BatchNormalization":
        training = any(node.output[1:]) or bool(attributes.get("training_mode", 0))
    if training:
        raise UnsupportedLayer(
            f"{graph.path}: {node_label(node)}: is, or may be, in training mode; export the model for inference"
        )


def skip_identities(graph: OnnxGraph) -> None:
    """Identity, and Dropout whose mask nobody asks for, which does nothing at inference."""
    idle = [
        node
        for node in graph.nodes
        if node.input
        and node.input[0]
        and node.output[0]
        and (node.op_type == "Identity" or (node.op_type == "Dropout" and not any(node.output[1:])))
    ]
    graph.rename({node.output[0]: node.input[0] for node in idle})


def drop_dead_nodes(graph: OnnxGraph) -> None:
    """Nodes and constants that no output depends on."""
    wanted = set(graph.outputs.values())
    kept = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output) - {""}:
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
