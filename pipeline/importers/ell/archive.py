"""The JSON of an ELL archive, in any of its three generations, as one list of nodes in execution order.

Generation A (2017) and B (early 2018) keep a whole chain of layers in one ``NeuralNetworkPredictorNode``; from April 2018
(C) each layer is a node of its own, beside nodes that reorder, add or splice tensors. ``read_graph`` turns all three into
the same ``EllGraph``; the layers of a predictor become nodes chained one behind the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitkiln.pipeline.errors import ModelError, UnsupportedLayer
from bitkiln.pipeline.importers.common.archive import read_model_text
from bitkiln.pipeline.importers.ell.fields import check_fields

#: Lists at least this long become numpy arrays as soon as they are parsed: a list of Python floats takes 8 times the room.
_ARRAY_FROM = 64

#: What Python takes for the values that these marks announce, as long as they are not compacted: numbers and their places
#: in lists, tables, lists, texts.
_VALUE_BYTES = {b",": 36, b"{": 250, b"[": 70, b'"': 30}

#: The most that reading an archive may take; the larger gallery network takes half of it.
_MAX_PARSED_BYTES = 1280 << 20

#: Nodes that hand their one input on unchanged.
_PASS_THROUGH = ("OutputNode", "SinkNode")
_INPUTS = ("InputNode", "SourceNode")
_PREDICTOR = "NeuralNetworkPredictorNode"
_TENSOR_NODES = ("ReorderDataNode", "ReinterpretLayoutNode", "BinaryOperationNode", "ConstantNode", "SpliceNode")

#: Layers we import; their nodes in generation C are called ``<Layer>Node``.
LAYERS = (
    "ActivationLayer",
    "BatchNormalizationLayer",
    "BiasLayer",
    "BinaryConvolutionalLayer",
    "ConvolutionalLayer",
    "FullyConnectedLayer",
    "PoolingLayer",
    "ScalingLayer",
    "SoftmaxLayer",
)


@dataclass(frozen=True)
class Node:
    """One step of the network.

    ``kind`` is the type without template arguments ("BiasLayer", "ReorderDataNode"); ``where`` names it in messages;
    ``fields`` is the layer's own table (for layers) or the node's; ``beside`` the table of the node that a layer is in.
    """

    id: str
    kind: str
    full_type: str
    where: str
    fields: Mapping[str, Any]
    inputs: tuple[str, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EllGraph:
    """A network: ``input_id`` and the active size (rows, columns, channels) of its input, its nodes, its output ids."""

    path: Path
    input_id: str
    input_shape: tuple[int, int, int]
    nodes: tuple[Node, ...]
    output_ids: tuple[str, ...]


def read_graph(path: Path) -> EllGraph:
    """Read ``path`` (.ell or .ell.zip); ModelError says what is wrong with it, UnsupportedLayer names a foreign node."""
    document = _parse(path)
    tables = _node_tables(path, document)
    _check_types(path, tables)
    order = _in_order(path, tables)
    aliases: dict[str, str] = {}
    nodes: list[Node] = []
    inputs: list[tuple[str, tuple[int, int, int]]] = []
    outputs: list[str] = []
    for node_id in order:
        table = tables[node_id]
        kind, full = type_of(table)
        where = f"{path}: node {node_id} ({full})"
        check_fields(where, kind, table)
        if kind in _INPUTS:
            inputs.append((node_id, _input_shape(where, table)))
        elif kind == "ClockNode":
            continue
        elif kind in _PASS_THROUGH:
            source = next(iter(_ports(where, table)), None)
            if source is None:
                raise ModelError(f"{where}: has no input")
            aliases[node_id] = _resolve(aliases, source)
            outputs.append(aliases[node_id])
        else:
            sources = tuple(_resolve(aliases, source) for source in _ports(where, table))
            chain = _layer_chain(where, node_id, kind, full, table, sources)
            nodes += chain
            aliases[node_id] = chain[-1].id if chain else sources[0]
    if len(inputs) != 1:
        raise ModelError(f"{path}: has {len(inputs)} input nodes; networks with one input are supported")
    input_id, shape = inputs[0]
    inner = _predictor_shape(path, tables) or shape
    if np.prod(inner) != np.prod(shape):
        raise ModelError(f"{path}: node {input_id}: is of {shape}, its predictor's input layer of {inner}")
    stated = _stated_outputs(path, document, aliases, {input_id, *(node.id for node in nodes)})
    results = _outputs(path, stated or outputs, nodes)
    return EllGraph(path, input_id, inner, tuple(nodes), results)


def _parse(path: Path) -> Any:
    text = read_model_text(path, ".ell")
    needed = len(text) * 2 + sum(size * text.count(mark) for mark, size in _VALUE_BYTES.items())
    if needed > _MAX_PARSED_BYTES:
        raise ModelError(f"{path}: its text takes more than {_MAX_PARSED_BYTES >> 20} MiB to read; refused")
    try:
        return json.loads(text, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not an ELL archive (JSON: {str(error)[:120]})") from None


def _compact(table: dict[str, Any]) -> dict[str, Any]:
    """Turn long lists of numbers into arrays; bit patterns stay exact (uint64), all else becomes float64."""
    for key, value in table.items():
        if isinstance(value, list) and len(value) >= _ARRAY_FROM and type(value[0]) in (int, float):
            try:
                table[key] = np.array(value, np.uint64 if key == "binarizedWeights_values" else np.float64)
            except (ValueError, TypeError, OverflowError):
                continue  # not all numbers: the layer that uses it will say so by name
    return table


def _node_tables(path: Path, document: Any) -> dict[str, Mapping[str, Any]]:
    """Nodes by id, in the file's order."""
    model = document.get("model", document) if isinstance(document, dict) else None
    nodes = model.get("nodes") if isinstance(model, dict) else None
    if model is None or not isinstance(nodes, list) or not nodes or not all(isinstance(node, dict) for node in nodes):
        raise ModelError(f"{path}: is not an ELL archive (no model with nodes)")
    check_fields(f"{path}: its model", "Model", model)
    if model is not document:
        check_fields(f"{path}: its map", "Map", document)
    tables = {str(node.get("id", "")): node for node in nodes}
    if len(tables) != len(nodes):
        raise ModelError(f"{path}: two nodes have the same id")
    return tables


def type_of(table: Mapping[str, Any]) -> tuple[str, str]:
    """(type without template arguments, full type)."""
    full = table.get("_type", "without a type")
    full = full if isinstance(full, str) and len(full) < 200 else shown(full)
    return full.partition("<")[0], full


def _check_types(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Name the first node no importer knows before anything else is complained about."""
    known = {*_INPUTS, *_PASS_THROUGH, *_TENSOR_NODES, _PREDICTOR, "ClockNode", "ParametricReLUActivationLayerNode"}
    known |= {f"{layer}Node" for layer in LAYERS}
    for node_id, table in tables.items():
        kind, full = type_of(table)
        if kind not in known:
            raise UnsupportedLayer(f"{path}: node {node_id} has type {full}, which bitkiln cannot run")


def _layer_chain(
    where: str, node_id: str, kind: str, full: str, table: Mapping[str, Any], sources: tuple[str, ...]
) -> list[Node]:
    """The steps one archive node stands for: the layers of a predictor, one layer, or the node itself."""
    if kind in _TENSOR_NODES:
        return [Node(node_id, kind, full, where, table, sources)]
    if not sources:
        raise ModelError(f"{where}: has no input")
    if kind != _PREDICTOR:
        return [_layer(where, node_id, table.get("layer"), sources, table)]
    predictor = table.get("predictor")
    layers = predictor.get("layers") if isinstance(predictor, dict) else None
    if not isinstance(predictor, dict) or not isinstance(layers, list):
        raise ModelError(f"{where}: its predictor has no layers")
    check_fields(f"{where}, its predictor", "NeuralNetworkPredictor", predictor)
    chain: list[Node] = []
    first = predictor.get("inputLayer")
    for index, layer in enumerate([first, *layers] if isinstance(first, dict) else layers):
        before = (chain[-1].id,) if chain else sources[:1]
        chain.append(_layer(where, f"{node_id}.{index}", layer, before))
    return chain


def _layer(
    where: str, node_id: str, layer: Any, sources: tuple[str, ...], beside: Mapping[str, Any] | None = None
) -> Node:
    if not isinstance(layer, dict):
        raise ModelError(f"{where}: has no layer table")
    kind, full = type_of(layer)
    part = node_id.partition(".")[2]
    where = f"{where}, layer {part} ({full})" if part else where
    if kind not in (*LAYERS, "InputLayer"):
        raise UnsupportedLayer(f"{where}: layers of this type are not supported")
    check_fields(where, kind, layer)
    return Node(node_id, kind, full, where, layer, sources, beside or {})


def _ports(where: str, table: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes whose whole output feeds this one, in order."""
    names = [name for name in ("input", "input1", "input2", "inputs", *_numbered(where, table)) if name in table]
    ports = [port for name in names for port in (table[name] if isinstance(table[name], list) else [table[name]])]
    for port in ports:
        if isinstance(port, dict):
            check_fields(f"{where}, its input port", "InputPort", port)
    texts = [port.get("input") if isinstance(port, dict) else port for port in ports]
    if not all(isinstance(text, str) for text in texts):
        raise ModelError(f"{where}: its inputs are {shown(texts)}, not ports of other nodes")
    return [source for text in texts if text for source in _port_sources(where, text)]


def _numbered(where: str, table: Mapping[str, Any]) -> list[str]:
    """The names of the ports of a splice, which counts them."""
    found = {name for name in table if name.startswith("input_")}
    names = [f"input_{index}" for index in range(len(found))]
    if found and (found != set(names) or table.get("numInputs") != len(found)):
        raise ModelError(f"{where}: counts {shown(table.get('numInputs'))} inputs, and has {shown(sorted(found))}")
    return names


def _port_sources(where: str, text: str) -> list[str]:
    """``5.output``, ``{5.output, 6.output}``; slices and single elements are refused."""
    parts = text.strip().strip("{}").split(",")
    matches = [match for part in parts if (match := re.fullmatch(r"\s*(\w+)(\.\w+)?\s*", part))]
    if len(matches) < len(parts):
        raise UnsupportedLayer(f"{where}: takes parts of other nodes' outputs ({text.strip()[:60]}); not supported")
    return [match.group(1) for match in matches]


def _in_order(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Ids such that every node follows its inputs (depth first, without recursion)."""
    sources = {
        node_id: _ports(f"{path}: node {node_id} ({type_of(table)[1]})", table) for node_id, table in tables.items()
    }
    order: dict[str, None] = {}
    for root in tables:
        stack = [(root, iter(sources[root]))]
        path_ids = {root}
        while stack:
            node_id, pending = stack[-1]
            source = next(pending, None)
            if source is None:
                stack.pop()
                path_ids.discard(node_id)
                order[node_id] = None
            elif source not in tables:
                raise ModelError(f"{path}: node {node_id} takes its input from node {source}, which does not exist")
            elif source in path_ids:
                raise ModelError(f"{path}: node {source} depends on itself")
            elif source not in order:
                stack.append((source, iter(sources[source])))
                path_ids.add(source)
    return list(order)


def _resolve(aliases: Mapping[str, str], node_id: str) -> str:
    return aliases.get(node_id, node_id)


def _stated_outputs(path: Path, document: Any, aliases: Mapping[str, str], known: Collection[str]) -> list[str]:
    """The nodes whose outputs the map hands on; empty where the archive has no map, or it does not say."""
    where = f"{path}: outputElements"
    texts = document.get("outputElements", []) if "model" in document else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ModelError(f"{where} are {shown(texts)}, not ports of nodes")
    ids = [_resolve(aliases, source) for text in texts for source in _port_sources(where, text)]
    for node_id in ids:
        if node_id not in known:
            raise ModelError(f"{where} name node {node_id}, which does not exist")
    return ids


def _outputs(path: Path, outputs: list[str], nodes: list[Node]) -> tuple[str, ...]:
    if not nodes:
        raise ModelError(f"{path}: has no layers")
    return tuple(dict.fromkeys(outputs)) or (nodes[-1].id,)


def _input_shape(where: str, table: Mapping[str, Any]) -> tuple[int, int, int]:
    """Active size of an input node, wherever its generation writes it."""
    port = table.get("output")
    holders = (table, "layout"), (table, "outputLayout"), (port if isinstance(port, dict) else {}, "layout")
    stated = next((pair for pair in holders if pair[0].get(pair[1])), None)
    if stated is not None:
        shape, border = layout_of(where, *stated)
        if border:
            raise UnsupportedLayer(f"{where}: its input has a border of {border}; not supported")
    else:
        shape = shape_of(where, table.get("shape") or table.get("outputShape") or [1, 1, table.get("size", 0)])
    if "size" in table and table["size"] != int(np.prod(shape)):
        raise ModelError(f"{where}: its size is {shown(table['size'])}, its shape {shape}")
    return shape


def _predictor_shape(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, int] | None:
    """Active size of the input layer of generations A and B, whose input nodes may know a flat size only."""
    for node_id, table in tables.items():
        predictor = table.get("predictor")
        layer = predictor.get("inputLayer") if isinstance(predictor, dict) else None
        if isinstance(layer, dict):
            where = f"{path}: node {node_id} ({type_of(table)[1]}), input layer"
            rows, columns, channels = shape_of(where, layer.get("outputShape"))
            padding = 2 * whole_number(where, "outputPaddingSize", layer.get("outputPaddingSize", 0))
            return shape_of(where, [rows - padding, columns - padding, channels])
    return None


def shape_of(where: str, value: Any) -> tuple[int, int, int]:
    """(rows, columns, channels) of a shape written as three positive numbers."""
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    numbers = [1] * (3 - len(numbers)) + numbers if numbers else []
    if len(numbers) != 3 or not all(type(number) is int and 0 < number < 1 << 20 for number in numbers):
        raise ModelError(f"{where}: {shown(value)} is not a shape of rows, columns and channels")
    return tuple(numbers)


def layout_of(where: str, table: Mapping[str, Any], name: str) -> tuple[tuple[int, int, int], int]:
    """(active size, border) of a memory layout; the border must be even and the order row-major."""
    layout = table.get(name)
    if not isinstance(layout, dict):
        raise ModelError(f"{where}: has no {name}")
    check_fields(f"{where}, {name}", "MemoryLayout", layout)
    size = shape_of(where, layout.get("size"))
    extent = shape_of(where, layout.get("extent", list(size)))
    offset, order, steps = (_list(layout.get(key)) for key in ("offset", "order", "increment"))
    border = (extent[0] - size[0]) // 2
    even = extent == (size[0] + 2 * border, size[1] + 2 * border, size[2]) and border >= 0
    dense = len(steps) < 3 or steps == [extent[1] * extent[2], extent[2], 1]
    in_order = order in ([], [0], [0, 1], [0, 1, 2])
    if not even or offset not in ([], [0], [border, border, 0]) or not in_order or not dense:
        text = shown({"size": size, "extent": extent, "offset": offset, "order": order, "increment": steps})
        raise UnsupportedLayer(f"{where}: memory layout {text} is not supported")
    return size, border


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def whole_number(where: str, name: str, value: Any, low: int = 0, high: int = 1 << 20) -> int:
    """``value`` of the field ``name``, which must be a whole number within bounds."""
    if type(value) not in (int, float) or not low <= value <= high or value != int(value):
        raise ModelError(f"{where}: {name} is {shown(value)}, which makes no sense")
    return int(value)


def shown(value: Any) -> str:
    """A value of an archive as messages show it: on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
